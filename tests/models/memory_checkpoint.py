"""A checkpoint that is a dictionary of float32 arrays: as gallium.checkpoints, without files."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from gallium.errors import CheckpointError
from gallium.models.catalog import expected_tensors
from gallium.models.spec import ModelSpec
from gallium.ops.handles import FloatArray


@dataclass(frozen=True)
class ArrayWeight:
    """A Weight over an array in memory, stored as F32."""

    name: str
    array: FloatArray
    storage: str = "F32"
    quantisation: None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    def raw(self) -> NDArray[np.uint8]:
        return np.ascontiguousarray(self.array).view(np.uint8).reshape(-1)

    def float32(self, start: int = 0, stop: int | None = None) -> FloatArray:
        return self.array[start:stop]

    def rows(self, start: int, stop: int) -> ArrayWeight:
        return replace(self, array=self.array[start:stop])


def weight(array: object, name: str = "w") -> ArrayWeight:
    """A Weight of any array-like."""
    return ArrayWeight(name, np.ascontiguousarray(array, dtype=np.float32))


class MemoryCheckpoint:
    """Tensors by name; counts reads, so that a test can see that a failed check reads nothing."""

    def __init__(self, tensors: Mapping[str, FloatArray]) -> None:
        self.tensors = dict(tensors)
        self.reads: list[str] = []

    def names(self) -> list[str]:
        return list(self.tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.tensors[name].shape

    def weight(self, name: str, index: int | None = None) -> ArrayWeight:
        self.reads.append(name)
        array = self.tensors[name]
        return weight(array if index is None else array[index], name)

    def check(self, expected: Mapping[str, tuple[int, ...]], ignored: Collection[str] = ()) -> None:
        faults = [f"missing {n}" for n in expected if n not in self.tensors]
        faults += [f"unused {n}" for n in self.tensors if n not in expected and n not in ignored]
        faults += [
            f"{n} has shape {self.shape(n)}, not {shape}"
            for n, shape in expected.items()
            if n in self.tensors and self.shape(n) != shape
        ]
        if faults:
            raise CheckpointError("; ".join(faults))


def random_checkpoint(spec: ModelSpec, seed: int = 0) -> MemoryCheckpoint:
    """Every tensor that a model of `spec` reads: gains about 1, matrices that keep activations moderate."""
    rng = np.random.default_rng(seed)

    def draw(name: str, shape: tuple[int, ...]) -> FloatArray:
        mean, deviation = (1.0, 0.2) if "norm" in name else (0.0, 0.3 if len(shape) == 1 else 1.5 * shape[-1] ** -0.5)
        return rng.normal(mean, deviation, shape).astype(np.float32)

    return MemoryCheckpoint({name: draw(name, shape) for name, shape in expected_tensors(spec, ()).items()})
