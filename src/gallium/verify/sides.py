"""The two sides of a comparison: a backend, its precision, and the model it has loaded; and the steps they run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from gallium.models.decoder import Model
from gallium.ops.handles import FloatArray, IntArray, Precision, Step
from gallium.ops.interface import Ops


@dataclass
class Side:
    """One backend with the model on it."""

    backend: str
    precision: Precision
    model: Model
    emulated: bool = False
    facts: dict[str, str] = field(default_factory=dict)  # of the machine, as the backend tells them
    integers: bool = False  # multiplies integers that the checkpoint's maker has quantised

    @property
    def ops(self) -> Ops:
        """The backend's ops for this model."""
        return self.model.ops

    @property
    def label(self) -> str:
        """`cpu (EMULATED), bfloat16`."""
        own = " (the checkpoint's integers)" if self.integers else ""
        return f"{self.backend}{' (EMULATED)' if self.emulated else ''}, {self.precision}{own}"


class Sequences:
    """Sequences that grow together, in blocks that are handed out in a shuffled order, as a busy engine would.

    Every sequence has a spare slot at the end of its table, which no honest op reads.
    """

    def __init__(self, lengths: Sequence[int], block_size: int) -> None:
        """`lengths` are those that the sequences can grow to."""
        self.block_size = block_size
        counts = [-(-(length + 1) // block_size) for length in lengths]
        self.num_blocks = sum(counts)
        order = np.random.default_rng(7).permutation(self.num_blocks).astype(np.int32)
        self._tables: list[IntArray] = np.split(order, np.cumsum(counts)[:-1])
        self._lengths = [0] * len(counts)

    def step(self, chunks: Sequence[Sequence[int]], *, every_row: bool = True) -> Step:
        """Each sequence gets its next tokens; logits of all of them, or of the last of each."""
        starts, sizes = self._lengths, [len(chunk) for chunk in chunks]
        self._lengths = [start + size for start, size in zip(starts, sizes, strict=True)]
        width = max(len(table) for table in self._tables)
        tables = np.full((len(chunks), width), -1, np.int32)
        for row, table in enumerate(self._tables):
            tables[row, : len(table)] = table
        bounds = np.cumsum([0, *sizes], dtype=np.int32)
        positions = [np.arange(start, start + size) for start, size in zip(starts, sizes, strict=True)]
        return Step(
            token_ids=np.concatenate([np.asarray(chunk, np.int32) for chunk in chunks]),
            positions=np.concatenate(positions).astype(np.int32),
            query_start=bounds,
            context_lens=np.array(self._lengths, np.int32),
            block_tables=tables,
            logit_rows=np.arange(bounds[-1], dtype=np.int32) if every_row else (bounds[1:] - 1).astype(np.int32),
        )


def greedy(side: Side, prompts: Sequence[Sequence[int]], count: int) -> tuple[list[list[int]], list[FloatArray]]:
    """`count` tokens after each prompt by the backend's own compiled steps; of each step, logits `[prompts, vocab]`."""
    ops, model = side.ops, side.model
    sequences = Sequences([len(prompt) + count for prompt in prompts], ops.block_size)
    caches = model.make_caches(sequences.num_blocks, sequences.block_size)
    run = ops.compile_step(lambda plan: model.forward(plan, caches), (len(prompts),))
    chunks = [list(prompt) for prompt in prompts]
    tokens: list[list[int]] = [[] for _ in prompts]
    rows: list[FloatArray] = []
    for _ in range(count):
        logits = np.array(ops.download(run(sequences.step(chunks, every_row=False))), np.float32)
        rows.append(logits)
        chunks = [[int(row.argmax())] for row in logits]
        for known, (new,) in zip(tokens, chunks, strict=True):
            known.append(new)
    return tokens, rows
