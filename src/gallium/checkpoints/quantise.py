"""Encoders, the inverse of formats.py: float32 to the codings that `gallium convert` writes.

Block layouts as in formats.py; scales and quants by fitting.py.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from gallium.checkpoints.fitting import Floats, best_line, best_scale

Bytes = NDArray[np.uint8]
CACHED = 4096  # blocks of 32 values


def _bytes(array: NDArray[np.generic]) -> Bytes:
    """The array's memory, 1-D."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _f32(values: Floats) -> Bytes:
    return _bytes(values.astype("<f4"))


def _bf16(values: Floats) -> Bytes:
    """Round to nearest, ties to even; a NaN stays one."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)
    quiet = bits >> np.uint32(16) | np.uint32(0x40)
    return _bytes(np.where(np.isnan(values), quiet, rounded).astype("<u2"))


def _q8_0(values: Floats) -> Bytes:
    """32 values: float16 scale, then signed bytes."""
    return _in_parts(values, _q8_0_blocks)


def _q4_1(values: Floats) -> Bytes:
    """32 values: float16 scale, float16 min, then 16 bytes, low nibbles first: value = scale * q + min."""
    return _in_parts(values, _q4_1_blocks)


def _in_parts(values: Floats, encode: Callable[[Floats], Bytes]) -> Bytes:
    """Blocks as columns, so many at a time that what is computed of them stays in the processor's cache."""
    blocks = values.reshape(-1, 32)
    coded = [encode(np.ascontiguousarray(blocks[start : start + CACHED].T)) for start in range(0, len(blocks), CACHED)]
    return np.concatenate(coded) if len(coded) != 1 else coded[0]


def _q8_0_blocks(blocks: Floats) -> Bytes:
    found = best_scale(blocks)
    quants = found.quants.astype(np.int8).T
    return np.concatenate([found.scale[:, None].view(np.uint8), quants.view(np.uint8)], axis=1).reshape(-1)


def _q4_1_blocks(blocks: Floats) -> Bytes:
    found = best_line(blocks)
    nibbles = found.quants.astype(np.uint8)
    packed = (nibbles[:16] | nibbles[16:] << np.uint8(4)).T
    ends = np.stack([found.scale, found.offset], axis=1)
    return np.concatenate([ends.view(np.uint8), packed], axis=1).reshape(-1)


ENCODERS: dict[str, Callable[[Floats], Bytes]] = {"F32": _f32, "BF16": _bf16, "Q8_0": _q8_0, "Q4_1": _q4_1}
"""float32 values, whole rows -> the bytes of the coding of that name, 1-D."""
