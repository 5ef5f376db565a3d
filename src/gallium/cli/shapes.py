"""Configs of known models, for benchmarks with random weights. Numbers as their config.json has them."""

from __future__ import annotations

from typing import Any

from gallium.errors import UsageError

_GLM4_9B: dict[str, Any] = {
    "hidden_size": 4096, "intermediate_size": 13696, "num_hidden_layers": 40, "num_attention_heads": 32,
    "num_key_value_heads": 2, "head_dim": 128, "vocab_size": 151552, "max_position_embeddings": 131072,
    "rms_norm_eps": 1.5625e-7, "rope_theta": 10000.0, "partial_rotary_factor": 0.5, "attention_bias": True,
    "tie_word_embeddings": False,
}  # fmt: skip
_GLM45: dict[str, Any] = {
    "model_type": "glm4_moe", "vocab_size": 151552, "num_attention_heads": 96, "num_key_value_heads": 8,
    "head_dim": 128, "rms_norm_eps": 1e-5, "rope_theta": 1e6, "partial_rotary_factor": 0.5, "attention_bias": True,
    "max_position_embeddings": 131072, "num_experts_per_tok": 8, "n_shared_experts": 1, "n_group": 1,
    "topk_group": 1, "norm_topk_prob": True, "tie_word_embeddings": False,
}  # fmt: skip

SHAPES: dict[str, dict[str, Any]] = {
    "smollm2-135m": {
        "model_type": "glm", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64, "vocab_size": 49152,
        "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 100000.0,
        "partial_rotary_factor": 1.0, "attention_bias": False, "tie_word_embeddings": True,
    },
    "glm-edge-1.5b": {
        "model_type": "glm", "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28,
        "num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 128, "vocab_size": 59264,
        "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "partial_rotary_factor": 1.0, "attention_bias": False, "tie_word_embeddings": True,
    },
    "glm-edge-4b": {
        "model_type": "glm", "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 40,
        "num_attention_heads": 24, "num_key_value_heads": 6, "head_dim": 128, "vocab_size": 59264,
        "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "partial_rotary_factor": 1.0, "attention_bias": False, "tie_word_embeddings": False,
    },
    "glm-4-9b": {"model_type": "glm", **_GLM4_9B},
    "glm-4-9b-0414": {
        "model_type": "glm4", **_GLM4_9B, "rms_norm_eps": 1e-5, "max_position_embeddings": 32768,
    },
    "glm-4-32b-0414": {
        "model_type": "glm4", **_GLM4_9B, "hidden_size": 6144, "intermediate_size": 23040, "num_hidden_layers": 61,
        "num_attention_heads": 48, "rms_norm_eps": 1e-5, "max_position_embeddings": 32768, "attention_bias": False,
    },
    "glm-4.5-small": {  # no model of Z.ai's: a mixture of experts that a PC holds
        **_GLM45, "hidden_size": 2048, "intermediate_size": 6144, "moe_intermediate_size": 768,
        "num_hidden_layers": 24, "first_k_dense_replace": 1, "n_routed_experts": 64, "routed_scaling_factor": 1.0,
        "num_attention_heads": 16, "num_key_value_heads": 4, "use_qk_norm": False,
    },
    "glm-4.5-air": {
        **_GLM45, "hidden_size": 4096, "intermediate_size": 10944, "moe_intermediate_size": 1408,
        "num_hidden_layers": 46, "first_k_dense_replace": 1, "n_routed_experts": 128, "routed_scaling_factor": 1.0,
        "use_qk_norm": False,
    },
    "glm-4.5": {
        **_GLM45, "hidden_size": 5120, "intermediate_size": 12288, "moe_intermediate_size": 1536,
        "num_hidden_layers": 92, "first_k_dense_replace": 3, "n_routed_experts": 160, "routed_scaling_factor": 2.5,
        "use_qk_norm": True,
    },
}  # fmt: skip


def shape_config(name: str) -> dict[str, Any]:
    """The config of one shape. Raises UsageError, naming those there are."""
    if name not in SHAPES:
        raise UsageError(f"unknown shape {name!r}; choose from {', '.join(SHAPES)}.")
    return {"hidden_act": "silu", **SHAPES[name]}
