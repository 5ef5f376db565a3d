"""Records the native calls of a forward pass: what they are, and memory that stays where they found it."""

from __future__ import annotations

import copy
import ctypes
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from gallium.backends.cpu.arrays import address, aligned_zeros

CALLS = (
    "ga_embed", "ga_linear", "ga_gated_mlp", "ga_experts", "ga_rms_norm", "ga_add", "ga_swiglu", "ga_rope", "ga_route",
    "ga_kv_write", "ga_qkv_prepare", "ga_attend", "ga_index_topk", "ga_kv_codes", "ga_scale_columns",
)  # fmt: skip
"""The functions that a program can call, by their number in native/include/gallium/program.h."""
_ALIGNMENT = 64
_SLAB = 1 << 18  # bytes that the arena grows by at least


class NotRecordable(Exception):
    """A forward pass computes something outside of the native calls."""


class Recorded(np.ndarray[Any, Any]):
    """An array in the arena. Only native calls may compute with it: what NumPy does is not in the recording."""

    arena: Arena | None = None

    def __array_finalize__(self, obj: Any) -> None:
        """Of a view or a copy: a copy lies elsewhere."""
        self.arena = getattr(obj, "arena", None)
        if self.arena is not None and self.size and not self.arena.holds(address(self)):
            raise NotRecordable("an activation is copied by NumPy")

    def __array_ufunc__(self, ufunc: Any, *_: Any, **__: Any) -> Any:
        """Refuses."""
        raise NotRecordable(f"an activation goes through np.{ufunc.__name__}")

    def __array_function__(self, func: Any, *_: Any, **__: Any) -> Any:
        """Refuses."""
        raise NotRecordable(f"an activation goes through np.{func.__name__}")


class Arena:
    """Memory for the activations of recorded passes, of which only one runs at a time: they all share it.

    Arrays are given back when the pass that is recorded drops them, so the forward pass's own lifetimes say which may
    lie in the same place.
    """

    def __init__(self) -> None:
        self._slabs: list[NDArray[np.uint8]] = []
        self._free: list[tuple[int, int]] = []  # (address, bytes), ascending, never adjacent within a slab

    @property
    def nbytes(self) -> int:
        """Bytes taken from the system."""
        return sum(slab.nbytes for slab in self._slabs)

    def holds(self, where: int) -> bool:
        """Whether an address lies in this memory."""
        return any(0 <= where - address(slab) < slab.nbytes for slab in self._slabs)

    def empty(self, shape: int | tuple[int, ...], dtype: DTypeLike = np.float32) -> Recorded:
        """As `np.empty`."""
        shape = (shape,) if isinstance(shape, int) else shape
        count, dtype = int(np.prod(shape)), np.dtype(dtype)
        size = max(1, -(-count * dtype.itemsize // _ALIGNMENT)) * _ALIGNMENT
        where = self._take(size)
        owner = (ctypes.c_uint8 * size).from_address(where)  # lives as long as any view of the array
        weakref.finalize(owner, self._give, where, size).atexit = False
        array: Recorded = np.frombuffer(memoryview(owner), dtype, count).reshape(shape).view(Recorded)
        array.arena = self
        return array

    def _take(self, size: int) -> int:
        for index, (where, room) in enumerate(self._free):
            if room >= size:
                self._free[index : index + 1] = [(where + size, room - size)] if room > size else []
                return where
        slab = aligned_zeros(max(size, _SLAB), np.uint8)
        self._slabs.append(slab)
        self._give(address(slab), slab.nbytes)
        return self._take(size)

    def _give(self, where: int, size: int) -> None:
        starts = {address(slab) for slab in self._slabs}
        merged: list[tuple[int, int]] = []
        for start, room in sorted([*self._free, (where, size)]):
            if merged and sum(merged[-1]) == start and start not in starts:
                merged[-1] = (merged[-1][0], merged[-1][1] + room)
            else:
                merged.append((start, room))
        self._free = merged


class Recorder:
    """Makes copies of kernel objects whose native calls run as ever and are written down."""

    def __init__(self, arena: Arena) -> None:
        self.arena = arena
        self.calls: list[tuple[int, bytes]] = []

    def watched(self, kernels: Any) -> Any:
        """A copy of an object that has native functions in its slots, and `_empty` for their results."""
        twin = copy.copy(kernels)
        for name in type(kernels).__slots__:
            value = getattr(kernels, name)
            if callable(value) and getattr(value, "__name__", "").startswith("ga_"):
                setattr(twin, name, self._noted(value))
        twin._empty = self.arena.empty
        return twin

    def _noted(self, function: Any) -> Callable[[bytes], Any]:
        name = function.__name__

        def call(args: bytes) -> Any:
            if name not in CALLS:
                raise NotRecordable(f"{name} is not a call of a program")
            self.calls.append((CALLS.index(name), args))
            return function(args)

        return call
