"""A step on the device: its arrays in one transfer, slots and rope tables on demand, windows of keys for attention."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from gallium.errors import BackendError
from gallium.ops.handles import IntArray, RopeSpec, Step

ZERO_PAGE, DUMMY_PAGE, FIRST_PAGE = 0, 1, 2
"""Pages of every cache that no sequence owns: one that stays zero, for reads past a context, and one that padding
writes to. Block b of a block table is page b + FIRST_PAGE, so that -1 (no block) is the dummy page."""

SHORT_CHUNK = 8  # sequences with at most so many new tokens are computed side by side
GATHERED_SLOTS = 1 << 18  # at most so many keys are gathered at once, if that is more than one sequence's
_ALIGN = 128  # int32 elements: each array of the transfer begins on a boundary of 512 bytes

Rows: TypeAlias = slice | torch.Tensor


@dataclass(frozen=True, slots=True)
class Window:
    """Sequences with equally many queries, and the keys that they see, padded to the longest context."""

    rows: Rows  # which tokens, sequence after sequence
    seqs: int
    queries: int  # per sequence
    slots: torch.Tensor  # int64 [seqs, keys], into pages seen as [slots, ...]; past a context: the zero page
    mask: torch.Tensor  # bool [seqs, queries, keys]: True where a query may look


@lru_cache(maxsize=64)
def _frequencies(dim: int, base: float) -> NDArray[np.float64]:
    found: NDArray[np.float64] = np.float64(base) ** (-np.arange(0, dim, 2, dtype=np.float64) / dim)
    return found


def rope_table(positions: IntArray, spec: RopeSpec) -> NDArray[np.float32]:
    """Cosine and sine of each angle, float32 `[2, tokens, 1, dim / 2]`; angles in float64, rounded once."""
    angles = positions.astype(np.float64)[:, None] * _frequencies(spec.dim, spec.base)
    return np.stack((np.cos(angles), np.sin(angles))).astype(np.float32)[:, :, None, :]


def sent(array: NDArray[Any], device: torch.device) -> torch.Tensor:
    """The array on the device. What it is copied from stays in place, so that the host need not wait for the copy."""
    tensor = torch.from_numpy(array)
    return tensor.to(device) if device.type in ("cpu", "mps") else tensor.pin_memory().to(device, non_blocking=True)


def put(array: NDArray[Any], target: torch.Tensor) -> None:
    """As `sent`, into a tensor that is there already; its type may be a narrower one."""
    tensor = torch.from_numpy(array).to(target.dtype)
    pinned = tensor if target.device.type in ("cpu", "mps") else tensor.pin_memory()
    target.copy_(pinned, non_blocking=True)


class TorchPlan:
    """One forward pass. The device tensors are int32 views into one buffer; block tables hold page numbers.

    `load` puts another step of the same shape into the same tensors, for the replay of a captured graph. `fixed` asks
    for one window over all sequences, as wide as the block table, whatever the contexts: shapes that a graph can keep.
    `live` is the number of sequences that are not padding.
    """

    def __init__(self, step: Step, device: torch.device, fixed: bool = False, live: int | None = None) -> None:
        self.step = step
        self.device = device
        self.fixed = fixed
        self.live = len(step.context_lens) if live is None else live
        self._shape = _shape(step)
        parts = _parts(step)
        self._buffer = sent(_packed(parts), device)
        views = _views(self._buffer, parts)
        self.token_ids, self.positions, self.logit_rows, self.context_lens, self.token_seqs, self.block_tables = views
        self._slots: dict[int, torch.Tensor] = {}
        self._rope: dict[RopeSpec, torch.Tensor] = {}
        self._windows: dict[int, list[Window]] = {}

    @property
    def tokens(self) -> int:
        """How many tokens the step has, padding included."""
        return len(self.step.token_ids)

    @property
    def all_rows(self) -> bool:
        """Whether the logit rows are all tokens in order."""
        return np.array_equal(self.step.logit_rows, np.arange(self.tokens))

    def load(self, step: Step, live: int) -> None:
        """Put another step of the same shape into the same device tensors, slots and rope tables included."""
        if _shape(step) != self._shape:
            raise BackendError(f"a plan of shape {self._shape} cannot take a step of shape {_shape(step)}.")
        self.step, self.live = step, live
        put(_packed(_parts(step)), self._buffer)
        for block_size, slots in self._slots.items():
            put(self._host_slots(block_size), slots)
        for spec, table in self._rope.items():
            put(rope_table(step.positions, spec), table)

    def forget_derived(self) -> None:
        """Drop what is computed on the device, so that the next forward pass computes it again (within a capture)."""
        self._windows.clear()

    def slots(self, block_size: int) -> torch.Tensor:
        """int64 `[tokens]`: where each token goes in pages seen as `[slots, ...]`."""
        found = self._slots.get(block_size)
        if found is None:
            found = self._slots[block_size] = sent(self._host_slots(block_size), self.device)
        return found

    def rope_table(self, spec: RopeSpec) -> torch.Tensor:
        """float32 `[2, tokens, 1, dim / 2]`: cosine and sine of every token's angles."""
        found = self._rope.get(spec)
        if found is None:
            found = self._rope[spec] = sent(rope_table(self.step.positions, spec), self.device)
        return found

    def windows(self, block_size: int) -> list[Window]:
        """All sequences that have tokens in this step, in groups that are computed side by side."""
        found = self._windows.get(block_size)
        if found is None:
            found = self._windows[block_size] = self._make_windows(block_size)
        return found

    def _host_slots(self, block_size: int) -> NDArray[np.int64]:
        step = self.step
        need = -(-step.context_lens[: self.live] // block_size)
        columns = np.arange(step.block_tables.shape[1])
        if (need > len(columns)).any() or (step.block_tables[: self.live][columns < need[:, None]] < 0).any():
            raise BackendError(
                "this step does not fit its cache: the block table lacks a block that the context needs."
            )
        return step.slots(block_size).astype(np.int64) + FIRST_PAGE * block_size

    def _make_windows(self, block_size: int) -> list[Window]:
        step = self.step
        counts = np.diff(step.query_start)
        if self.fixed:
            members = [np.arange(len(counts))]
        else:
            members = _groups(counts, -(-step.context_lens // block_size), block_size)
        return [self._window(group, block_size) for group in members]

    def _window(self, group: NDArray[np.int64], block_size: int) -> Window:
        step = self.step
        starts, queries = step.query_start[group], int(step.query_start[group[0] + 1] - step.query_start[group[0]])
        width = self.block_tables.shape[1]
        tables, contexts = self.block_tables, self.context_lens
        rows: Rows = slice(0, self.tokens)
        if len(group) == 1:
            first = int(group[0])
            rows, one = slice(int(starts[0]), int(starts[0]) + queries), slice(first, first + 1)
            tables, contexts = tables[one], contexts[one]
        elif len(group) < len(step.context_lens):
            chosen = sent(group, self.device)
            rows = sent((starts[:, None] + np.arange(queries)).reshape(-1).astype(np.int64), self.device)
            tables, contexts = tables.index_select(0, chosen), contexts.index_select(0, chosen)
        if not self.fixed:
            width = -(-int(step.context_lens[group].max()) // block_size)
        offsets = torch.arange(block_size, device=self.device)
        slots = (tables[:, :width, None].long() * block_size + offsets).reshape(len(group), width * block_size)
        place = torch.arange(width * block_size, device=self.device)
        slots = torch.where(place < contexts[:, None], slots, ZERO_PAGE)
        mask = place <= self.positions[rows].reshape(len(group), queries, 1)
        return Window(rows, len(group), queries, slots, mask)


def _groups(counts: IntArray, blocks: IntArray, block_size: int) -> list[NDArray[np.int64]]:
    """Sequences to compute side by side: as many queries, contexts within a factor of two, and not too many keys."""
    alone: list[NDArray[np.int64]] = []
    together: dict[tuple[int, int], list[int]] = {}
    for seq, (count, need) in enumerate(zip(counts.tolist(), blocks.tolist(), strict=True)):
        if count > SHORT_CHUNK:
            alone.append(np.array([seq]))
        elif count:
            together.setdefault((count, need.bit_length()), []).append(seq)
    for (_, bits), seqs in together.items():
        most = max(1, GATHERED_SLOTS // ((1 << bits) * block_size))
        alone += [np.array(seqs[at : at + most]) for at in range(0, len(seqs), most)]
    return alone


def _parts(step: Step) -> list[Any]:
    """The arrays that go to the device, in the order of the views."""
    seqs = np.repeat(np.arange(len(step.context_lens)), np.diff(step.query_start))
    tables = step.block_tables + FIRST_PAGE
    return [step.token_ids, step.positions, step.logit_rows, step.context_lens, seqs, tables]


def _packed(parts: list[Any]) -> IntArray:
    buffer = np.zeros(sum(_room(part.size) for part in parts), np.int32)
    at = 0
    for part in parts:
        buffer[at : at + part.size] = part.reshape(-1)
        at += _room(part.size)
    return buffer


def _views(buffer: torch.Tensor, parts: list[Any]) -> list[torch.Tensor]:
    views, at = [], 0
    for part in parts:
        views.append(buffer[at : at + part.size].view(part.shape))
        at += _room(part.size)
    return views


def _room(size: int) -> int:
    return -(-size // _ALIGN) * _ALIGN


def _shape(step: Step) -> tuple[int, ...]:
    return (len(step.token_ids), len(step.logit_rows), *step.block_tables.shape)
