"""Encoders, the inverse of formats.py: float32 to the codings that `gallium convert` writes.

Block layouts as in formats.py. Scales are rounded to float16 first and the values quantised with what was rounded, so
that the error of the scale does not add to theirs. Q4_1 has the arithmetic of native/src/best_line.cpp, step by step: a
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
TINY = np.float32(1e-30)  # whose inverse is no infinity
CACHED = 4096  # blocks of 32 values
RANGES = tuple(
    (np.float32(low), np.float32(high))
    for low, high in (
        (0.25, 0.25), (-0.15, -0.15), (-0.15, 0.5), (0.5, -0.15),
        (-0.9, -0.05), (-0.05, -0.9), (0.35, -0.05), (-0.05, 0.35),
    )
)  # fmt: skip
"""Ranges that a search for a line tries: how far the ends of the values' range are moved in, in fifteenths of it."""


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
    coded = [_q4_1_blocks(part) for part in _parts(values.reshape(-1, 32))]
    return np.concatenate(coded) if len(coded) != 1 else coded[0]


def _parts(blocks: Floats) -> list[Floats]:
    """So many blocks at a time that what is computed of them stays in the processor's cache."""
    return [blocks[start : start + CACHED] for start in range(0, len(blocks), CACHED)]


def _q4_1_blocks(values: Floats) -> Bytes:
    """The plain range of the values or the best line found; the better of both, rounded as they are stored."""
    blocks = np.ascontiguousarray(values.T)
    low, high = blocks.min(axis=0), blocks.max(axis=0)
    unit = (high - low) / np.float32(15)
    plain = _four_bit(blocks, unit, low)
    scale, offset, found = _search(blocks, low, unit)
    searched = _four_bit(blocks, scale, offset)
    better = found & (searched.error < plain.error)
    nibbles = np.where(better, searched.quants, plain.quants).astype(np.uint8)
    packed = (nibbles[:16] | nibbles[16:] << np.uint8(4)).T
    ends = np.stack(
        [np.where(better, searched.scale, plain.scale), np.where(better, searched.offset, plain.offset)], axis=1
    )
    return np.concatenate([ends.view(np.uint8), packed], axis=1).reshape(-1)


def _search(blocks: Floats, low: Floats, unit: Floats) -> tuple[Floats, Floats, NDArray[np.bool_]]:
    """Scale and min of the best line for the quants of any of RANGES, and whether there is one.

    Quants q of a range give the line of least squares in closed form, and by how much its squared error is below that
    of a constant: cov(q, t)^2 / var(q).
    """
    usable = (unit > TINY) & (unit <= HALF_MAX)
    inverse = np.divide(np.float32(1), unit, out=np.zeros_like(unit), where=usable)
    t = (blocks - np.where(usable, low, np.float32(0))) * inverse  # 0 to 15; where nothing is found, 0
    mean = _sum_of_lanes(t) / np.float32(32)
    scale, offset, best = np.zeros_like(low), np.zeros_like(low), np.zeros_like(low)
    quants, products = np.empty_like(t), np.empty_like(t)
    for low_end, high_end in RANGES:
        np.subtract(t, low_end, out=quants)
        np.multiply(quants, np.float32(15) / (np.float32(15) - low_end - high_end), out=quants)
        np.rint(quants, out=quants)
        np.clip(quants, 0, 15, out=quants)
        total = _sum(quants)
        spread = _sum(np.multiply(quants, quants, out=products)) - total * total / np.float32(32)
        along = _sum(np.multiply(quants, t, out=products)) - total * mean
        gain = np.where(spread > 0, _divide(along * along, spread), np.float32(0))
        ahead = gain > best
        slope = _divide(along, spread)
        scale = np.where(ahead, slope * unit, scale)
        offset = np.where(ahead, low + (mean - slope * (total / np.float32(32))) * unit, offset)
        best = np.where(ahead, gain, best)
    return scale, offset, best > 0


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
    return Line(half_scale, half_offset, quants, _sum_of_lanes(off * off))


def _sum(blocks: Floats) -> Floats:
    """Over the values of each block, in their order."""
    total: Floats = np.add.reduce(blocks, axis=0)
    return total


def _sum_of_lanes(blocks: Floats) -> Floats:
    """Over the values of each block: every eighth in their order, then these eight sums in pairs."""
    s = np.add.reduce(blocks.reshape(4, 8, -1), axis=0)
    total: Floats = ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]))
    return total


def _divide(values: Floats, by: Floats) -> Floats:
    """0 where `by` is 0: a block of equal values."""
    return np.divide(values, by, out=np.zeros(np.broadcast_shapes(values.shape, by.shape), np.float32), where=by != 0)


ENCODERS: dict[str, Callable[[Floats], Bytes]] = {"F32": _f32, "BF16": _bf16, "Q8_0": _q8_0, "Q4_1": _q4_1}
"""float32 values, whole rows -> the bytes of the coding of that name, 1-D."""
