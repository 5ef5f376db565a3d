"""A checkpoint in memory whose projections are integers with scales, as a maker of quantised models delivers them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from tests.models.memory_checkpoint import MemoryCheckpoint, random_checkpoint

from gallium.models.spec import ModelSpec
from gallium.ops.handles import FloatArray, Quantisation

Kind = Literal["static", "dynamic", "groups"]
GROUP = 32
INPUT_SCALE, INPUT_OFFSET = 0.05, 9


@dataclass(frozen=True)
class Integers:
    """A quantised Weight."""

    codes: NDArray[np.int8]
    quantisation: Quantisation
    name: str = "w"

    @property
    def shape(self) -> tuple[int, ...]:
        return self.codes.shape

    @property
    def storage(self) -> str:
        return f"I{self.quantisation.bits}"

    def raw(self) -> NDArray[np.uint8]:
        return self.codes.view(np.uint8).reshape(-1)

    def float32(self, start: int = 0, stop: int | None = None) -> FloatArray:
        scale = np.repeat(self.quantisation.scale, self.shape[1] // self.quantisation.scale.shape[1], axis=1)
        return (self.codes.astype(np.float32) * scale)[start:stop]

    def rows(self, start: int, stop: int) -> Integers:
        parts = {name: getattr(self.quantisation, name) for name in ("scale", "output_scale", "correction")}
        cut = {name: part[start:stop] for name, part in parts.items() if part is not None}
        return replace(self, codes=self.codes[start:stop], quantisation=replace(self.quantisation, **cut))


def integers(values: FloatArray, kind: Kind, name: str = "w") -> Integers:
    """The nearest integers of a matrix: 8 bits per row, or 4 bits per group of columns."""
    rows, width = values.shape
    groups, top, bits = (width // GROUP, 7, 4) if kind == "groups" else (1, 127, 8)
    grouped = values.reshape(rows, groups, -1)
    scale = np.abs(grouped).max(axis=2) / np.float32(top)
    codes = np.rint(grouped / scale[:, :, None]).astype(np.int8).reshape(rows, width)
    if kind != "static":
        return Integers(codes, Quantisation(bits, scale, "dynamic"), name)  # type: ignore[arg-type]
    correction = -INPUT_OFFSET * codes.astype(np.int32).sum(axis=1, dtype=np.int32)
    output_scale = (scale[:, 0] * np.float32(INPUT_SCALE)).astype(np.float32)
    how = Quantisation(8, scale, "static", INPUT_SCALE, INPUT_OFFSET, output_scale, correction)
    return Integers(codes, how, name)


class IntegerCheckpoint(MemoryCheckpoint):
    """Its projections are of `kind`, all else float; routed experts have no static activations."""

    def __init__(self, tensors: dict[str, FloatArray], kind: Kind) -> None:
        super().__init__(tensors)
        self.kind = kind

    def weight(self, name: str, index: int | None = None) -> Any:
        found = super().weight(name, index)
        if not name.endswith("_proj.weight"):
            return found
        return integers(found.array, "dynamic" if self.kind == "static" and ".experts." in name else self.kind, name)


def integer_checkpoint(spec: ModelSpec, kind: Kind) -> IntegerCheckpoint:
    """Random integers for every projection of a model, and a grid for keys and values of every layer."""
    checkpoint = IntegerCheckpoint(random_checkpoint(spec).tensors, kind)
    rng, a = np.random.default_rng(1), spec.attention
    for layer in range(spec.num_layers):
        for part, dim in (("k", a.head_dim), ("v", a.v_head_dim)):
            at, size = f"model.layers.{layer}.self_attn.{part}_proj.kv_cache_", a.num_kv_heads * dim
            checkpoint.tensors[at + "scale"] = rng.uniform(0.04, 0.08, size).astype(np.float32)
            checkpoint.tensors[at + "offset"] = np.zeros(size, np.float32)
    return checkpoint
