"""glm4: GLM-4-0414 and GLM-Z1. As glm, with norms on the outputs of attention and MLP (sandwich norms)."""

from __future__ import annotations

from dataclasses import replace

from gallium.models import glm
from gallium.models.decoder import Layer
from gallium.models.spec import ModelSpec
from gallium.models.weights import Source


def layer(source: Source, spec: ModelSpec, index: int) -> Layer:
    """One layer: a glm layer and its two further norms."""
    at = glm.prefix_of(index)
    return replace(
        glm.layer(source, spec, index),
        norm_attention_out=source.vector(at + "post_self_attn_layernorm.weight", spec.hidden),
        norm_mlp_out=source.vector(at + "post_mlp_layernorm.weight", spec.hidden),
    )


FAMILY = glm.FAMILY._replace(model_type="glm4", arch="glm4", build_layer=layer)
