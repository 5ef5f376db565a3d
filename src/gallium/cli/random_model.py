"""A model of a known shape with random weights, made in memory while it is packed: nothing is downloaded or stored."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from gallium.models.catalog import expected_tensors
from gallium.models.spec import ModelSpec
from gallium.ops.handles import FloatArray

TILE = 1 << 20  # values drawn once and repeated: packing speed and memory matter here, not randomness


@dataclass(frozen=True)
class RandomWeight:
    """A `Weight` (ops/handles.py) in bfloat16 whose bytes exist only while somebody reads them."""

    name: str
    shape: tuple[int, ...]
    tile: NDArray[np.uint16]  # bfloat16 bits
    storage: str = "BF16"
    quantisation: None = None

    def raw(self) -> NDArray[np.uint8]:
        """The tile, repeated to the tensor's size; 1-D."""
        return np.resize(self.tile, math.prod(self.shape)).view(np.uint8)

    def float32(self, start: int = 0, stop: int | None = None) -> FloatArray:
        """Rows `start:stop` as float32."""
        stop = self.shape[0] if stop is None else min(stop, self.shape[0])
        width = math.prod(self.shape[1:])
        where = np.arange(start * width, stop * width) % len(self.tile)
        values: FloatArray = (self.tile[where].astype(np.uint32) << 16).view(np.float32)
        return values.reshape(stop - start, *self.shape[1:])

    def rows(self, start: int, stop: int) -> RandomWeight:
        """Rows `start:stop`, drawn anew."""
        return replace(self, shape=(stop - start, *self.shape[1:]))


class RandomCheckpoint:
    """Every tensor that a model of `spec` reads. Norm gains are about 1, matrices small enough not to overflow."""

    def __init__(self, spec: ModelSpec, seed: int = 0) -> None:
        self._shapes = expected_tensors(spec, ())
        rng = np.random.default_rng(seed)
        self._matrix = _bfloat16(rng.standard_normal(TILE, dtype=np.float32) * np.float32(0.02))
        self._vector = _bfloat16(1 + rng.standard_normal(TILE // 16, dtype=np.float32) * np.float32(0.02))

    def names(self) -> list[str]:
        """All tensors."""
        return list(self._shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of one."""
        return self._shapes[name]

    def weight(self, name: str, index: int | None = None) -> RandomWeight:
        """One tensor."""
        shape = self._shapes[name]
        tile = self._vector if len(shape) == 1 else self._matrix
        return RandomWeight(name, shape if index is None else shape[1:], tile)

    def check(self, expected: Mapping[str, tuple[int, ...]], ignored: Collection[str] = ()) -> None:
        """Nothing can be missing: the names are the model's own."""


def _bfloat16(values: FloatArray) -> NDArray[np.uint16]:
    """The upper half of each float32: rounding does not matter for random values."""
    bits: NDArray[np.uint16] = (values.view(np.uint32) >> 16).astype(np.uint16)
    return bits
