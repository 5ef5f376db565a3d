"""A tiny glm4_moe checkpoint that answers to order: its head is a table of which token follows which.

The embedding is the identity, the layers are random and weak. After `<think>` comes the SCRIPT, token by token, however
it is sampled; after any other token comes a random letter, which depends a little on everything before it.
"""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tests.glm_tokenizer import small_vocab, tokenizer_json

from gallium.models.catalog import expected_tensors
from gallium.models.config import read_spec
from gallium.ops.handles import FloatArray
from gallium.text.builtin import FOLDER
from gallium.text.token_bytes import byte_alphabet

REASONING = "The user asks about the weather."
CONTENT = "Let me look. 🙂"
CITY = 'Köln "am" Rhein'
CALL = f"<tool_call>get_weather<arg_key>city</arg_key><arg_value>{CITY}</arg_value></tool_call>"
PIECES = ("The user asks", " about the weather.", "Let me", " look. ", "get_weather", "city", CITY)
SCRIPT: tuple[str | int, ...] = (  # texts of tokens, and the bytes of the smiley; none occurs twice
    "<think>", "The user asks", " about the weather.", "</think>", "Let me", " look. ", *"🙂".encode(),
    "<tool_call>", "get_weather", "<arg_key>", "city", "</arg_key>", "<arg_value>", CITY, "</arg_value>",
    "</tool_call>", "<|observation|>",
)  # fmt: skip
FIRST_SPECIAL = len(small_vocab()[0])
MAX_POSITIONS = 16384


def write_checkpoint(folder: Path) -> Path:
    """Write the folder: config, weights, tokenizer, GLM-4.7's template."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = tokenizer_json("glm45", first=FIRST_SPECIAL)
    added = tokenizer["added_tokens"]
    for text in PIECES:
        added.append(added[0] | {"id": FIRST_SPECIAL + len(added), "content": text, "special": False})
    ids = {entry["content"]: entry["id"] for entry in added}
    tokenizer["model"]["vocab"] |= ids
    size = FIRST_SPECIAL + len(added)
    config = config_of(size, [ids["<|endoftext|>"], ids["<|user|>"], ids["<|observation|>"]])
    save_file(weights(config, ids), folder / "model.safetensors", metadata={"format": "pt"})
    template = (FOLDER / "glm47.jinja").read_text(encoding="utf-8")
    files = {
        "config.json": config,
        "tokenizer.json": tokenizer,
        "tokenizer_config.json": {"eos_token": "<|endoftext|>", "chat_template": template},
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return folder


def config_of(vocab: int, eos_ids: list[int]) -> dict[str, Any]:
    """The model's config; its width is the vocabulary's, one dimension per token."""
    return {
        "model_type": "glm4_moe", "architectures": ["Glm4MoeForCausalLM"], "vocab_size": vocab, "hidden_size": vocab,
        "intermediate_size": 40, "moe_intermediate_size": 24, "num_hidden_layers": 2, "first_k_dense_replace": 1,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "n_routed_experts": 4,
        "num_experts_per_tok": 2, "n_shared_experts": 1, "routed_scaling_factor": 1.5, "n_group": 1, "topk_group": 1,
        "norm_topk_prob": True, "use_qk_norm": True, "attention_bias": True, "rms_norm_eps": 1e-5, "rope_theta": 1e4,
        "partial_rotary_factor": 0.5, "max_position_embeddings": MAX_POSITIONS, "tie_word_embeddings": False,
        "hidden_act": "silu", "eos_token_id": eos_ids,
    }  # fmt: skip


def weights(config: dict[str, Any], ids: dict[str, int]) -> dict[str, FloatArray]:
    """Every tensor of the model."""
    rng = np.random.default_rng(45)
    out = {}
    for name, shape in expected_tensors(read_spec(config), ()).items():
        spread = 0.002 if "o_proj" in name or "down_proj" in name else 0.05  # what reaches the residual is weak
        out[name] = rng.normal(0.0, spread, shape).astype(np.float32)
        if "norm" in name:
            out[name] += 1
    size = config["vocab_size"]
    out["model.embed_tokens.weight"] = np.eye(size, dtype=np.float32)
    # the norm before the head makes the one that stands for the token as large as the root of the width
    out["lm_head.weight"] = np.ascontiguousarray(followers(size, ids, rng).T / np.sqrt(np.float32(size)))
    return out


def followers(size: int, ids: dict[str, int], rng: np.random.Generator) -> FloatArray:
    """Logits `[token, next token]`: the SCRIPT, and letters everywhere else."""
    letters = {byte: token_id for token_id, byte in enumerate(byte_alphabet().values())}
    table = np.full((size, size), -12.0, np.float32)
    for letter in b"abcdefghijklmnopqrstuvwxyz ":
        table[:, letters[letter]] = rng.normal(0.0, 1.5, size)
    script = [letters[entry] if isinstance(entry, int) else ids[entry] for entry in SCRIPT]
    for now, following in pairwise(script):
        table[now] = -12.0
        table[now, following] = 12.0
    return table
