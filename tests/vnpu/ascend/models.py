"""Small random models whose heads are as wide as real ones, so that the fused kernels take them."""

from __future__ import annotations

from functools import cache
from typing import Any

from tests.models.memory_checkpoint import MemoryCheckpoint, random_checkpoint
from tests.models.small_specs import spec_of

from gallium.backends.ascend import backend
from gallium.backends.ascend.ops import AscendOps
from gallium.models.catalog import load_model
from gallium.models.decoder import Model
from gallium.models.spec import ModelSpec
from gallium.ops.handles import Precision

WIDE: dict[str, dict[str, Any]] = {
    "glm": {"head_dim": 64, "num_attention_heads": 4},
    "glm4": {"head_dim": 64, "num_attention_heads": 4, "vocab_size": 320, "hidden_size": 128, "intermediate_size": 256},
    "glm4_moe": {"head_dim": 64, "num_attention_heads": 4, "use_qk_norm": True},
}
BASES = {"glm": "glm-tied-even", "glm4": "glm4-odd", "glm4_moe": "glm4_moe-even"}


def wide_spec(arch: str) -> ModelSpec:
    """A model of this family with heads of 64."""
    return spec_of(BASES[arch], **WIDE[arch])


@cache
def _checkpoint(arch: str) -> MemoryCheckpoint:
    return random_checkpoint(wide_spec(arch))


def load(arch: str, precision: Precision = "bfloat16") -> Model:
    """The model on the virtual NPU."""
    spec = wide_spec(arch)
    return load_model(_checkpoint(arch), spec, open_ops(spec, precision))


def open_ops(spec: ModelSpec, precision: Precision) -> AscendOps:
    """The backend's ops for this model."""
    ops = backend.open(spec.facts, precision)
    assert isinstance(ops, AscendOps)
    return ops
