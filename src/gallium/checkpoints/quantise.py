"""Encoders, the inverse of formats.py: float32 to the codings that `gallium convert` writes.

Block layouts as in formats.py. Scales are rounded to float16 first and the values quantised with what was rounded, so
that the error of the scale does not add to theirs. Q4_1 has the arithmetic of native/src/pack.cpp, step by step: a
matrix that was converted to int4 is, bit for bit, the one that the CPU backend makes of the original in int4.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]
HALF_MAX = 65504.0


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


def _half(values: Floats) -> NDArray[np.float16]:
    return np.clip(values, -HALF_MAX, HALF_MAX).astype("<f2")


def _q8_0(values: Floats) -> Bytes:
    """32 values: float16 scale, then signed bytes."""
    blocks = values.reshape(-1, 32)
    scale = _half(np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127))
    quants = np.clip(np.rint(_divide(blocks, scale.astype(np.float32))), -127, 127).astype(np.int8)
    return np.concatenate([scale.view(np.uint8), quants.view(np.uint8)], axis=1).reshape(-1)


def _q4_1(values: Floats) -> Bytes:
    """32 values: float16 scale, float16 min, then 16 bytes, low nibbles first: value = scale * q + min."""
    blocks = np.ascontiguousarray(values.reshape(-1, 32).T)
    low, high, mean = blocks.min(axis=0), blocks.max(axis=0), _sum(blocks) / np.float32(32)
    scale, offset, quants, error = _four_bit(blocks, (high - low) / np.float32(15), low)
    # One step of least squares: the best line through the values, given their quants, then the best quants again.
    quant_mean = _sum(quants) / np.float32(32)
    centred = quants - quant_mean
    spread = _sum(centred * centred)
    fitted = _divide(_sum(centred * blocks), spread)
    again = _four_bit(blocks, fitted, mean - fitted * quant_mean)
    better = (spread != 0) & (again.error < error)
    scale, offset = np.where(better, again.scale, scale), np.where(better, again.offset, offset)
    nibbles = np.where(better, again.quants, quants).astype(np.uint8)
    packed = (nibbles[:16] | nibbles[16:] << np.uint8(4)).T
    ends = np.stack([scale, offset], axis=1).view(np.uint8)
    return np.concatenate([ends, packed], axis=1).reshape(-1)


class Line(NamedTuple):
    """How blocks `[32, n]` are coded: scale, min `[n]` and quants (0 to 15, as floats), with their squared error."""

    scale: NDArray[np.float16]
    offset: NDArray[np.float16]
    quants: Floats
    error: Floats


def _four_bit(blocks: Floats, scale: Floats, offset: Floats) -> Line:
    half_scale, half_offset = _half(scale), _half(offset)
    d, m = half_scale.astype(np.float32), half_offset.astype(np.float32)
    quants = np.rint(_divide(blocks - m, d))
    quants = np.where(quants > 0, np.minimum(quants, np.float32(15)), np.float32(0))  # a NaN among them too
    off = blocks - (d * quants + m)
    return Line(half_scale, half_offset, quants, _sum(off * off))


def _sum(blocks: Floats) -> Floats:
    """Over the values of each block, in their order."""
    total: Floats = np.add.reduce(blocks, axis=0)
    return total


def _divide(values: Floats, by: Floats) -> Floats:
    """0 where `by` is 0: a block of equal values."""
    return np.divide(values, by, out=np.zeros(np.broadcast_shapes(values.shape, by.shape), np.float32), where=by != 0)


ENCODERS: dict[str, Callable[[Floats], Bytes]] = {"F32": _f32, "BF16": _bf16, "Q8_0": _q8_0, "Q4_1": _q4_1}
"""float32 values, whole rows -> the bytes of the coding of that name, 1-D."""
