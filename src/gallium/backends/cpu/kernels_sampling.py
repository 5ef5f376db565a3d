"""The call of the sampling kernel. The struct format mirrors native/include/gallium/sample.h."""

from __future__ import annotations

import ctypes
from struct import Struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gallium.backends.cpu.arrays import address, check_memory, require, rows
from gallium.ops.handles import FloatArray, IntArray, SamplerInputs

_SAMPLE = Struct("@12Q3q").pack
_PER_ROW = (
    ("temperature", np.float32), ("top_k", np.int32), ("top_p", np.float32), ("min_p", np.float32),
    ("seed", np.uint64), ("position", np.int32),
)  # fmt: skip
_ADJUSTMENTS = (("adjust_ids", np.int32), ("adjust_scale", np.float32), ("adjust_bias", np.float32))


def _typed(how: SamplerInputs, name: str, dtype: type[np.generic], count: int) -> NDArray[Any]:
    found = np.ascontiguousarray(getattr(how, name))
    require(
        found.dtype == dtype and len(found) == count,
        f"sample: {name} must be {np.dtype(dtype)} with {count} entries, not {found.dtype} with {len(found)}.",
    )
    return found


class SamplingKernels:
    """The sampling kernel of the loaded library."""

    __slots__ = ("_sample",)

    def __init__(self, library: ctypes.CDLL) -> None:
        self._sample = library.ga_sample

    def sample(self, logits: FloatArray, how: SamplerInputs) -> IntArray:
        """One token id per row of `[rows, vocab]`. Raises BackendError on arrays of a wrong type or length."""
        logits, stride = rows(logits)
        count = len(logits)
        require(0 < how.vocab_size <= logits.shape[1], f"sample: {how.vocab_size} ids for {logits.shape[1]} logits.")
        arrays = [_typed(how, name, dtype, count) for name, dtype in _PER_ROW]
        start = _typed(how, "adjust_start", np.int32, count + 1)
        adjustments = [_typed(how, name, dtype, int(start[-1])) for name, dtype in _ADJUSTMENTS]
        if start[-1]:
            ids = adjustments[0]
            require(
                bool(ids.min() >= 0) and bool(ids.max() < how.vocab_size),
                f"sample: adjusted ids must lie in [0, {how.vocab_size}).",
            )
        ids_out = np.empty(count, np.int32)
        status = self._sample(
            _SAMPLE(
                address(logits), address(ids_out), *map(address, arrays), address(start), *map(address, adjustments),
                count, stride, how.vocab_size,
            )
        )  # fmt: skip
        check_memory(status, "sample")
        return ids_out
