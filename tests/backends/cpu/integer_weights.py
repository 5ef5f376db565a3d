"""Weights made of integers, and what a product with them is: the same sums in NumPy, exactly, then float32."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gallium.ops.handles import FloatArray, Quantisation


@dataclass(frozen=True)
class IntegerWeight:
    """A Weight `[out, in]` of codes in memory."""

    name: str
    codes: NDArray[np.int8]
    quantisation: Quantisation

    @property
    def shape(self) -> tuple[int, ...]:
        return self.codes.shape

    @property
    def storage(self) -> str:
        return f"I{self.quantisation.bits}"

    def raw(self) -> NDArray[np.uint8]:
        return self.codes.reshape(-1).view(np.uint8)

    def float32(self, start: int = 0, stop: int | None = None) -> FloatArray:
        scale = np.repeat(self.quantisation.scale, self.shape[1] // self.quantisation.scale.shape[1], axis=1)
        decoded: FloatArray = (self.codes * scale)[start:stop]
        return decoded


def random_weight(
    seed: int, rows: int, cols: int, bits: int = 8, groups: int = 1, static: tuple[float, int] | None = None
) -> IntegerWeight:
    """Codes over the whole range, both ends among them; `static` is (input_scale, input_offset)."""
    rng = np.random.default_rng(seed)
    low, high = (-128, 127) if bits == 8 else (-8, 7)
    codes = rng.integers(low, high + 1, (rows, cols)).astype(np.int8)
    codes[0], codes[-1] = low, high
    scale = rng.uniform(1e-4, 1e-2, (rows, groups)).astype(np.float32)
    if static is None:
        return IntegerWeight(f"w{seed}", codes, Quantisation(bits, scale, "dynamic"))  # type: ignore[arg-type]
    input_scale, offset = static
    correction = (-offset * codes.astype(np.int64).sum(axis=1)).astype(np.int32)
    how = Quantisation(
        8, scale, "static", input_scale, offset, (scale[:, 0] * np.float32(input_scale)).astype(np.float32), correction
    )
    return IntegerWeight(f"w{seed}", codes, how)


def product(x: FloatArray, weights: list[IntegerWeight], bias: FloatArray | None = None) -> FloatArray:
    """`x W.T + bias` as `Quantisation` defines it; the rows of the weights one after the other."""
    out = np.concatenate([_one(x, w) for w in weights], axis=1)
    return out if bias is None else out + bias


def _one(x: FloatArray, w: IntegerWeight) -> FloatArray:
    how = w.quantisation
    codes = w.codes.astype(np.int64)
    if how.activations == "static":
        factor = np.float32(1) / np.float32(how.input_scale)
        q = np.clip(np.rint(x * factor + np.float32(how.input_offset)), -128, 127).astype(np.int64)
        assert how.correction is not None and how.output_scale is not None
        return ((q @ codes.T + how.correction).astype(np.float32) * how.output_scale).astype(np.float32)
    s = (np.abs(x).max(axis=1, keepdims=True) / np.float32(127)).astype(np.float32)
    q = np.rint(np.divide(x, s, out=np.zeros_like(x), where=s > 0)).astype(np.int64)
    total = np.zeros((len(x), len(codes)), np.float32)
    groups = how.scale.shape[1]
    for g, columns in enumerate(np.split(np.arange(codes.shape[1]), groups)):
        sums = (q[:, columns] @ codes[:, columns].T).astype(np.float32)
        total = total + sums * how.scale[:, g]
    scaled: FloatArray = total * s
    return scaled
