"""glm: GLM-4-9B and GLM-Edge. Two pre-norms, grouped-query attention, interleaved rope, a dense MLP."""

from __future__ import annotations

from gallium.models.decoder import GqaWeights, Layer, MlpWeights
from gallium.models.family import Family
from gallium.models.spec import ModelSpec
from gallium.models.weights import Rows, Source


def prefix_of(index: int) -> str:
    """Where a layer's tensors are."""
    return f"model.layers.{index}."


def attention(source: Source, spec: ModelSpec, index: int) -> GqaWeights:
    """q, k, v, o and the optional per-head norms, which every GLM names alike."""
    a, at = spec.attention, prefix_of(index) + "self_attn."
    qkv = [
        Rows(at + "q_proj", a.num_heads * a.head_dim, units=a.num_heads),
        Rows(at + "k_proj", a.num_kv_heads * a.head_dim, units=a.num_kv_heads),
        Rows(at + "v_proj", a.num_kv_heads * a.v_head_dim, units=a.num_kv_heads),
    ]
    out, width = [Rows(at + "o_proj", spec.hidden)], a.num_heads * a.v_head_dim
    return GqaWeights(
        qkv=source.linear(qkv, spec.hidden, bias=spec.qkv_bias, cut="rows"),
        out=source.linear(out, width, bias=spec.out_bias, cut="columns"),
        q_gain=source.vector(at + "q_norm.weight", a.head_dim) if spec.qk_norm else None,
        k_gain=source.vector(at + "k_norm.weight", a.head_dim) if spec.qk_norm else None,
        kv_grid=source.kv_grid(at, a.num_kv_heads, a.head_dim, a.v_head_dim),
    )


def dense_mlp(source: Source, spec: ModelSpec, index: int, *, fused: bool = True) -> MlpWeights:
    """A dense MLP; `fused` is how the family writes gate and up, either form is read."""
    at = prefix_of(index) + "mlp."
    gate_up, down = source.gate_up(at, spec.ffn, fused=fused), [Rows(at + "down_proj", spec.hidden)]
    return MlpWeights(
        gate_up=source.linear(gate_up, spec.hidden, bias=spec.mlp_bias, cut="rows"),
        down=source.linear(down, spec.ffn, bias=spec.mlp_bias, cut="columns"),
    )


def layer(source: Source, spec: ModelSpec, index: int) -> Layer:
    """One layer."""
    at = prefix_of(index)
    return Layer(
        norm_in=source.vector(at + "input_layernorm.weight", spec.hidden),
        attention=attention(source, spec, index),
        norm_post=source.vector(at + "post_attention_layernorm.weight", spec.hidden),
        mlp=dense_mlp(source, spec, index),
    )


FAMILY = Family(
    model_type="glm",
    arch="glm",
    build_layer=layer,
    interleaved=True,
    rotary_factor=0.5,
    attention_bias=True,
    default_eos=(151329, 151336, 151338),
)
