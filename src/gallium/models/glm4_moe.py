"""glm4_moe: GLM-4.5, 4.5-Air, 4.6 and 4.7. Half-split rope, q/k norms, routed experts after dense layers."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace

from gallium.models import glm
from gallium.models.decoder import Layer, MlpWeights, MoeWeights
from gallium.models.family import Family
from gallium.models.spec import ModelSpec
from gallium.models.weights import Rows, Source, Survey


def sparse_mlp(source: Source, spec: ModelSpec, index: int) -> MoeWeights:
    """Router, routed experts and the shared expert of one layer."""
    assert spec.moe is not None  # read_spec sets it for this family
    at, shared = glm.prefix_of(index) + "mlp.", glm.prefix_of(index) + "mlp.shared_experts."
    count, hidden = spec.moe.num_experts, spec.hidden
    has_shared, width = spec.shared_ffn > 0, spec.shared_ffn
    gate_up, down = source.gate_up(shared, width, fused=False), [Rows(shared + "down_proj", hidden)]
    return MoeWeights(
        router=source.linear([Rows(at + "gate", count)], hidden, role="router"),
        router_bias=source.vector(at + "gate.e_score_correction_bias", count),
        experts=source.experts(at + "experts.", count, hidden, spec.moe_ffn),
        shared_gate_up=source.linear(gate_up, hidden, cut="rows") if has_shared else None,
        shared_down=source.linear(down, width, cut="columns") if has_shared else None,
    )


def layer(source: Source, spec: ModelSpec, index: int) -> Layer:
    """One layer, dense below `first_dense`."""
    at = glm.prefix_of(index)
    mlp: MlpWeights | MoeWeights
    if index < spec.first_dense:
        mlp = glm.dense_mlp(source, spec, index, fused=False)
    else:
        mlp = sparse_mlp(source, spec, index)
    return Layer(
        norm_in=source.vector(at + "input_layernorm.weight", spec.hidden),
        attention=glm.attention(source, spec, index),
        norm_post=source.vector(at + "post_attention_layernorm.weight", spec.hidden),
        mlp=mlp,
    )


def mtp_tensors(spec: ModelSpec, names: Collection[str]) -> Iterator[str]:
    """Every tensor that layers for multi-token prediction may have; they stand after the decoder's layers.

    Besides a whole decoder layer: the norms and the projection that join embedding and hidden state, and, in
    files of the 4.5 era, copies of the embedding and the head.
    """
    for index in range(spec.num_layers, spec.num_layers + spec.mtp_layers):
        survey = Survey(names)
        layer(survey, replace(spec, first_dense=0), index)
        yield from survey.expected
        for extra in ("eh_proj", "enorm", "hnorm", "embed_tokens", "shared_head.norm", "shared_head.head"):
            yield f"{glm.prefix_of(index)}{extra}.weight"


FAMILY = Family(
    model_type="glm4_moe",
    arch="glm4_moe",
    build_layer=layer,
    interleaved=False,
    rotary_factor=0.5,
    attention_bias=False,
    moe=True,
)
