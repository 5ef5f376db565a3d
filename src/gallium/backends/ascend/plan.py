"""A step on Ascend: what torch_npu's fused operators want of it beside what plain PyTorch wants."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from gallium.backends.torch.plan import DUMMY_PAGE, FIRST_PAGE, GATHERED_SLOTS, TorchPlan, put, rope_table, sent
from gallium.ops.handles import IntArray, RopeSpec, Step

Form: TypeAlias = tuple[RopeSpec, int, torch.dtype]


def spread(positions: IntArray, spec: RopeSpec, width: int) -> NDArray[np.float32]:
    """Cosine and sine of each element of a head, float32 `[2, tokens, width]`; 1 and 0 behind `spec.dim`.

    In the halves mode elements i and i + dim / 2 turn together, else neighbours do.
    """
    table = rope_table(positions, spec)[:, :, 0]
    whole = np.repeat(table, 2, axis=2) if spec.interleaved else np.concatenate((table, table), axis=2)
    out = np.zeros((2, len(positions), width), np.float32)
    out[0], out[:, :, : spec.dim] = 1, whole
    return out


def joined(positions: IntArray, spec: RopeSpec) -> NDArray[np.float32]:
    """The cosines of each token's angles, then their sines: float32 `[tokens, dim]`."""
    return np.concatenate(tuple(rope_table(positions, spec)[:, :, 0]), axis=1)


@dataclass(frozen=True, slots=True)
class Part:
    """Some sequences of a step that come one after the other, over copies of just the pages that they need."""

    rows: slice  # their tokens
    pages: torch.Tensor  # int64: which pages are copied
    block_tables: torch.Tensor  # int32 [seqs, blocks]: into the copies
    query_ends: list[int]
    lengths: list[int]


class AscendPlan(TorchPlan):
    """A TorchPlan with lengths as Python integers, which attention wants, and tables in the model's type."""

    def __init__(self, step: Step, device: torch.device, fixed: bool = False, live: int | None = None) -> None:
        super().__init__(step, device, fixed, live)
        self._read_lengths()
        self._turns: dict[Form, torch.Tensor] = {}
        self._angles: dict[Form, torch.Tensor] = {}
        self._query_ends: torch.Tensor | None = None
        self._numbers: torch.Tensor | None = None
        self._parts: dict[int, list[Part]] = {}

    def _read_lengths(self) -> None:
        self.lengths: list[int] = self.step.context_lens.tolist()
        self.query_ends: list[int] = self.step.query_start[1:].tolist()

    def _host_slots(self, block_size: int) -> NDArray[np.int64]:
        """Padding goes to different slots of the dummy page: npu_scatter_pa_kv_cache wants no slot twice."""
        slots = super()._host_slots(block_size)
        padding = np.arange(len(slots) - int(self.step.query_start[self.live]))
        slots[len(slots) - len(padding) :] = DUMMY_PAGE * block_size + padding % block_size
        return slots

    def parts(self, block_size: int) -> list[Part]:
        """All sequences with their queries, so many at a time that copies of their pages do not take much memory."""
        if block_size not in self._parts:
            blocks = -(-self.step.context_lens // block_size)
            ends = np.cumsum(blocks)
            first, cuts = 0, []
            while first < len(blocks):
                before = ends[first] - blocks[first]
                fitting = int(np.searchsorted(ends, before + GATHERED_SLOTS // block_size, side="right"))
                cuts.append(slice(first, max(first + 1, fitting)))
                first = cuts[-1].stop
            made = [self._part(cut, blocks[cut]) for cut in cuts]
            self._parts[block_size] = [part for part in made if part.query_ends[-1]]
        return self._parts[block_size]

    def _part(self, cut: slice, blocks: IntArray) -> Part:
        step, width = self.step, int(blocks.max())
        used = np.arange(width) < blocks[:, None]
        tables = np.zeros(used.shape, np.int32)
        tables[used] = np.arange(blocks.sum())
        pages = step.block_tables[cut, :width][used].astype(np.int64) + FIRST_PAGE
        bounds = step.query_start[cut.start : cut.stop + 1]
        return Part(
            slice(int(bounds[0]), int(bounds[-1])),
            sent(pages, self.device),
            sent(tables, self.device),
            (bounds[1:] - bounds[0]).tolist(),
            self.lengths[cut],
        )

    @property
    def one_each(self) -> bool:
        """Whether every sequence has one query."""
        return self.query_ends == list(range(1, self.tokens + 1))

    def load(self, step: Step, live: int) -> None:
        """Put another step of the same shape into the same device tensors."""
        super().load(step, live)
        self._read_lengths()
        self._parts.clear()
        for (spec, width, _), table in self._turns.items():
            put(spread(step.positions, spec, width), table)
        for (spec, _, _), table in self._angles.items():
            put(joined(step.positions, spec), table)
        if self._query_ends is not None:
            put(step.query_start[1:].copy(), self._query_ends)

    def turns(self, spec: RopeSpec, width: int, dtype: torch.dtype) -> torch.Tensor:
        """What npu_rotary_mul multiplies heads of this width with: `[2, tokens, width]`, cosine and sine."""
        found = self._turns.get((spec, width, dtype))
        if found is None:
            found = self._table(spread(self.step.positions, spec, width), dtype)
            self._turns[spec, width, dtype] = found
        return found

    def angles(self, spec: RopeSpec, dtype: torch.dtype) -> torch.Tensor:
        """The table that npu_mrope takes rows of, one row per token: `[tokens, dim]`, cosines and then sines."""
        found = self._angles.get((spec, spec.dim, dtype))
        if found is None:
            found = self._table(joined(self.step.positions, spec), dtype)
            self._angles[spec, spec.dim, dtype] = found
        return found

    def _table(self, array: NDArray[np.float32], dtype: torch.dtype) -> torch.Tensor:
        table = torch.empty(array.shape, dtype=dtype, device=self.device)
        put(array, table)
        return table

    @property
    def numbers(self) -> torch.Tensor:
        """int32 `[tokens]`: 0, 1, 2, …, the rows of `angles`."""
        if self._numbers is None:
            self._numbers = sent(np.arange(self.tokens, dtype=np.int32), self.device)
        return self._numbers

    @property
    def query_ends_on_device(self) -> torch.Tensor:
        """int32 `[seqs]`: where each sequence's queries end."""
        if self._query_ends is None:
            self._query_ends = sent(self.step.query_start[1:].copy(), self.device)
        return self._query_ends
