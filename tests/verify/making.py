"""Small models on two backends, for comparisons that take no time."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

from tests.models.memory_checkpoint import MemoryCheckpoint, random_checkpoint
from tests.models.small_specs import spec_of
from tests.models.targets import REFERENCE, Target

from gallium.models.spec import ModelSpec
from gallium.ops.handles import Precision
from gallium.verify.sides import Side

PROMPTS = [[5, 7, 11, 13, 17, 19, 23, 29], [2, 3, 9, 8, 44]]
FAMILIES = ("glm-odd", "glm4-odd", "glm4_moe-odd")


@cache
def model(name: str) -> tuple[ModelSpec, MemoryCheckpoint]:
    spec = spec_of(name)
    return spec, random_checkpoint(spec)


def side(target: Target, name: str) -> Side:
    """A model of `small_specs` on a backend."""
    spec, checkpoint = model(name)
    return Side(target.backend, target.precision, target.load(checkpoint, spec))


def cpu_and_reference(name: str, precision: Precision = "float32") -> tuple[Side, Side]:
    return side(Target("cpu", precision), name), side(REFERENCE, name)


def emulated(one: Side) -> Side:
    """The same, as if its hardware were emulated."""
    return replace(one, emulated=True, facts={"EMULATED": "by a test", "chip": "Ascend910B2, sold as nothing"})
