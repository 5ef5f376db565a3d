"""Configs of released models in both dialects, and what transformers reads where a file says nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.models.real_configs import (
    EDGE_1_5B,
    ENDS,
    GLM_4_5,
    GLM_4_5_AIR,
    GLM_4_6,
    GLM_4_9B,
    GLM_4_9B_0414,
    LLAMA,
    REAL,
    Z1_32B_0414,
    Config,
    changed,
    modern,
    without,
)

from gallium.models.config import read_spec
from gallium.models.spec import ModelSpec
from gallium.ops.handles import MoeSpec, RopeSpec

ALL = REAL | {"llama": LLAMA}
MAY_BE_ABSENT = (
    "attention_bias", "tie_word_embeddings", "partial_rotary_factor", "rope_theta", "rope_scaling", "eos_token_id",
    "hidden_act", "n_shared_experts", "routed_scaling_factor", "n_group", "topk_group", "norm_topk_prob",
    "use_qk_norm", "first_k_dense_replace",
)  # fmt: skip


@pytest.mark.parametrize("name", ALL)
def test_both_dialects_say_the_same(name: str) -> None:
    assert read_spec(modern(ALL[name])) == read_spec(ALL[name])


@pytest.mark.parametrize("name", ALL)
def test_transformers_reads_the_same(name: str) -> None:
    assert read_spec(as_transformers_writes(ALL[name])) == read_spec(ALL[name])


@pytest.mark.parametrize(
    ("name", "key"),
    [
        *((name, key) for name, config in ALL.items() for key in MAY_BE_ABSENT if key in config),
        ("llama", "num_key_value_heads"),
    ],
)
def test_what_a_file_omits_is_what_transformers_takes(name: str, key: str) -> None:
    sparse = without(ALL[name], key)
    assert read_spec(sparse) == read_spec(as_transformers_writes(sparse))


def as_transformers_writes(config: Config) -> Config:
    """The config read and written by transformers: every default filled in, 5.x dialect."""
    from transformers import AutoConfig

    written: Config = AutoConfig.for_model(**config).to_dict()
    return written


def kv_bytes(spec: ModelSpec) -> int:
    """Of one token in bfloat16, all layers."""
    a = spec.attention
    return spec.num_layers * a.num_kv_heads * (a.head_dim + a.v_head_dim) * 2


@pytest.mark.parametrize(
    ("name", "arch", "heads", "kv_heads", "rotated", "interleaved", "tied", "qkv_bias", "kv_bytes_per_token"),
    [
        ("glm-4-9b", "glm", 32, 2, 64, True, False, True, 40_960),
        ("glm-4-9b-1m", "glm", 32, 4, 64, True, False, True, 81_920),
        ("glm-edge-1.5b", "glm", 16, 4, 128, True, True, False, 57_344),
        ("glm-edge-4b", "glm", 24, 6, 128, True, False, False, 122_880),
        ("glm-4-9b-0414", "glm4", 32, 2, 64, True, False, True, 40_960),
        ("glm-z1-32b-0414", "glm4", 48, 2, 64, True, False, False, 62_464),
        ("glm-4-32b-8-kv-heads", "glm4", 48, 8, 64, True, False, False, 249_856),
        ("glm-4.5", "glm4_moe", 96, 8, 64, False, False, True, 376_832),
        ("glm-4.6", "glm4_moe", 96, 8, 64, False, False, True, 376_832),
        ("glm-4.5-air", "glm4_moe", 96, 8, 64, False, False, True, 188_416),
    ],
)
def test_released_models(
    name: str, arch: str, heads: int, kv_heads: int, rotated: int, interleaved: bool, tied: bool, qkv_bias: bool,
    kv_bytes_per_token: int,
) -> None:  # fmt: skip
    spec = read_spec(REAL[name])
    a = spec.attention
    assert (spec.arch, a.kind, a.num_heads, a.num_kv_heads, a.head_dim) == (arch, "gqa", heads, kv_heads, 128)
    assert a.rope == RopeSpec(rotated, float(REAL[name]["rope_theta"]), interleaved)
    assert a.scale == pytest.approx(128**-0.5)
    assert (spec.tied_head, spec.qkv_bias, spec.out_bias, spec.mlp_bias) == (tied, qkv_bias, False, False)
    assert (spec.vocab_size, spec.eps) == (REAL[name]["vocab_size"], REAL[name]["rms_norm_eps"])
    assert kv_bytes(spec) == kv_bytes_per_token


def test_head_dim_is_never_derived() -> None:
    assert GLM_4_5["hidden_size"] // GLM_4_5["num_attention_heads"] == 53
    assert read_spec(GLM_4_5).attention.head_dim == 128


def test_glm_4_5_and_air_differ_in_what_the_files_say() -> None:
    large, air = read_spec(GLM_4_5), read_spec(GLM_4_5_AIR)
    assert large.moe == MoeSpec(160, 8, "sigmoid", renormalize=True, routed_scale=2.5)
    assert air.moe == MoeSpec(128, 8, "sigmoid", renormalize=True, routed_scale=1.0)
    assert (large.first_dense, large.qk_norm, large.moe_ffn, large.shared_ffn, large.mtp_layers) == (
        3,
        True,
        1536,
        1536,
        1,
    )
    assert (air.first_dense, air.qk_norm, air.moe_ffn, air.shared_ffn, air.mtp_layers) == (1, False, 1408, 1408, 1)
    assert read_spec(GLM_4_6) == replace(large, max_positions=202752)


def test_the_shared_expert_is_as_wide_as_all_shared_experts() -> None:
    assert read_spec(changed(GLM_4_5, n_shared_experts=2)).shared_ffn == 2 * 1536
    assert read_spec(changed(GLM_4_5, n_shared_experts=0)).shared_ffn == 0


@pytest.mark.parametrize(
    ("config", "rotated"), [(GLM_4_9B, 64), (EDGE_1_5B, 128), (without(EDGE_1_5B, "partial_rotary_factor"), 64)]
)
def test_a_glm_without_a_rotary_factor_rotates_half(config: Config, rotated: int) -> None:
    assert read_spec(config).attention.rope.dim == rotated


@pytest.mark.parametrize(
    "places",
    [
        {"rope_theta": 5e6},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 5e6}},
        {"rope_parameters": {"rope_type": "default"}, "rope_theta": 5e6},
        {"rope_parameters": {"rope_theta": 5e6}, "rope_theta": 1e4},
        {"rope_scaling": {"type": "default", "rope_theta": 5e6}},
        {"rope_parameters": None, "rope_scaling": None, "rope_theta": 5_000_000},
    ],
)
def test_the_rope_base_is_the_file_s(places: Config) -> None:
    config = without(GLM_4_9B, "rope_theta") | places
    assert read_spec(config).attention.rope == RopeSpec(64, 5e6, True)
    assert as_transformers_writes(config)["rope_parameters"]["rope_theta"] == 5e6


def test_mtp_layers_have_two_names() -> None:
    old = without(GLM_4_5, "num_nextn_predict_layers")
    assert read_spec(old).mtp_layers == 0
    assert read_spec(changed(old, num_mtp_layers=2)).mtp_layers == 2


def test_experts_have_two_names() -> None:
    assert read_spec(changed(without(GLM_4_5, "n_routed_experts"), num_local_experts=160)) == read_spec(GLM_4_5)


@pytest.mark.parametrize(
    ("generation_config", "eos"),
    [
        ({}, ENDS),
        ({"temperature": 0.8}, ENDS),
        ({"eos_token_id": [151329, 151336]}, [151329, 151336]),
        ({"eos_token_id": 151338}, [151338]),
        ({"eos_token_id": None}, ENDS),
        ({"eos_token_id": [7, 7, 9]}, [7, 9]),
    ],
)
def test_end_tokens_are_those_of_the_generation_config(generation_config: Config, eos: list[int]) -> None:
    assert read_spec(GLM_4_5, generation_config).eos_ids == tuple(eos)


def test_end_and_pad_tokens_outside_a_small_vocabulary() -> None:
    """GlmConfig's defaults are 1513xx; a small model that does not set its own gets files with them."""
    small = changed(GLM_4_9B, vocab_size=49152, pad_token_id=151329)
    assert read_spec(small).eos_ids == ()
    assert read_spec(small, {"eos_token_id": [2, 151336]}).eos_ids == (2,)
    assert read_spec(without(small, "eos_token_id")).eos_ids == ()


def test_the_facts_that_a_backend_sees() -> None:
    spec = read_spec(GLM_4_5)
    facts = spec.facts
    assert (facts.name, facts.num_layers, facts.hidden, facts.vocab_size) == ("glm4_moe", 92, 5120, 151552)
    assert (facts.attention, facts.moe) == (spec.attention, spec.moe)


def test_a_llama_may_omit_what_it_defines() -> None:
    spec = read_spec(without(LLAMA, "num_key_value_heads"))
    assert (spec.arch, spec.attention.head_dim, spec.attention.num_kv_heads) == ("glm", 64, 9)
    assert spec.attention.rope == RopeSpec(64, 1e5, interleaved=False)
    assert read_spec(changed(LLAMA, head_dim=32)).attention.head_dim == 32
    biased = read_spec(changed(LLAMA, attention_bias=True, mlp_bias=True))
    assert (biased.qkv_bias, biased.out_bias, biased.mlp_bias) == (True, True, True)


@pytest.mark.parametrize("config", [GLM_4_9B_0414, Z1_32B_0414])
def test_a_glm_has_no_bias_but_on_q_k_v(config: Config) -> None:
    spec = read_spec(changed(config, attention_bias=True, mlp_bias=True))
    assert (spec.qkv_bias, spec.out_bias, spec.mlp_bias) == (True, False, False)


def test_first_dense_beyond_the_last_layer_is_a_dense_model() -> None:
    assert read_spec(changed(GLM_4_5, first_k_dense_replace=200)).first_dense == 92


def layer_types(*counts: tuple[str, int]) -> dict[str, Any]:
    return {"mlp_layer_types": [kind for kind, count in counts for _ in range(count)]}


@pytest.mark.parametrize(
    ("changes", "first"),
    [
        (layer_types(("dense", 3), ("sparse", 89)), 3),
        (layer_types(("sparse", 92)) | {"first_k_dense_replace": 0}, 0),
        (layer_types(("dense", 92)) | {"first_k_dense_replace": 92}, 92),
    ],
)
def test_mlp_layer_types(changes: Config, first: int) -> None:
    assert read_spec(GLM_4_5 | changes).first_dense == first
