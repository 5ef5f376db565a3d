"""What a model is run on: a backend by name, a precision, and for the CPU backend an instruction-set level."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module

from gallium.backends.cpu.library import available_levels
from gallium.models.catalog import load_model
from gallium.models.decoder import Model
from gallium.models.spec import ModelSpec
from gallium.models.weights import CheckpointLike
from gallium.ops.handles import Precision
from gallium.ops.interface import Ops


@dataclass(frozen=True, slots=True)
class Target:
    """One way to run a model; opened only when a test runs."""

    backend: str
    precision: Precision = "float32"
    level: str | None = None

    def __str__(self) -> str:
        return "-".join(part for part in (self.backend, self.level, self.precision) if part)

    def open(self, spec: ModelSpec) -> Ops:
        ops: Ops = import_module(f"gallium.backends.{self.backend}").backend.open(spec.facts, self.precision)
        return ops

    def load(self, checkpoint: CheckpointLike, spec: ModelSpec) -> Model:
        return load_model(checkpoint, spec, self.open(spec))


REFERENCE = Target("reference")
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16", "int8", "int4")
CPU = [Target("cpu", precision, level) for level in available_levels() for precision in PRECISIONS]
TORCH = [Target("torch"), Target("torch", "bfloat16")]
FLOAT32 = [REFERENCE, TORCH[0], *(target for target in CPU if target.precision == "float32")]
