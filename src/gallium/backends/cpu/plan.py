"""A step on the CPU: arrays with known addresses, checked once, with slots and rope tables made on demand."""

from __future__ import annotations

from functools import lru_cache
from struct import Struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gallium.backends.cpu import library
from gallium.backends.cpu.arrays import address, require
from gallium.errors import BackendError
from gallium.ops.handles import IntArray, RopeSpec, Step

_BATCH = Struct("@3Q2q")  # ga_batch
_SLOTS = Struct("@2Q3q")  # ga_slots_args, up to its batch
_TABLE = Struct("@3Q3q")  # ga_rope_table_args
_LEAST_COLUMNS = 8  # of the block table of a plan that is used again
_FAULTS = (
    "",
    "query_start does not cut the tokens into sequences",
    "positions do not run up to the context length",
    "the block table lacks a block that the context needs",
)


@lru_cache(maxsize=64)
def frequencies(dim: int, base: float) -> NDArray[np.float64]:
    """`base^(-2i/dim)`, float64 `[dim / 2]`."""
    found: NDArray[np.float64] = np.float64(base) ** (-np.arange(0, dim, 2, dtype=np.float64) / dim)
    return found


def rope_table(positions: IntArray, spec: RopeSpec) -> NDArray[np.float32]:
    """`[tokens, 2, dim]`: each element's cosine, and the sine with the sign that its partner gets.

    (a, b) -> (a cos - b sin, b cos + a sin); angles in float64, rounded once.
    """
    table = np.empty((len(positions), 2, spec.dim), np.float32)
    fill_rope_table(table, positions, spec)
    return table


def fill_rope_table(table: NDArray[np.float32], positions: IntArray, spec: RopeSpec) -> None:
    """Write `rope_table` into a contiguous array of its shape."""
    found = frequencies(spec.dim, spec.base)
    packed = _TABLE.pack(address(positions), address(found), address(table), len(positions), spec.dim, spec.interleaved)
    library.load().ga_rope_table(packed)


def _int32(array: Any, what: str) -> IntArray:
    found = np.ascontiguousarray(array)
    require(found.dtype == np.int32, f"{what} of a step must be int32, not {found.dtype}.")
    return found


class CpuPlan:
    """One forward pass. `batch` is the packed ga_batch that kernels read; it points into this object's arrays."""

    __slots__ = (
        "_slots", "_tables", "all_rows", "batch", "block_tables", "context_lens", "logit_rows", "positions",
        "query_start", "token_ids", "tokens",
    )  # fmt: skip

    def __init__(self, step: Step) -> None:
        self.token_ids = _int32(step.token_ids, "token_ids")
        self.positions = _int32(step.positions, "positions")
        self.query_start = _int32(step.query_start, "query_start")
        self.context_lens = _int32(step.context_lens, "context_lens")
        self.block_tables = _int32(step.block_tables, "block_tables")
        self.logit_rows = _int32(step.logit_rows, "logit_rows")
        self.tokens = len(self.token_ids)
        seqs = len(self.context_lens)
        require(
            len(self.positions) == self.tokens
            and len(self.query_start) == seqs + 1
            and self.block_tables.ndim == 2
            and len(self.block_tables) == seqs,
            "a step's arrays disagree about the number of tokens or sequences.",
        )
        self.batch = _BATCH.pack(
            address(self.query_start), address(self.context_lens), address(self.block_tables),
            seqs, self.block_tables.shape[1],
        )  # fmt: skip
        rows = self.logit_rows
        self.all_rows = len(rows) == self.tokens and bool((rows[1:] > rows[:-1]).all())
        self._slots: dict[tuple[int, int], IntArray] = {}
        self._tables: dict[RopeSpec, NDArray[np.float32]] = {}

    def slots(self, block_size: int, num_blocks: int) -> IntArray:
        """`[tokens]`: where each token goes in a cache of this shape. Raises BackendError if the step does not fit."""
        found = self._slots.get((block_size, num_blocks))
        if found is None:
            found = np.empty(self.tokens, np.int32)
            self._find_slots(found, block_size, num_blocks)
            self._slots[block_size, num_blocks] = found
        return found

    def _find_slots(self, slots: IntArray, block_size: int, num_blocks: int) -> None:
        fault = library.load().ga_plan_slots(
            _SLOTS.pack(address(self.positions), address(slots), self.tokens, block_size, num_blocks) + self.batch
        )
        if fault:
            raise BackendError(f"this step does not fit its cache: {_FAULTS[fault]}.")

    def rope_table(self, spec: RopeSpec) -> NDArray[np.float32]:
        """The rotation of every token; see `rope_table`."""
        found = self._tables.get(spec)
        if found is None:
            found = self._tables[spec] = rope_table(self.positions, spec)
        return found


class FixedPlan(CpuPlan):
    """A plan whose arrays stay in their places: `load` writes other steps of the same numbers into them.

    It owns its arrays. The block table has columns to spare, so that sequences can grow.
    """

    __slots__ = ()

    def __init__(self, step: Step) -> None:
        width = max(_LEAST_COLUMNS, step.block_tables.shape[1])
        tables = np.full((len(step.context_lens), 1 << (width - 1).bit_length()), -1, np.int32)
        tables[:, : step.block_tables.shape[1]] = step.block_tables
        super().__init__(
            Step(
                token_ids=step.token_ids.copy(),
                positions=step.positions.copy(),
                query_start=step.query_start.copy(),
                context_lens=step.context_lens.copy(),
                block_tables=tables,
                logit_rows=step.logit_rows.copy(),
            )
        )

    def has_room(self, step: Step) -> bool:
        """Whether the step's block table is narrow enough."""
        return bool(step.block_tables.shape[1] <= self.block_tables.shape[1])

    def load(self, step: Step) -> None:
        """Take over a step of as many tokens and sequences, and renew what was derived from the one before."""
        self.token_ids[:] = step.token_ids
        self.positions[:] = step.positions
        self.query_start[:] = step.query_start
        self.context_lens[:] = step.context_lens
        width = step.block_tables.shape[1]
        self.block_tables[:, :width] = step.block_tables
        self.block_tables[:, width:] = -1
        for (block_size, num_blocks), slots in self._slots.items():
            self._find_slots(slots, block_size, num_blocks)
        for spec, table in self._tables.items():
            fill_rope_table(table, self.positions, spec)
