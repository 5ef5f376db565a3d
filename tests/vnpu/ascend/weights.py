"""Quantised weights for the tests of this folder, and the definition of what they compute, in NumPy float64."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gallium.ops.handles import FloatArray, Quantisation

Codes = NDArray[np.int8]


@dataclass(frozen=True)
class IntegerWeight:
    """A Weight of a checkpoint that came with its integers."""

    codes: Codes
    quantisation: Quantisation
    name: str = "q"

    @property
    def storage(self) -> str:
        return f"I{self.quantisation.bits}"

    @property
    def shape(self) -> tuple[int, ...]:
        return self.codes.shape

    def raw(self) -> NDArray[np.uint8]:
        return self.codes.view(np.uint8).reshape(-1)

    def float32(self, start: int = 0, stop: int | None = None) -> FloatArray:
        how = self.quantisation
        scale = np.repeat(how.scale, self.codes.shape[1] // how.scale.shape[1], axis=1)
        values: FloatArray = (self.codes.astype(np.float32) * scale)[start:stop]
        return values


def integers(seed: int, height: int, width: int, bits: int = 8, groups: int = 1) -> IntegerWeight:
    """A weight with activations quantised per token."""
    rng = np.random.default_rng(seed)
    top = 1 << (bits - 1)
    codes = rng.integers(-top, top, (height, width)).astype(np.int8)
    scale = rng.uniform(0.5, 1.5, (height, groups)).astype(np.float32) / top / 8
    return IntegerWeight(codes, Quantisation(8 if bits == 8 else 4, scale, "dynamic"))


def static(
    seed: int, height: int, width: int, input_scale: float = 0.043, input_offset: int = -11, corrects: bool = True
) -> IntegerWeight:
    """A weight with one calibrated grid for its input."""
    plain = integers(seed, height, width)
    scale = plain.quantisation.scale
    output_scale = (scale[:, 0] * np.float32(input_scale)).astype(np.float32)
    correction = -input_offset * plain.codes.astype(np.int64).sum(1)
    how = Quantisation(
        8, scale, "static", input_scale, input_offset, output_scale, correction.astype(np.int32) if corrects else None
    )
    return IntegerWeight(plain.codes, how)


def per_token(x: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Whole numbers and the scale of each row: largest magnitude / 127."""
    scale = np.abs(x).max(axis=1, keepdims=True).astype(np.float32) / np.float32(127)
    return np.rint(x / np.where(scale == 0, np.float32(1), scale)), scale


def product(x: FloatArray, w: IntegerWeight) -> NDArray[np.float64]:
    """What `Quantisation` defines, without a bias: exact integer sums, then scales."""
    how, codes = w.quantisation, w.codes.astype(np.float64)
    if how.activations == "static":
        rows = np.rint(x * (np.float32(1) / np.float32(how.input_scale)) + how.input_offset).clip(-128, 127)
        sums = rows.astype(np.float64) @ codes.T + (0 if how.correction is None else how.correction)
        assert how.output_scale is not None
        return sums * how.output_scale
    rows, row_scale = per_token(x)
    groups = how.scale.shape[1]
    parts = zip(np.split(rows.astype(np.float64), groups, 1), np.split(codes, groups, 1), how.scale.T, strict=True)
    total: NDArray[np.float64] = sum((a @ b.T) * s for a, b, s in parts) * row_scale  # type: ignore[assignment]
    return total
