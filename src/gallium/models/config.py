"""Read a ModelSpec from a config, in either dialect, and refuse by name what would be computed wrongly.

Dialects: transformers 4.x has `rope_theta`, `partial_rotary_factor` and `rope_scaling` at top level; 5.x has
`rope_parameters`, `mlp_layer_types` and `num_mtp_layers`. Defaults are those of transformers' config classes.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from gallium.errors import UnsupportedModel
from gallium.models.catalog import family_of
from gallium.models.family import Family
from gallium.models.spec import ModelSpec
from gallium.ops.handles import AttentionSpec, MoeSpec, RopeSpec

DEFAULT_ROPE_BASE = 10_000.0
ACTIVATIONS = ("silu", "swish")  # two names of one function
MAX_LAYERS = MAX_EXPERTS = 1024  # several times those of any model; a hostile file must not make the survey endless


class Fields:
    """Typed look-ups in a config; every error names the key and the value."""

    def __init__(self, values: Mapping[str, Any], model_type: str) -> None:
        self.values = values
        self.model_type = model_type

    def get(self, key: str) -> Any:
        """The value, None if absent or null."""
        return self.values.get(key)

    def count(self, key: str, default: int | None = None, *, least: int = 1, most: int = 2**31 - 1) -> int:
        """A whole number from `least` to `most`; an absent key without a default is an error."""
        value = self.get(key)
        if value is None:
            if default is None:
                raise self.missing(key)
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise self.wrong(key, f"a whole number from {least} to {most}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A positive finite number."""
        value = self.get(key)
        if value is None:
            if default is None:
                raise self.missing(key)
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= sys.float_info.max:
            raise self.wrong(key, "a positive number")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false")
        return value

    def missing(self, key: str) -> UnsupportedModel:
        """The error for an absent key."""
        return UnsupportedModel(f"the config of this {self.model_type} model has no {key!r}, which is needed.")

    def wrong(self, key: str, wanted: str) -> UnsupportedModel:
        """The error for a value of the wrong kind."""
        return UnsupportedModel(
            f"the config of this {self.model_type} model has {key} = {self.get(key)!r}; it must be {wanted}."
        )

    def refuse(self, key: str, why: str) -> UnsupportedModel:
        """The error for a value that is valid but not supported."""
        return UnsupportedModel(f"{key} = {self.get(key)!r} in this {self.model_type} model's config: {why}.")


def read_spec(config: Mapping[str, Any], generation_config: Mapping[str, Any] | None = None) -> ModelSpec:
    """Every fact of one model. Raises UnsupportedModel naming the key that is missing or not supported."""
    family = family_of(config.get("model_type"))
    fields = Fields(config, family.model_type)
    check_supported(fields)
    num_layers = fields.count("num_hidden_layers", most=MAX_LAYERS)
    bias = fields.flag("attention_bias", family.attention_bias)
    moe, first_dense = (read_moe(fields), read_first_dense(fields, num_layers)) if family.moe else (None, 0)
    moe_ffn = fields.count("moe_intermediate_size") if family.moe else 0
    vocab_size = fields.count("vocab_size")
    return ModelSpec(
        arch=family.arch,
        vocab_size=vocab_size,
        hidden=fields.count("hidden_size"),
        num_layers=num_layers,
        ffn=fields.count("intermediate_size"),
        eps=fields.number("rms_norm_eps"),
        attention=read_attention(fields, family),
        max_positions=fields.count("max_position_embeddings"),
        tied_head=fields.flag("tie_word_embeddings", False),
        eos_ids=read_eos(fields, generation_config or {}, family, vocab_size),
        qkv_bias=bias,
        out_bias=bias and family.llama,
        mlp_bias=fields.flag("mlp_bias", False) if family.llama else False,
        qk_norm=fields.flag("use_qk_norm", False) if family.moe else False,
        moe=moe,
        first_dense=first_dense,
        moe_ffn=moe_ffn,
        shared_ffn=moe_ffn * fields.count("n_shared_experts", 1, least=0) if family.moe else 0,
        mtp_layers=read_mtp(fields) if family.moe else 0,
    )


def check_supported(fields: Fields) -> None:
    """Refuse what would change the function that the model computes."""
    if fields.get("hidden_act") not in (None, *ACTIVATIONS):
        raise fields.refuse("hidden_act", "only silu is supported")
    for key in ("quantization_config", "compression_config"):
        how = fields.get(key)
        if how:
            method = how.get("quant_method", how.get("quant_algo")) if isinstance(how, Mapping) else how
            raise UnsupportedModel(
                f"this checkpoint is quantised ({key}: {method}), which is not supported: use the bfloat16 "
                "checkpoint with --precision int8 or int4, or a GGUF file."
            )


def read_attention(fields: Fields, family: Family) -> AttentionSpec:
    """Heads, widths, rope. Only Llama may omit head_dim and num_key_value_heads: it defines defaults."""
    heads = fields.count("num_attention_heads")
    if family.llama:
        kv_heads = fields.count("num_key_value_heads", heads)
        hidden = fields.count("hidden_size")
        if fields.get("head_dim") is None and hidden % heads:
            raise fields.refuse("num_attention_heads", f"without head_dim it must divide hidden_size = {hidden}")
        head_dim = fields.count("head_dim", hidden // heads)
    else:
        kv_heads, head_dim = fields.count("num_key_value_heads"), fields.count("head_dim")
    if heads % kv_heads:
        raise fields.refuse("num_key_value_heads", f"it must divide num_attention_heads = {heads}")
    return AttentionSpec(
        kind="gqa",
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        v_head_dim=head_dim,
        scale=head_dim**-0.5,
        rope=read_rope(fields, family, head_dim),
    )


def read_rope(fields: Fields, family: Family, head_dim: int) -> RopeSpec:
    """The rotary embedding: `rope_parameters`, then `rope_scaling`, then the top level, as transformers."""
    rope: dict[str, Any] = {}
    for key in ("rope_parameters", "rope_scaling"):
        block = fields.get(key)
        if block is not None and not isinstance(block, Mapping):
            raise fields.wrong(key, "an object")
        rope = {**(block or {}), **rope}
    kind = rope.get("rope_type", rope.get("type")) or "default"
    if kind != "default":
        raise UnsupportedModel(
            f"rope scaling of type {kind!r} in this {fields.model_type} model's config is not supported, and "
            "without it contexts would be computed wrongly. Use a checkpoint whose config has no rope scaling."
        )
    if any(isinstance(value, Mapping) for value in rope.values()):
        raise UnsupportedModel(
            f"this {fields.model_type} model's config has rope parameters per layer type: not supported."
        )
    inner = Fields({**fields.values, **{k: v for k, v in rope.items() if v is not None}}, fields.model_type)
    factor = inner.number("partial_rotary_factor", family.rotary_factor or 1.0)
    if factor > 1 or (family.rotary_factor is None and factor != 1):
        raise inner.refuse("partial_rotary_factor", "this model rotates the whole head or a part of it")
    dim = int(head_dim * factor)
    if dim < 2 or dim % 2:
        raise inner.refuse(
            "partial_rotary_factor", f"{dim} of head_dim {head_dim} would be rotated, which is no even number"
        )
    return RopeSpec(dim, inner.number("rope_theta", DEFAULT_ROPE_BASE), family.interleaved)


def read_moe(fields: Fields) -> MoeSpec:
    """The router of glm4_moe: sigmoid scores, groups, weights without the correction bias."""
    spec = MoeSpec(
        num_experts=fields.count(
            "n_routed_experts" if fields.get("n_routed_experts") else "num_local_experts", most=MAX_EXPERTS
        ),
        top_k=fields.count("num_experts_per_tok"),
        scoring="sigmoid",
        renormalize=fields.flag("norm_topk_prob", True),
        routed_scale=fields.number("routed_scaling_factor", 1.0),
        num_groups=fields.count("n_group", 1),
        top_groups=fields.count("topk_group", 1),
    )
    for key in ("scoring_func", "topk_method"):
        if fields.get(key) not in (None, "sigmoid", "noaux_tc"):
            raise fields.refuse(key, "only sigmoid scores with a correction bias (noaux_tc) are supported")
    if spec.num_experts % spec.num_groups:
        raise fields.refuse("n_group", f"it must divide the {spec.num_experts} experts")
    if spec.top_groups > spec.num_groups:
        raise fields.refuse("topk_group", f"there are only {spec.num_groups} groups")
    if spec.top_k > spec.num_experts // spec.num_groups * spec.top_groups:
        raise fields.refuse("num_experts_per_tok", "the chosen groups have fewer experts")
    return spec


def read_first_dense(fields: Fields, num_layers: int) -> int:
    """Layers before the first MoE layer: `mlp_layer_types` (5.x) or `first_k_dense_replace` (4.x)."""
    types = fields.get("mlp_layer_types")
    if types is None:
        return min(fields.count("first_k_dense_replace", 1, least=0), num_layers)
    if not isinstance(types, list) or len(types) != num_layers or not set(types) <= {"dense", "sparse"}:
        raise fields.wrong("mlp_layer_types", f'a list of {num_layers} entries "dense" or "sparse"')
    first = types.count("dense")
    if "dense" in types[first:]:
        raise fields.refuse("mlp_layer_types", "dense layers after a sparse one are not supported")
    if fields.count("first_k_dense_replace", first, least=0) != first:
        raise fields.refuse("first_k_dense_replace", f"mlp_layer_types has {first} dense layers")
    return first


def read_mtp(fields: Fields) -> int:
    """Layers for multi-token prediction that stand after the decoder's: known by name, not run."""
    old = fields.count("num_nextn_predict_layers", 0, least=0, most=MAX_LAYERS)
    return fields.count("num_mtp_layers", old, least=0, most=MAX_LAYERS)


def read_eos(fields: Fields, generation_config: Mapping[str, Any], family: Family, vocab_size: int) -> tuple[int, ...]:
    """End-of-sequence ids: generation_config before config before the family's own.

    Ids beyond the vocabulary drop out: no token can ever be one of them.
    """
    value = generation_config.get("eos_token_id")
    if value is None:
        value = fields.get("eos_token_id")
    if value is None:
        value = list(family.default_eos)
    ids = [value] if isinstance(value, int) else value
    if not isinstance(ids, list | tuple) or any(isinstance(i, bool) or not isinstance(i, int) for i in ids):
        raise UnsupportedModel(f"eos_token_id = {value!r} of this {fields.model_type} model must be ids of tokens.")
    return tuple(i for i in dict.fromkeys(ids) if 0 <= i < vocab_size)
