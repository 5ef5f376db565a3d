"""What a model_type means beyond its config: the facts that its definition fixes and no file states."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from gallium.models.decoder import Layer
from gallium.models.spec import ModelSpec
from gallium.models.weights import Source

BuildLayer = Callable[[Source, ModelSpec, int], Layer]
"""Takes layer `index` from a source. Run twice: once to learn names and shapes, once to pack."""


class Family(NamedTuple):
    """One `model_type`. Defaults are those of its config class in transformers, for keys a file may omit."""

    model_type: str
    arch: str  # the model class that runs it: ModelSpec.arch
    build_layer: BuildLayer
    interleaved: bool  # rope pairs (2i, 2i + 1) or halves
    rotary_factor: float | None  # when the file has no partial_rotary_factor; None: always the whole head
    attention_bias: bool  # when the file has no attention_bias
    default_eos: tuple[int, ...] = ()
    llama: bool = False  # may omit head_dim and num_key_value_heads; attention_bias includes o_proj; may have mlp_bias
    moe: bool = False
