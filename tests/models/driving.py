"""Run a model by hand: sequences with scattered cache blocks, any mix of chunks per step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from gallium.models.decoder import Model
from gallium.ops.handles import FloatArray, Step


class Driver:
    """A model, caches and sequences; blocks are handed out in a shuffled order, as a busy engine would."""

    def __init__(self, model: Model, num_blocks: int = 64, block_size: int = 4) -> None:
        self.model = model
        self.block_size = block_size
        self.caches = model.make_caches(num_blocks, block_size)
        self.free = [int(b) for b in np.random.default_rng(7).permutation(num_blocks)]
        self.tables: dict[str, list[int]] = {}
        self.lengths: dict[str, int] = {}
        self.run = model.ops.compile_step(lambda plan: model.forward(plan, self.caches))

    def step(self, chunks: Mapping[str, Sequence[int]]) -> dict[str, FloatArray]:
        """Feed each named sequence its next tokens -> logits `[tokens, vocab]` of each."""
        step = self.describe(chunks)
        logits = self.model.ops.download(self.run(step))
        for name, tokens in chunks.items():
            self.lengths[name] += len(tokens)
        cuts = np.cumsum([len(tokens) for tokens in chunks.values()])[:-1]
        return dict(zip(chunks, np.split(logits, cuts), strict=True))

    def drop(self, name: str) -> None:
        """Forget a sequence; its blocks are the next to be used again."""
        self.free += self.tables.pop(name)
        del self.lengths[name]

    def share(self, name: str, other: str, blocks: int) -> None:
        """Begin a sequence with the first blocks of another, as from a prefix cache."""
        self.tables[name] = self.tables[other][:blocks]
        self.lengths[name] = blocks * self.block_size

    def describe(self, chunks: Mapping[str, Sequence[int]]) -> Step:
        """The step, with blocks allocated."""
        positions, contexts = [], []
        for name, tokens in chunks.items():
            start = self.lengths.setdefault(name, 0)
            table = self.tables.setdefault(name, [])
            while len(table) * self.block_size < start + len(tokens):
                table.append(self.free.pop())
            positions.append(np.arange(start, start + len(tokens)))
            contexts.append(start + len(tokens))
        width = max(len(self.tables[name]) for name in chunks)
        tables = [self.tables[name] + [-1] * (width - len(self.tables[name])) for name in chunks]
        total = sum(len(tokens) for tokens in chunks.values())
        return Step(
            token_ids=np.concatenate([np.asarray(t, np.int32) for t in chunks.values()]),
            positions=np.concatenate(positions).astype(np.int32),
            query_start=np.cumsum([0, *(len(t) for t in chunks.values())], dtype=np.int32),
            context_lens=np.array(contexts, np.int32),
            block_tables=np.array(tables, np.int32),
            logit_rows=np.arange(total, dtype=np.int32),
        )


def logits_of(model: Model, tokens: Sequence[int]) -> FloatArray:
    """All logits of one sequence in one step."""
    return Driver(model).step({"only": tokens})["only"]


def greedy(model: Model, prompt: Sequence[int], count: int) -> list[int]:
    """Prefill, then one token at a time."""
    driver = Driver(model)
    row = driver.step({"only": prompt})["only"][-1]
    out = [int(row.argmax())]
    while len(out) < count:
        out.append(int(driver.step({"only": out[-1:]})["only"][-1].argmax()))
    return out
