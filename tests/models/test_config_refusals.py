"""What a config may not say: each refusal is a sentence that names the key."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.models.real_configs import EDGE_1_5B, GLM_4_5, GLM_4_9B, GLM_4_9B_0414, LLAMA, Config, changed, without

from gallium.errors import GalliumError, UnsupportedModel
from gallium.models.catalog import FAMILIES, NOT_YET, family_of
from gallium.models.config import read_spec

NEEDED = (
    "vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size", "rms_norm_eps", "num_attention_heads",
    "num_key_value_heads", "head_dim", "max_position_embeddings",
)  # fmt: skip
NEEDED_BY_MOE = ("moe_intermediate_size", "num_experts_per_tok")


def refusal(config: Config, generation_config: Config | None = None) -> str:
    with pytest.raises(UnsupportedModel) as caught:
        read_spec(config, generation_config)
    return str(caught.value)


@pytest.mark.parametrize("key", NEEDED)
@pytest.mark.parametrize("config", [GLM_4_9B, GLM_4_9B_0414, GLM_4_5], ids=lambda c: c["model_type"])
def test_a_number_that_is_needed_is_never_guessed(config: Config, key: str) -> None:
    assert f"has no {key!r}, which is needed" in refusal(without(config, key))


@pytest.mark.parametrize("key", NEEDED_BY_MOE)
def test_a_number_that_experts_need_is_never_guessed(key: str) -> None:
    assert f"has no {key!r}, which is needed" in refusal(without(GLM_4_5, key))


def test_the_number_of_experts_is_never_guessed() -> None:
    assert "num_local_experts" in refusal(without(GLM_4_5, "n_routed_experts"))


@pytest.mark.parametrize("key", NEEDED)
@pytest.mark.parametrize("value", [0, -1, "64", True, [8], float("nan"), float("inf")])
def test_a_number_of_the_wrong_kind(key: str, value: object) -> None:
    text = refusal(changed(GLM_4_9B, **{key: value}))
    assert f"{key} = {value!r}" in text and "must be" in text


@pytest.mark.parametrize("key", ["num_hidden_layers", "n_routed_experts", "num_nextn_predict_layers", "vocab_size"])
def test_a_number_that_no_model_has(key: str) -> None:
    """The survey of names would not end, or not fit into memory."""
    assert f"{key} = {10**10}" in refusal(changed(GLM_4_5, **{key: 10**10}))


def test_a_llama_s_heads_must_divide_its_width_unless_it_says_head_dim() -> None:
    uneven = changed(LLAMA, num_attention_heads=1000, num_key_value_heads=1000)
    assert "num_attention_heads = 1000" in refusal(uneven)
    assert read_spec(changed(uneven, head_dim=64)).attention.head_dim == 64


@pytest.mark.parametrize(
    ("config", "key", "value"),
    [
        (GLM_4_9B, "num_hidden_layers", 40.0),
        (GLM_4_9B, "attention_bias", "yes"),
        (GLM_4_9B, "tie_word_embeddings", 1),
        (GLM_4_9B, "rope_theta", "10000"),
        (GLM_4_9B, "rope_theta", 0),
        (GLM_4_9B, "rope_parameters", [1]),
        (GLM_4_9B, "rope_scaling", "yarn"),
        (GLM_4_5, "use_qk_norm", "true"),
        (GLM_4_5, "norm_topk_prob", 1),
        (GLM_4_5, "routed_scaling_factor", -1.0),
        (GLM_4_5, "n_shared_experts", -1),
        (GLM_4_5, "num_nextn_predict_layers", -1),
        (GLM_4_5, "mlp_layer_types", ["dense"]),
        (GLM_4_5, "mlp_layer_types", ["attention"] * 92),
    ],
)
def test_a_value_of_the_wrong_kind(config: Config, key: str, value: object) -> None:
    text = refusal(changed(config, **{key: value}))
    assert f"{key} = " in text and "must be" in text


@pytest.mark.parametrize("value", [True, "<|endoftext|>", [1, "2"], 3.0, {"id": 1}])
def test_end_tokens_of_the_wrong_kind(value: object) -> None:
    assert "eos_token_id" in refusal(changed(GLM_4_9B, eos_token_id=value))
    assert "eos_token_id" in refusal(GLM_4_9B, {"eos_token_id": value})


YARN = {"factor": 4.0, "original_max_position_embeddings": 32768}


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"rope_scaling": {"rope_type": "yarn", **YARN}}, "yarn"),
        ({"rope_scaling": {"type": "yarn", **YARN}}, "yarn"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, **YARN}}, "yarn"),
        ({"rope_parameters": {"rope_theta": 1e4}, "rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "linear"),
    ],
)
def test_rope_scaling_is_refused(changes: Config, kind: str) -> None:
    """0414 and Z1 advise YaRN above 32K; computing on without it would be wrong in silence."""
    text = refusal(GLM_4_9B_0414 | changes)
    assert f"rope scaling of type {kind!r}" in text and "Use a checkpoint" in text


def test_rope_parameters_per_layer_type_are_refused() -> None:
    rope = {"full_attention": {"rope_theta": 1e4}, "sliding_attention": {"rope_theta": 1e4}}
    assert "per layer type" in refusal(changed(GLM_4_9B, rope_parameters=rope))


@pytest.mark.parametrize("factor", [2.0, 0.001, 0.03])
def test_a_rotary_factor_that_fits_no_head(factor: float) -> None:
    assert "partial_rotary_factor" in refusal(changed(EDGE_1_5B, partial_rotary_factor=factor))


def test_a_llama_rotates_whole_heads() -> None:
    assert "partial_rotary_factor" in refusal(changed(GLM_4_9B, model_type="llama", partial_rotary_factor=0.5))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}, "quantization_config: fp8"),
        ({"quantization_config": {"quant_algo": "NVFP4"}}, "quantization_config: NVFP4"),
        ({"compression_config": {"quant_method": "compressed-tensors"}}, "compression_config: compressed-tensors"),
    ],
)
def test_quantised_checkpoints_are_refused_with_a_way_out(changes: Config, said: str) -> None:
    text = refusal(GLM_4_5 | changes)
    assert said in text and "--precision int8" in text


@pytest.mark.parametrize(
    ("config", "changes", "named"),
    [
        (GLM_4_9B, {"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        (GLM_4_9B, {"num_key_value_heads": 5}, "num_key_value_heads = 5"),
        (GLM_4_5, {"scoring_func": "softmax"}, "scoring_func = 'softmax'"),
        (GLM_4_5, {"topk_method": "greedy"}, "topk_method = 'greedy'"),
        (GLM_4_5, {"n_group": 7}, "n_group = 7"),
        (GLM_4_5, {"n_group": 4, "topk_group": 5}, "topk_group = 5"),
        (GLM_4_5, {"n_group": 40, "topk_group": 1}, "num_experts_per_tok = 8"),
        (GLM_4_5, {"mlp_layer_types": ["sparse"] * 91 + ["dense"]}, "mlp_layer_types"),
        (GLM_4_5, {"mlp_layer_types": ["dense"] * 2 + ["sparse"] * 90}, "first_k_dense_replace = 3"),
    ],
)
def test_what_would_be_another_function(config: Config, changes: Config, named: str) -> None:
    assert named in refusal(config | changes)


@pytest.mark.parametrize("activation", ["silu", "swish", None])
def test_two_names_of_one_activation(activation: str | None) -> None:
    assert read_spec(changed(GLM_4_9B, hidden_act=activation)) == read_spec(GLM_4_9B)


@pytest.mark.parametrize("model_type", NOT_YET)
def test_a_known_model_that_is_not_supported_yet(model_type: str) -> None:
    text = refusal({"model_type": model_type})
    assert repr(model_type) in text and "known but not supported yet" in text and "glm4_moe" in text


@pytest.mark.parametrize("model_type", ["qwen3", "", 7, ["glm"], {"glm": 1}])
def test_an_unknown_model(model_type: Any) -> None:
    text = refusal({"model_type": model_type})
    assert repr(model_type) in text and "supported: " + ", ".join(FAMILIES) in text


def test_no_model_type_at_all() -> None:
    assert "has no model_type" in refusal({})


def test_every_glm_of_transformers_is_known_by_name() -> None:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    parts = ("_text", "_vision", "_encoder", "_vqmodel")
    ours = [n for n in CONFIG_MAPPING_NAMES if n.startswith("glm") and not n.endswith(parts)]
    unknown = [name for name in ours if name not in FAMILIES and name not in NOT_YET]
    assert not unknown and len(ours) > len(NOT_YET) // 2


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_family_is_found_by_its_own_name(model_type: str) -> None:
    assert family_of(model_type).model_type == model_type


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.sampled_from([EDGE_1_5B, GLM_4_5, LLAMA]), st.data())
def test_any_value_anywhere_is_read_or_refused(config: Config, data: st.DataObject) -> None:
    """A config is a stranger's file: nothing but a GalliumError may come of it."""
    key = data.draw(st.sampled_from([*config, "rope_parameters", "quantization_config", "mlp_layer_types"]))
    with suppress(GalliumError):
        read_spec(changed(config, **{key: data.draw(JUNK)}))
