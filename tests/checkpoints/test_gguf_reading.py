"""GGUF files of every architecture, written with the `gguf` package under its own name map, read as Hugging Face's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from tests.checkpoints.gguf_making import (
    ARCH,
    HEAD_DIM,
    HEADS,
    HIDDEN,
    KV,
    LAYERS,
    Array,
    hf_config,
    keys_of,
    random_tensors,
    to_gguf_names,
    write_gguf,
)

from gallium.checkpoints import Checkpoint, open_checkpoint, resolve_model
from gallium.errors import CheckpointError, UnsupportedFormat, UnsupportedModel
from gallium.models.catalog import expected_tensors, ignored_tensors
from gallium.models.config import read_spec

Q = gguf.GGMLQuantizationType
MTP = {"eh_proj": (HIDDEN, 2 * HIDDEN), "enorm": (HIDDEN,), "hnorm": (HIDDEN,), "shared_head.norm": (HIDDEN,)}


def model_tensors(config: dict[str, Any]) -> dict[str, Array]:
    """Random values for every tensor that the model of a config reads, and for its MTP layer."""
    shapes = dict(expected_tensors(read_spec(config), ()))
    layer = f"model.layers.{config['num_hidden_layers']}."
    for index in range(config.get("num_nextn_predict_layers", 0)):
        assert index == 0
        like = f"model.layers.{config['num_hidden_layers'] - 1}."
        shapes |= {layer + n.removeprefix(like): s for n, s in shapes.items() if n.startswith(like)}
        shapes |= {f"{layer}{name}.weight": shape for name, shape in MTP.items()}
    return random_tensors(shapes)


def separate_gate_up(tensors: dict[str, Array]) -> dict[str, Array]:
    """gate_up_proj as llama files have it: in two."""
    out = {}
    for name, array in tensors.items():
        if name.endswith("mlp.gate_up_proj.weight"):
            gate, up = np.split(array, 2)
            out |= {name.replace("gate_up", "gate"): gate, name.replace("gate_up", "up"): up}
        else:
            out[name] = array
    return out


def make(path: Path, arch: str, **changes: Any) -> tuple[Path, dict[str, Any], dict[str, Array]]:
    """A tiny file of one architecture, its config and its tensors, both in Hugging Face's terms."""
    config = hf_config(arch, **changes)
    tensors = model_tensors(config)
    if arch == "llama":
        tensors = separate_gate_up(tensors)
    layers = config["num_hidden_layers"] + config.get("num_nextn_predict_layers", 0)
    write_gguf(path, arch, keys_of(arch, config), to_gguf_names(arch, tensors, layers))
    return path, config, tensors


def assert_fits(checkpoint: Checkpoint) -> None:
    """The completeness check that loading makes."""
    spec = read_spec(checkpoint.config)
    checkpoint.check(expected_tensors(spec, checkpoint.names()), ignored_tensors(spec, checkpoint.names()))


@pytest.mark.parametrize("arch", ARCH)
def test_names_values_and_config(tmp_path: Path, arch: str) -> None:
    path, config, tensors = make(tmp_path / "m.gguf", arch)
    checkpoint = open_checkpoint(path)
    assert checkpoint.kind == "gguf" and checkpoint.path == path and checkpoint.generation_config == {}
    assert read_spec(checkpoint.config) == read_spec(config)
    assert sorted(checkpoint.names()) == sorted(tensors)
    for name, array in tensors.items():
        np.testing.assert_array_equal(checkpoint.weight(name).float32(), array, err_msg=name)
    assert_fits(checkpoint)


@pytest.mark.parametrize(
    "changes",
    [
        {"use_qk_norm": False, "attention_bias": False, "num_nextn_predict_layers": 0},
        {"first_k_dense_replace": 2, "n_shared_experts": 2, "norm_topk_prob": False, "num_hidden_layers": 3},
    ],
)
def test_variants_of_glm4moe(tmp_path: Path, changes: dict[str, Any]) -> None:
    path, config, _ = make(tmp_path / "m.gguf", "glm4moe", **changes)
    checkpoint = open_checkpoint(path)
    assert read_spec(checkpoint.config) == read_spec(config)
    assert_fits(checkpoint)


def test_a_head_that_is_not_there_is_tied(tmp_path: Path) -> None:
    path, _, _ = make(tmp_path / "m.gguf", "llama", tie_word_embeddings=True)
    checkpoint = open_checkpoint(path)
    assert checkpoint.config["tie_word_embeddings"] is True and "lm_head.weight" not in checkpoint.names()
    assert_fits(checkpoint)


@pytest.mark.parametrize("kind", [Q.F32, Q.Q8_0])
@pytest.mark.parametrize("bias", [True, False])
def test_fused_qkv_becomes_three_views(tmp_path: Path, kind: Q, bias: bool) -> None:
    config = hf_config("chatglm", attention_bias=bias)
    tensors = model_tensors(config)
    stored = to_gguf_names("chatglm", tensors, LAYERS)
    for layer in range(LAYERS):
        for end in ("weight", "bias") if bias else ("weight",):
            parts = [stored.pop(f"blk.{layer}.attn_{p}.{end}") for p in "qkv"]
            stored[f"blk.{layer}.attn_qkv.{end}"] = np.concatenate(parts)
    types = {n: kind for n in stored if n.endswith("attn_qkv.weight")}
    checkpoint = open_checkpoint(write_gguf(tmp_path / "m.gguf", "chatglm", keys_of("chatglm", config), stored, types))
    assert checkpoint.config["attention_bias"] is bias
    assert_fits(checkpoint)
    name = "model.layers.1.self_attn.k_proj.weight"
    weight = checkpoint.weight(name)
    assert weight.shape == (KV * HEAD_DIM, HIDDEN) and weight.storage == kind.name and not weight.raw().flags.owndata
    np.testing.assert_allclose(weight.float32(), tensors[name], atol=0 if kind == Q.F32 else 0.02)


def test_fused_experts_stay_packed(tmp_path: Path) -> None:
    config = hf_config("glm4moe", num_nextn_predict_layers=0)
    tensors = model_tensors(config)
    stored = to_gguf_names("glm4moe", tensors, LAYERS)
    gate, up = stored.pop("blk.1.ffn_gate_exps.weight"), stored.pop("blk.1.ffn_up_exps.weight")
    stored["blk.1.ffn_gate_up_exps.weight"] = np.concatenate([gate, up], axis=1)
    checkpoint = open_checkpoint(write_gguf(tmp_path / "m.gguf", "glm4moe", keys_of("glm4moe", config), stored))
    assert_fits(checkpoint)
    packed = checkpoint.weight("model.layers.1.mlp.experts.gate_up_proj", 2).float32()
    np.testing.assert_array_equal(packed[:32], tensors["model.layers.1.mlp.experts.2.gate_proj.weight"])
    np.testing.assert_array_equal(
        checkpoint.weight("model.layers.1.mlp.experts.down_proj", 3).float32(),
        tensors["model.layers.1.mlp.experts.3.down_proj.weight"],
    )


@pytest.mark.parametrize(
    ("kind", "precision"),
    [
        (Q.F32, "float32"),
        (Q.F16, "bfloat16"),
        (Q.BF16, "bfloat16"),
        (Q.Q8_0, "int8"),
        (Q.Q4_0, "int4"),
        (Q.Q4_1, "int4"),
    ],
)
def test_codings_of_projections(tmp_path: Path, kind: Q, precision: str) -> None:
    config = hf_config("glm4")
    tensors = to_gguf_names("glm4", model_tensors(config), LAYERS)
    types = {name: kind for name, array in tensors.items() if array.ndim == 2 and "embd" not in name}
    checkpoint = open_checkpoint(write_gguf(tmp_path / "m.gguf", "glm4", keys_of("glm4", config), tensors, types))
    assert checkpoint.stored_precision == precision
    weight = checkpoint.weight("model.layers.0.mlp.down_proj.weight")
    expected = gguf.dequantize(gguf.quantize(tensors["blk.0.ffn_down.weight"], kind), kind)
    np.testing.assert_array_equal(weight.float32(3, 9), expected[3:9])
    assert_fits(checkpoint)


def test_end_tokens_are_all_that_the_file_names(tmp_path: Path) -> None:
    path, _, _ = make(tmp_path / "m.gguf", "glm4")
    assert open_checkpoint(path).config["eos_token_id"] == [40, 41, 42]


@pytest.mark.parametrize("dim", range(2, 129, 2))
def test_the_rotated_width_survives_being_a_fraction(tmp_path: Path, dim: int) -> None:
    from gallium.checkpoints.gguf_model import Keys, _rope

    for head_dim in range(dim, 257, 7):
        rope = _rope(Keys({"glm4.rope.dimension_count": dim}, "glm4"), {}, head_dim)
        assert int(head_dim * rope["partial_rotary_factor"]) == dim


def test_the_default_model() -> None:
    path = resolve_model(None).path
    checkpoint = open_checkpoint(path)
    theirs = {t.name: t for t in gguf.GGUFReader(path).tensors}
    assert len(theirs) == len(checkpoint.names()) == 272
    assert checkpoint.config == {
        "model_type": "glm", "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536,
        "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64,
        "rms_norm_eps": 1e-5, "max_position_embeddings": 8192, "attention_bias": False, "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0, "partial_rotary_factor": 1.0},
        "bos_token_id": 1, "eos_token_id": [2], "pad_token_id": 2,
    }  # fmt: skip
    assert checkpoint.stored_precision == "int4"
    assert_fits(checkpoint)
    for ours, name in (("mlp.down_proj", "ffn_down"), ("self_attn.q_proj", "attn_q"), ("input_layernorm", "attn_norm")):
        tensor = theirs[f"blk.7.{name}.weight"]
        expected = gguf.dequantize(tensor.data, tensor.tensor_type)
        np.testing.assert_array_equal(checkpoint.weight(f"model.layers.7.{ours}.weight").float32(), expected)
    assert len(checkpoint.metadata["tokenizer.ggml.tokens"]) == 49152
    assert checkpoint.metadata["tokenizer.ggml.merges"][:2] == ["Ġ t", "Ġ a"]


# -- split files ------------------------------------------------------------------------


def split(folder: Path, arch: str = "glm4", count: int = 3) -> list[Path]:
    """A model in several files, as llama.cpp's gguf-split writes them."""
    config = hf_config(arch)
    tensors = to_gguf_names(arch, model_tensors(config), LAYERS)
    names, paths = list(tensors), []
    for i in range(count):
        part = {name: tensors[name] for name in names[i::count]}
        keys = keys_of(arch, config) if i == 0 else {}
        path = folder / f"m-{i + 1:05d}-of-{count:05d}.gguf"
        paths.append(write_gguf(path, arch, keys | {"split.no": i, "split.count": count}, part))
    return paths


def test_a_split_model_opens_by_any_of_its_parts_or_its_folder(tmp_path: Path) -> None:
    paths = split(tmp_path)
    for path in (*paths, tmp_path):
        assert_fits(open_checkpoint(path))


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    paths = split(tmp_path)
    paths[1].unlink()
    with pytest.raises(CheckpointError, match=r"lacks 1 of its 3 parts: m-00002-of-00003\.gguf"):
        open_checkpoint(paths[0])


def test_a_renamed_part_says_what_it_should_be_called(tmp_path: Path) -> None:
    paths = split(tmp_path)
    with pytest.raises(CheckpointError, match="must keep their names"):
        open_checkpoint(paths[0].rename(tmp_path / "model.gguf"))


def test_a_tensor_in_two_parts(tmp_path: Path) -> None:
    paths = split(tmp_path)
    paths[2].write_bytes(paths[1].read_bytes())
    with pytest.raises(CheckpointError, match="more than one of the split files"):
        open_checkpoint(paths[0])


def test_a_folder_with_several_models_asks_which(tmp_path: Path) -> None:
    split(tmp_path)
    make(tmp_path / "other.gguf", "llama")
    (tmp_path / "mmproj-model-f16.gguf").write_bytes(b"GGUF")
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(tmp_path)
    text = str(caught.value)
    assert "holds 2 GGUF models" in text and "m-00001-of-00003.gguf" in text and "other.gguf" in text


# -- what is refused ------------------------------------------------------------------------


def refuse(tmp_path: Path, arch: str, keys: dict[str, Any], **tensors: Array) -> None:
    config = hf_config(arch)
    all_keys = {k: v for k, v in (keys_of(arch, config) | keys).items() if v is not None}
    stored = to_gguf_names(
        arch, separate_gate_up(model_tensors(config)) if arch == "llama" else model_tensors(config), 9
    )
    open_checkpoint(write_gguf(tmp_path / "m.gguf", arch, all_keys, stored | tensors))


@pytest.mark.parametrize(
    ("arch", "keys", "message"),
    [
        ("llama", {"llama.expert_count": 8}, "mixture of experts"),
        ("glm4", {"glm4.rope.scaling.type": "yarn", "glm4.rope.scaling.factor": 4.0}, "type yarn, factor 4"),
        ("llama", {"llama.rope.scaling.factor": 2.0}, "scales its rope .type linear, factor 2"),
        ("llama", {"llama.rope.scale_linear": 2.0}, "scales its rope"),
        ("glm4", {"glm4.rope.dimension_sections": [8, 12, 12, 0]}, "sees images"),
        ("glm4moe", {"glm4moe.expert_gating_func": 1}, "expert_gating_func"),
        ("llama", {"llama.attention.value_length": 16}, "value_length"),
    ],
)
def test_models_of_another_function(tmp_path: Path, arch: str, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModel, match=message):
        refuse(tmp_path, arch, keys)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"llama.embedding_length": None}, "its llama.embedding_length is missing"),
        ({"llama.block_count": 0}, "block_count is '0'; it must be a whole number of at least 1"),
        ({"llama.attention.head_count": 2.5}, "head_count is '2.5'"),
        ({"llama.attention.layer_norm_rms_epsilon": "x"}, "epsilon is 'x'; it must be a positive number"),
        ({"llama.rope.freq_base": float("nan")}, "freq_base is 'nan'"),
        ({"llama.rope.dimension_count": 31}, "rotates 31 of the 32 values"),
        ({"llama.rope.dimension_count": 34}, "rotates 34 of the 32 values"),
        ({"llama.attention.head_count_kv": [2, 4]}, r"head_count_kv is '\[2, 4\]'"),
        ({"llama.context_length": 2**32 - 1}, "at least 1 and at most 2147483648"),
        ({"llama.nextn_predict_layers": 2}, "block_count is '2'; it must be a whole number of at least 3"),
    ],
)
def test_impossible_values_are_named(tmp_path: Path, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        refuse(tmp_path, "llama", keys)


def test_more_experts_than_any_model_has(tmp_path: Path) -> None:
    """Each would become tensors of its own, many times the size of a file that claims a million."""
    stack = {"blk.1.ffn_up_exps.weight": np.zeros((1 << 16, 1, 1), np.float32)}
    with pytest.raises(CheckpointError, match=r"expert_count is '65536'; it must be .* at most 1024"):
        refuse(tmp_path, "glm4moe", {"glm4moe.expert_count": 1 << 16}, **stack)


def test_values_per_layer_that_agree_are_one_value(tmp_path: Path) -> None:
    refuse(tmp_path, "llama", {"llama.attention.head_count_kv": [KV, KV], "llama.attention.head_count": [HEADS]})


def test_a_table_of_rope_factors(tmp_path: Path) -> None:
    refuse(tmp_path, "llama", {}, **{"rope_freqs.weight": np.ones(16, np.float32)})
    with pytest.raises(UnsupportedModel, match=r"the table rope_freqs\.weight"):
        refuse(tmp_path, "llama", {}, **{"rope_freqs.weight": np.full(16, 8, np.float32)})


def test_an_unknown_tensor_is_reported_by_the_check_under_its_own_name(tmp_path: Path) -> None:
    path, config, tensors = make(tmp_path / "m.gguf", "glm4")
    stored = to_gguf_names("glm4", tensors, LAYERS) | {"blk.0.mystery.weight": np.zeros((2, 2), np.float32)}
    write_gguf(path, "glm4", keys_of("glm4", config), stored)
    with pytest.raises(CheckpointError, match=r"not used by this model: blk\.0\.mystery\.weight"):
        assert_fits(open_checkpoint(path))


def test_an_unknown_architecture(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", "qwen2", {}, {})
    with pytest.raises(UnsupportedModel, match="'qwen2' is not supported; supported: llama, chatglm, glm4, glm4moe"):
        open_checkpoint(tmp_path / "m.gguf")


@pytest.mark.parametrize("kind", [Q.Q5_0, Q.Q2_K, Q.IQ4_XS, Q.TQ1_0])
def test_an_unsupported_coding_names_tensor_and_type(tmp_path: Path, kind: Q) -> None:
    block, size = gguf.GGML_QUANT_SIZES[kind]
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_tensor("blk.0.attn_q.weight", np.zeros((2, size), np.uint8), raw_shape=(2, size), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert block > 1
    with pytest.raises(UnsupportedFormat, match=rf"'blk\.0\.attn_q\.weight' is stored as {kind.name}.*Q4_K_M"):
        open_checkpoint(tmp_path / "m.gguf")
