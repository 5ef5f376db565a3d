"""Writes tiny GGUF files with the `gguf` package, with the names, keys and layouts of llama.cpp's converter."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
HIDDEN, FFN, LAYERS, HEADS, KV, HEAD_DIM, VOCAB = 64, 96, 2, 4, 2, 32, 48
EOS = {"llama": [2], "chatglm": [40, 41, 42], "glm4": [40, 41, 42], "glm4moe": [40, 41, 42]}
ARCH = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "chatglm": gguf.MODEL_ARCH.CHATGLM,
    "glm4": gguf.MODEL_ARCH.GLM4,
    "glm4moe": gguf.MODEL_ARCH.GLM4_MOE,
}
MODEL_TYPE = {"llama": "glm", "chatglm": "glm", "glm4": "glm4", "glm4moe": "glm4_moe"}
GLM_TOKENS = {40: "<|endoftext|>", 41: "<|user|>", 42: "<|observation|>"}


def hf_config(arch: str, **changes: Any) -> dict[str, Any]:
    """The config.json of a tiny model of one architecture."""
    config: dict[str, Any] = {
        "model_type": MODEL_TYPE[arch], "vocab_size": VOCAB, "hidden_size": HIDDEN, "intermediate_size": FFN,
        "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": KV, "head_dim": HEAD_DIM,
        "rms_norm_eps": 1e-5, "max_position_embeddings": 512, "attention_bias": arch in ("chatglm", "glm4moe"),
        "tie_word_embeddings": False, "eos_token_id": EOS[arch],
        "rope_parameters": {
            "rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0 if arch == "llama" else 0.5,
        },
    }  # fmt: skip
    if arch == "glm4moe":
        config |= {
            "moe_intermediate_size": 32, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1,
            "routed_scaling_factor": 2.5, "norm_topk_prob": True, "n_group": 1, "topk_group": 1,
            "first_k_dense_replace": 1, "use_qk_norm": True, "num_nextn_predict_layers": 1,
        }  # fmt: skip
    return config | changes


def random_tensors(shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> dict[str, Array]:
    """Values for every name, a function of name order and seed."""
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def to_gguf_names(arch: str, tensors: Mapping[str, Array], layers: int) -> dict[str, Array]:
    """Hugging Face's names to GGUF's by the `gguf` package's own map; experts stacked as the converter does."""
    names = gguf.get_tensor_name_map(ARCH[arch], layers)
    out: dict[str, Array] = {}
    stacks: dict[str, list[Array]] = {}
    for name, array in tensors.items():
        expert = re.fullmatch(r"(model\.layers\.\d+\.mlp\.experts)\.\d+\.(\w+)\.weight", name)
        if expert:
            stacks.setdefault(f"{expert[1]}.{expert[2]}.weight", []).append(array)
            continue
        name = name.replace("e_score_correction_bias", "e_score_correction.bias")
        out[_named(names, name)] = array
    return out | {_named(names, name): np.stack(arrays) for name, arrays in stacks.items()}


def _named(names: gguf.TensorNameMap, name: str) -> str:
    found = names.get_name(name, try_suffixes=(".weight", ".bias"))
    assert found is not None, name
    return found


def keys_of(arch: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata that llama.cpp's converter writes for a config."""
    rope = config["rope_parameters"]
    keys: dict[str, Any] = {
        "block_count": config["num_hidden_layers"] + config.get("num_nextn_predict_layers", 0),
        "context_length": config["max_position_embeddings"], "embedding_length": config["hidden_size"],
        "feed_forward_length": config["intermediate_size"], "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": config["num_key_value_heads"], "attention.key_length": config["head_dim"],
        "attention.value_length": config["head_dim"], "attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        "rope.freq_base": rope["rope_theta"],
        "rope.dimension_count": int(config["head_dim"] * rope.get("partial_rotary_factor", 1.0)),
    }  # fmt: skip
    if arch == "glm4moe":
        keys |= {
            "expert_feed_forward_length": config["moe_intermediate_size"], "expert_count": config["n_routed_experts"],
            "expert_used_count": config["num_experts_per_tok"], "expert_shared_count": config["n_shared_experts"],
            "expert_weights_scale": config["routed_scaling_factor"], "expert_weights_norm": config["norm_topk_prob"],
            "expert_gating_func": 2, "leading_dense_block_count": config["first_k_dense_replace"],
            "expert_group_count": config["n_group"], "expert_group_used_count": config["topk_group"],
            "nextn_predict_layers": config.get("num_nextn_predict_layers", 0),
        }  # fmt: skip
    return {f"{arch}.{key}": value for key, value in keys.items()}


def write_gguf(
    path: Path,
    arch: str,
    keys: Mapping[str, Any],
    tensors: Mapping[str, NDArray[Any]],
    types: Mapping[str, gguf.GGMLQuantizationType] | None = None,
    tokenizer: Mapping[str, Any] | None = None,
) -> Path:
    """A GGUF file of float32 tensors, or of what `types` says for a name; an array of bytes holds blocks already.

    Without a `tokenizer` (its metadata) there is a list of tokens with GLM's turn tokens.
    """
    writer = gguf.GGUFWriter(path, arch)
    for key, value in {**keys, **(tokens_of(arch) if tokenizer is None else tokenizer)}.items():
        add_value(writer, key, value)
    for name, array in tensors.items():
        kind = (types or {}).get(name)
        if kind is None:
            writer.add_tensor(name, array)
        else:
            blocks = array if array.dtype == np.uint8 else gguf.quantize(array, kind)
            writer.add_tensor(name, blocks, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def tokens_of(arch: str) -> dict[str, Any]:
    """The keys of a vocabulary of VOCAB tokens."""
    tokens = [GLM_TOKENS.get(i, f"t{i}") if arch != "llama" else f"t{i}" for i in range(VOCAB)]
    return {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.eos_token_id": EOS.get(arch, [2])[0]}


def add_value(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    """One metadata entry, of the type that converters use for such a value."""
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, list):
        writer.add_array(key, value)
    else:
        writer.add_uint32(key, value)
