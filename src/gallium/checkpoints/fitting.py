"""The line or the scale that holds a block of weights with the least squared error.

Several ways to lay a grid over a block's values are tried. Each gives quants, and quants give the best line, or scale,
in closed form. What is chosen is compared with the plain one, both rounded to float16 as they are stored: it is never
worse. The arithmetic is that of native/src/best_line.cpp and best_scale.cpp, step by step: a matrix that was converted
to int4 or int8 is, bit for bit, the one that the CPU backend makes of the original in that precision.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
HALF_MAX = 65504.0
TINY = np.float32(1e-30)  # whose inverse is no infinity
RANGES = tuple(
    (np.float32(low), np.float32(high))
    for low, high in (
        (0.25, 0.25), (-0.15, -0.15), (-0.15, 0.5), (0.5, -0.15),
        (-0.9, -0.05), (-0.05, -0.9), (0.35, -0.05), (-0.05, 0.35),
    )
)  # fmt: skip
"""Ranges that a search for a line tries: how far the ends of the values' range are moved in, in fifteenths of it."""

TOPS = tuple(np.float32(top) for top in range(127, 119, -1))
"""Quants of the largest magnitude that a search for a scale tries."""


class Fit(NamedTuple):
    """How `n` blocks are held: value = scale * quant + offset.

    Scale and offset are `[n]`, quants `[values, n]` whole numbers as floats, error `[n]` each block's squared error.
    """

    scale: NDArray[np.float16]
    offset: NDArray[np.float16]
    quants: Floats
    error: Floats


def best_line(blocks: Floats) -> Fit:
    """The columns of `blocks` `[values, n]`, values a multiple of 8, as scale * q + offset with q from 0 to 15."""
    low, high = blocks.min(axis=0), blocks.max(axis=0)
    unit = (high - low) / np.float32(15)
    scale, offset, found = _search_lines(blocks, low, unit)
    return _better(_on_line(blocks, unit, low), _on_line(blocks, scale, offset), found)


def best_scale(blocks: Floats) -> Fit:
    """The columns of `blocks` `[values, n]`, values a multiple of 8, as scale * q with q from -127 to 127."""
    unit = np.abs(blocks).max(axis=0) / np.float32(127)
    scale, found = _search_scales(blocks, unit)
    return _better(_on_scale(blocks, unit), _on_scale(blocks, scale), found)


def _better(plain: Fit, searched: Fit, found: NDArray[np.bool_]) -> Fit:
    """What was searched where something was found that is better."""
    better = found & (searched.error < plain.error)
    return Fit(
        np.where(better, searched.scale, plain.scale), np.where(better, searched.offset, plain.offset),
        np.where(better, searched.quants, plain.quants), np.where(better, searched.error, plain.error),
    )  # fmt: skip


def _search_lines(blocks: Floats, low: Floats, unit: Floats) -> tuple[Floats, Floats, NDArray[np.bool_]]:
    """Scale and offset of the best line for the quants of any of RANGES, and whether there is one.

    Quants q of a range give the line of least squares in closed form, and by how much its squared error is below that
    of a constant: cov(q, t)^2 / var(q).
    """
    usable, inverse = _inverse(unit)
    count = np.float32(len(blocks))
    t = (blocks - np.where(usable, low, np.float32(0))) * inverse  # 0 to 15; where nothing is found, 0
    mean = _sum_of_lanes(t) / count
    scale, offset, best = np.zeros_like(low), np.zeros_like(low), np.zeros_like(low)
    quants, products = np.empty_like(t), np.empty_like(t)
    for low_end, high_end in RANGES:
        np.subtract(t, low_end, out=quants)
        np.multiply(quants, np.float32(15) / (np.float32(15) - low_end - high_end), out=quants)
        np.rint(quants, out=quants)
        np.clip(quants, 0, 15, out=quants)
        total = _sum(quants)
        spread = _sum(np.multiply(quants, quants, out=products)) - total * total / count
        along = _sum(np.multiply(quants, t, out=products)) - total * mean
        gain = np.where(spread > 0, _divide(along * along, spread), np.float32(0))
        ahead = gain > best
        slope = _divide(along, spread)
        scale = np.where(ahead, slope * unit, scale)
        offset = np.where(ahead, low + (mean - slope * (total / count)) * unit, offset)
        best = np.where(ahead, gain, best)
    return scale, offset, best > 0


def _search_scales(blocks: Floats, unit: Floats) -> tuple[Floats, NDArray[np.bool_]]:
    """The best scale for the quants that any of TOPS leads to, and whether there is one."""
    _, inverse = _inverse(unit)
    t = blocks * inverse  # -127 to 127; where nothing is found, 0
    scale, best = np.zeros_like(unit), np.zeros_like(unit)
    quants, products = np.empty_like(t), np.empty_like(t)
    for top in TOPS:
        np.rint(np.multiply(t, top / np.float32(127), out=quants), out=quants)
        square = _sum(np.multiply(quants, quants, out=products))
        along = _sum(np.multiply(quants, t, out=products))
        gain = _divide(along * along, square)
        ahead = gain > best
        scale = np.where(ahead, _divide(along, square), scale)
        best = np.where(ahead, gain, best)
    return scale * unit, best > 0


def _inverse(unit: Floats) -> tuple[NDArray[np.bool_], Floats]:
    """Where a unit is one that float16 can say, and 1 / unit there, 0 elsewhere."""
    usable = (unit > TINY) & (unit <= HALF_MAX)
    return usable, np.divide(np.float32(1), unit, out=np.zeros_like(unit), where=usable)


def _on_line(blocks: Floats, scale: Floats, offset: Floats) -> Fit:
    half_scale, half_offset = _half(scale), _half(offset)
    d, m = half_scale.astype(np.float32), half_offset.astype(np.float32)
    quants = np.rint(_divide(blocks - m, d))
    quants = np.where(quants > 0, np.minimum(quants, np.float32(15)), np.float32(0))  # a NaN among them too
    off = blocks - (d * quants + m)
    return Fit(half_scale, half_offset, quants, _sum_of_lanes(off * off))


def _on_scale(blocks: Floats, scale: Floats) -> Fit:
    half = _half(scale)
    d = half.astype(np.float32)
    quants = np.clip(np.rint(_divide(blocks, d)), -127, 127)
    off = blocks - d * quants
    return Fit(half, np.zeros_like(half), quants, _sum_of_lanes(off * off))


def _half(values: Floats) -> NDArray[np.float16]:
    return np.clip(values, -HALF_MAX, HALF_MAX).astype("<f2")


def _sum(blocks: Floats) -> Floats:
    """Over the values of each block, in their order."""
    total: Floats = np.add.reduce(blocks, axis=0)
    return total


def _sum_of_lanes(blocks: Floats) -> Floats:
    """Over the values of each block: every eighth in their order, then these eight sums in pairs."""
    s = np.add.reduce(blocks.reshape(-1, 8, blocks.shape[1]), axis=0)
    total: Floats = ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]))
    return total


def _divide(values: Floats, by: Floats) -> Floats:
    """0 where `by` is 0: a block of equal values."""
    return np.divide(values, by, out=np.zeros(np.broadcast_shapes(values.shape, by.shape), np.float32), where=by != 0)
