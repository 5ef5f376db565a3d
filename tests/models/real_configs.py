"""Configs of released GLM checkpoints in the dialect of their files, and the other dialect of each."""

from __future__ import annotations

from typing import Any

Config = dict[str, Any]
ENDS = [151329, 151336, 151338]
GLM_4_9B: Config = {  # the file has no partial_rotary_factor
    "model_type": "glm", "architectures": ["GlmForCausalLM"], "attention_bias": True, "attention_dropout": 0.0,
    "eos_token_id": ENDS, "head_dim": 128, "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 13696,
    "max_position_embeddings": 131072, "num_attention_heads": 32, "num_hidden_layers": 40, "num_key_value_heads": 2,
    "pad_token_id": 151329, "rms_norm_eps": 1.5625e-07, "rope_theta": 10000.0, "tie_word_embeddings": False,
    "torch_dtype": "bfloat16", "vocab_size": 151552,
}  # fmt: skip
GLM_4_9B_1M: Config = GLM_4_9B | {"num_key_value_heads": 4, "max_position_embeddings": 1048576}
EDGE_1_5B: Config = {
    "model_type": "glm", "architectures": ["GlmForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "eos_token_id": [59246, 59253, 59255], "head_dim": 128, "hidden_act": "silu", "hidden_size": 2048,
    "intermediate_size": 6144, "max_position_embeddings": 8192, "num_attention_heads": 16, "num_hidden_layers": 28,
    "num_key_value_heads": 4, "pad_token_id": 59246, "partial_rotary_factor": 1.0, "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0, "tie_word_embeddings": True, "torch_dtype": "bfloat16", "vocab_size": 59264,
}  # fmt: skip
EDGE_4B: Config = EDGE_1_5B | {
    "hidden_size": 3072, "intermediate_size": 8192, "num_attention_heads": 24, "num_hidden_layers": 40,
    "num_key_value_heads": 6, "tie_word_embeddings": False,
}  # fmt: skip
GLM_4_9B_0414: Config = GLM_4_9B | {
    "model_type": "glm4", "architectures": ["Glm4ForCausalLM"], "max_position_embeddings": 32768,
    "partial_rotary_factor": 0.5, "rms_norm_eps": 1e-05,
}  # fmt: skip
Z1_32B_0414: Config = GLM_4_9B_0414 | {
    "attention_bias": False, "hidden_size": 6144, "intermediate_size": 23040, "num_attention_heads": 48,
    "num_hidden_layers": 61,
}  # fmt: skip
GLM_32B_8_KV_HEADS: Config = Z1_32B_0414 | {"num_key_value_heads": 8}
GLM_4_5: Config = {
    "model_type": "glm4_moe", "architectures": ["Glm4MoeForCausalLM"], "attention_bias": True,
    "attention_dropout": 0.0, "pad_token_id": 151329, "eos_token_id": ENDS, "head_dim": 128, "hidden_act": "silu",
    "hidden_size": 5120, "partial_rotary_factor": 0.5, "intermediate_size": 12288, "max_position_embeddings": 131072,
    "moe_intermediate_size": 1536, "norm_topk_prob": True, "num_attention_heads": 96, "n_group": 1, "topk_group": 1,
    "n_routed_experts": 160, "n_shared_experts": 1, "routed_scaling_factor": 2.5, "num_experts_per_tok": 8,
    "first_k_dense_replace": 3, "num_hidden_layers": 92, "num_key_value_heads": 8, "rms_norm_eps": 1e-05,
    "rope_scaling": None, "rope_theta": 1000000, "num_nextn_predict_layers": 1, "tie_word_embeddings": False,
    "torch_dtype": "bfloat16", "use_qk_norm": True, "vocab_size": 151552,
}  # fmt: skip
GLM_4_6: Config = GLM_4_5 | {"max_position_embeddings": 202752}
GLM_4_5_AIR: Config = GLM_4_5 | {
    "hidden_size": 4096, "intermediate_size": 10944, "moe_intermediate_size": 1408, "n_routed_experts": 128,
    "routed_scaling_factor": 1.0, "first_k_dense_replace": 1, "num_hidden_layers": 46, "use_qk_norm": False,
}  # fmt: skip

LLAMA: Config = {  # SmolLM2-135M; the file has no head_dim
    "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152, "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5, "rope_theta": 100000.0, "tie_word_embeddings": True, "eos_token_id": 2,
    "torch_dtype": "bfloat16",
}  # fmt: skip

REAL: dict[str, Config] = {
    "glm-4-9b": GLM_4_9B, "glm-4-9b-1m": GLM_4_9B_1M, "glm-edge-1.5b": EDGE_1_5B, "glm-edge-4b": EDGE_4B,
    "glm-4-9b-0414": GLM_4_9B_0414, "glm-z1-32b-0414": Z1_32B_0414, "glm-4-32b-8-kv-heads": GLM_32B_8_KV_HEADS,
    "glm-4.5": GLM_4_5, "glm-4.6": GLM_4_6, "glm-4.5-air": GLM_4_5_AIR,
}  # fmt: skip


def changed(config: Config, **changes: Any) -> Config:
    """A config with other values."""
    return config | changes


def without(config: Config, *keys: str) -> Config:
    """A config that omits some keys."""
    return {key: value for key, value in config.items() if key not in keys}


def modern(config: Config) -> Config:
    """The same facts as a 5.x file has them: rope_parameters, dtype, mlp_layer_types, num_mtp_layers."""
    moved = ("rope_theta", "partial_rotary_factor", "rope_scaling", "torch_dtype", "first_k_dense_replace",
             "num_nextn_predict_layers")  # fmt: skip
    rope = {key: config[key] for key in ("rope_theta", "partial_rotary_factor") if key in config}
    out = without(config, *moved) | {
        "dtype": config["torch_dtype"],
        "rope_parameters": {"rope_type": "default", **rope},
    }
    if "first_k_dense_replace" in config:
        dense = config["first_k_dense_replace"]
        out["mlp_layer_types"] = ["dense"] * dense + ["sparse"] * (config["num_hidden_layers"] - dense)
        out["num_mtp_layers"] = config["num_nextn_predict_layers"]
    return out
