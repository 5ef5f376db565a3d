"""Integers for one float matrix and what msModelSlim stores beside them, by the last part of the names.

Formulas: msModelSlim's description of its format "AscendV1". Weights are symmetric.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gallium.ops.handles import FloatArray

Parts = dict[str, NDArray[Any]]
SHRINKS = np.linspace(0.6, 1.0, 9, dtype=np.float32)  # of the largest magnitude that four bits keep
SUMS = 16  # scale_bias of a matrix whose columns are cut over ranks has so many partial sums
CUT_BY_COLUMNS = ("down_proj", "o_proj")


def w8a8_dynamic(weight: FloatArray) -> Parts:
    """int8 with a scale per row."""
    scale = row_scales(weight, 127)
    return {"weight": codes_of(weight, scale, 127), "weight_scale": scale, "weight_offset": np.zeros_like(scale)}


def w8a8(weight: FloatArray, bias: FloatArray | None, seen: tuple[float, float], *, half: bool) -> Parts:
    """int8 with a scale per row and for the input, which lies within `seen`. `half`: deq_scale as int64."""
    scale = row_scales(weight, 127)
    codes = codes_of(weight, scale, 127)
    low, high = min(seen[0], 0.0), max(seen[1], 0.0)
    input_scale = np.float32((high - low) / 255 or 1.0)
    offset = int(np.clip(np.rint(-128 - low / input_scale), -128, 127))
    deq = (scale[:, 0] * input_scale).astype(np.float32)
    folded = 0.0 if bias is None else bias / deq
    return {
        "weight": codes,
        "input_scale": np.array([input_scale], np.float32),
        "input_offset": np.array([offset], np.float32),
        "deq_scale": deq.view(np.int32).astype(np.int64) if half else deq,
        "quant_bias": np.rint(folded - codes.astype(np.int64).sum(axis=1) * offset).astype(np.int32),
    }


def w4a8_dynamic(weight: FloatArray, name: str, group_size: int, *, packed: bool) -> Parts:
    """int4 with a scale per row or, through int8, per group; `packed`: two rows in a byte, and scale_bias."""
    more: Parts = {}
    if group_size:
        scale = row_scales(weight, 127)
        eighth = (weight / scale).reshape(len(weight), -1, group_size)
        second = fitted_scales(eighth)
        codes = codes_of(eighth, second, 7, -8).reshape(weight.shape)
        decoded = (codes.reshape(eighth.shape) * second).reshape(weight.shape) * scale
        more = {"weight_scale_second": second[:, :, 0], "weight_offset_second": np.zeros(second.shape[:2], np.int64)}
    else:
        scale = fitted_scales(weight)
        codes = codes_of(weight, scale, 7, -8)
        decoded = codes * scale
    if packed:
        more["scale_bias"] = scale_bias(decoded, name)
        codes = ((codes[1::2] << 4) | (codes[0::2] & 15)).astype(np.int8)
    return {"weight": codes, "weight_scale": scale, "weight_offset": np.zeros_like(scale)} | more


def scale_bias(decoded: FloatArray, name: str) -> FloatArray:
    """Eight times the sum of each row, or of its sixteen parts where columns are cut over ranks."""
    parts = SUMS if name.split(".")[-2] in CUT_BY_COLUMNS and decoded.shape[1] % SUMS == 0 else 1
    sums: FloatArray = 8 * decoded.reshape(len(decoded), parts, -1).sum(axis=2, dtype=np.float32)
    return sums


def row_scales(weight: FloatArray, top: int) -> FloatArray:
    """`[..., 1]`: the largest magnitude is `top`; 1 where all is zero."""
    largest = np.abs(weight).max(axis=-1, keepdims=True)
    return np.where(largest > 0, largest / np.float32(top), np.float32(1)).astype(np.float32)


def fitted_scales(weight: FloatArray) -> FloatArray:
    """`[..., 1]`: of several shrunk scales for four bits the one with the least squared error."""
    full = row_scales(weight, 7)
    best, error = full, np.full(full.shape, np.inf, np.float32)
    off = np.empty_like(weight)  # one array for all steps: new ones of this size cost more than the arithmetic
    for shrink in SHRINKS:
        scale = full * shrink
        np.rint(np.divide(weight, scale, out=off), out=off)
        np.clip(off, -8, 7, out=off)
        np.subtract(np.multiply(off, scale, out=off), weight, out=off)
        found = np.square(off, out=off).sum(axis=-1, keepdims=True)
        best, error = np.where(found < error, scale, best), np.minimum(found, error)
    return best


def codes_of(weight: FloatArray, scale: FloatArray, top: int, bottom: int | None = None) -> NDArray[np.int8]:
    """The nearest integers, half to even."""
    return np.clip(np.rint(weight / scale), -top if bottom is None else bottom, top).astype(np.int8)
