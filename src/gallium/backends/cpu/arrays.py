"""Addresses, strides and aligned memory of NumPy arrays, at the cost that a decode step can afford."""

from __future__ import annotations

import ctypes
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from gallium.errors import BackendError, OutOfMemory

_FLOAT32 = np.dtype(np.float32)
_ALIGNMENT = 64  # a cache line, and the widest vector
_read = ctypes.c_size_t.from_address
# NumPy's C structure of an array is public: the data pointer follows the object header.
_DATA = object.__basicsize__


_Scalar = TypeVar("_Scalar", bound=np.generic)


class Empty(Protocol):
    """`np.empty`, or what takes its place while calls are recorded: where a kernel's result goes."""

    def __call__(self, shape: int | tuple[int, ...], dtype: type[_Scalar], /) -> NDArray[_Scalar]:
        """An array whose elements are not set."""
        ...


def _slow_address(array: NDArray[Any]) -> int:
    return int(array.ctypes.data)


def _fast_address(array: NDArray[Any]) -> int:
    return _read(id(array) + _DATA).value


def _layout_is_known() -> bool:
    """Whether the data pointer lies where NumPy documents it: not so in builds with another object header."""
    probe = np.zeros(4, np.float32)
    return all(_fast_address(a) == _slow_address(a) for a in (probe, probe[1:], probe.reshape(2, 2)))


address = _fast_address if _layout_is_known() else _slow_address
"""The address of an array's first element: 0.15 µs where `array.ctypes.data` takes 1.1."""


def rows(x: NDArray[np.float32]) -> tuple[NDArray[np.float32], int]:
    """`x` `[tokens, ...]` and the floats between its tokens; copied only if a token is not contiguous.

    Raises BackendError on anything but float32: a kernel would misread it.
    """
    if x.dtype is not _FLOAT32 and x.dtype != _FLOAT32:
        raise BackendError(f"the CPU backend's tensors are float32, not {x.dtype}.")
    if x.flags.c_contiguous:
        return x, x.size // (x.shape[0] or 1)
    expected = x.itemsize
    for size, stride in zip(x.shape[:0:-1], x.strides[:0:-1], strict=True):
        if size != 1 and stride != expected:
            copy = x.copy()
            return copy, copy.size // (copy.shape[0] or 1)
        expected *= size
    return x, x.strides[0] // x.itemsize


def contiguous(x: NDArray[Any]) -> NDArray[Any]:
    """`x`, copied only if it is not contiguous."""
    return x if x.flags.c_contiguous else x.copy()


def aligned_zeros(count: int, dtype: Any) -> NDArray[Any]:
    """A flat array of zeros on a cache line; pages are taken from the system when first written."""
    size = np.dtype(dtype).itemsize
    try:
        raw = np.zeros(count * size + _ALIGNMENT, np.uint8)
    except MemoryError as cause:
        raise OutOfMemory(
            f"no memory for {count * size / 2**30:.2f} GiB of KV cache: lower --kv-memory or the context."
        ) from cause
    skip = -address(raw) % _ALIGNMENT
    return raw[skip : skip + count * size].view(dtype)


def weight_memory(size: int) -> NDArray[Any]:
    """Zeros for panels of weights. Raises OutOfMemory."""
    try:
        return aligned_zeros(size, np.uint8)
    except OutOfMemory:
        raise OutOfMemory(
            f"no memory for {size / 2**20:.0f} MiB of weights: choose a smaller precision or model."
        ) from None


def check_memory(status: int, op: str) -> None:
    """Raise OutOfMemory for a kernel that had no scratch memory."""
    if status:
        raise OutOfMemory(f"no memory for the scratch of {op}: lower --kv-memory or the batch size.")


def require(condition: bool, message: str) -> None:
    """Raise BackendError unless `condition`: arguments that a kernel would misread."""
    if not condition:
        raise BackendError(message)
