"""Writes a model as llama.cpp reads it, tensor by tensor, quantised block for block as llama.cpp does."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind
from numpy.typing import NDArray

from gallium.checkpoints.gguf_model import EXPERT_STACKS, LAYER_NAMES, MODEL_TYPES, TOP

STORED = {"bf16": "BF16", "int8": "Q8_0", "int4": "Q4_0"}
EXPERT = re.compile(r"(?P<layer>model\.layers\.\d+)\.mlp\.experts\.0\.(?P<part>\w+)\.weight")
LAYER = re.compile(r"model\.layers\.(?P<layer>\d+)\.(?P<module>.+)\.(?P<kind>weight|bias)")
EMBEDDINGS = ("model.embed_tokens.weight", "lm_head.weight")
ROWS = 4096  # quantised at a time
PRE_TOKENIZER = "chatglm-bpe"


def write_gguf(path: Path, config: dict[str, Any], source: Any, precision: str, tokenizer: Path | None) -> None:
    """`source` has `names()`, `shape(name)` and `weight(name)`; a file appears at `path` when it is whole."""
    arch = next(a for a, model_type in MODEL_TYPES.items() if model_type == config["model_type"] and a != "llama")
    part = path.with_suffix(".part")
    writer = gguf.GGUFWriter(part, arch)
    _write_facts(writer, arch, config)
    if tokenizer is not None and tokenizer.exists():
        _write_vocabulary(writer, json.loads(tokenizer.read_text(encoding="utf-8")), config)
    tensors = [(name, gguf_name(name, arch), _kind(name, source.shape(name), precision)) for name in source.names()]
    stacked = [entry for entry in tensors if entry[1]]
    for name, target, kind in stacked:
        shape = _shape(name, source, config)
        size = gguf.quants.quant_shape_to_byte_shape(shape, kind) if _coded(kind) else shape
        width = 1 if _coded(kind) else 4
        writer.add_tensor_info(target, size, np.dtype(np.uint8 if width == 1 else np.float32),
                               int(np.prod(size)) * width, raw_dtype=kind if width == 1 else None)  # fmt: skip
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    coder = Coder()
    for name, _, kind in stacked:
        writer.write_tensor_data(coder.data(name, source, config, kind))
    writer.close()
    part.rename(path)


def gguf_name(name: str, arch: str) -> str:
    """llama.cpp's name; empty for experts after the first of a layer, which go into the same stack."""
    for theirs, ours in TOP.items():
        if ours == name:
            return theirs
    if match := EXPERT.fullmatch(name):
        part = next(stack for stack, ours in EXPERT_STACKS.items() if ours == match["part"])
        return f"blk.{match['layer'].rpartition('.')[2]}.{part}.weight"
    if ".mlp.experts." in name:
        return ""
    if name.endswith("mlp.gate.e_score_correction_bias"):
        return f"blk.{name.split('.')[2]}.exp_probs_b.bias"
    match = LAYER.fullmatch(name)
    names = {ours: theirs for theirs, ours in LAYER_NAMES[arch].items()}
    if match is None or match["module"] not in names:
        raise ValueError(f"no name in a {arch} file is known for {name}")
    return f"blk.{match['layer']}.{names[match['module']]}.{match['kind']}"


def _kind(name: str, shape: tuple[int, ...], precision: str) -> Kind:
    if len(shape) == 1 or name.endswith("mlp.gate.weight"):
        return Kind.F32
    if precision == "int4" and name in EMBEDDINGS:
        return Kind.Q8_0
    return Kind[STORED[precision]]


def _coded(kind: Kind) -> bool:
    return kind is not Kind.F32


def _shape(name: str, source: Any, config: dict[str, Any]) -> tuple[int, ...]:
    shape: tuple[int, ...] = source.shape(name)
    return (config["n_routed_experts"], *shape) if EXPERT.fullmatch(name) else shape


class Coder:
    """Codes weights row by row. A random weight repeats one tile of bfloat16: that is coded once, for all weights."""

    def __init__(self) -> None:
        self._tiles: dict[tuple[int, Kind], NDArray[np.uint8]] = {}

    def data(self, name: str, source: Any, config: dict[str, Any], kind: Kind) -> NDArray[Any]:
        """One tensor of the file; the experts of a layer make one."""
        if not EXPERT.fullmatch(name):
            return self.rows(source.weight(name), kind)
        names = [name.replace(".experts.0.", f".experts.{e}.") for e in range(config["n_routed_experts"])]
        return np.stack([self.rows(source.weight(one), kind) for one in names])

    def rows(self, weight: Any, kind: Kind) -> NDArray[Any]:
        """All rows of one matrix, or a vector as float32."""
        if not _coded(kind):
            return np.asarray(weight.float32(), dtype=np.float32)
        tile = getattr(weight, "tile", None)
        block, size = gguf.GGML_QUANT_SIZES[kind]
        if tile is not None and len(tile) % block == 0 and weight.shape[-1] % block == 0:
            rows = int(np.prod(weight.shape[:-1]))
            coded = np.resize(self._tile(tile, kind, block), rows * weight.shape[-1] // block * size)
            return coded.reshape(*weight.shape[:-1], -1)
        pieces = [
            gguf.quants.quantize(weight.float32(start, start + ROWS), kind).view(np.uint8)
            for start in range(0, weight.shape[0], ROWS)
        ]
        return np.concatenate(pieces)

    def _tile(self, tile: NDArray[np.uint16], kind: Kind, block: int) -> NDArray[np.uint8]:
        if kind is Kind.BF16:
            return tile.view(np.uint8)
        if (id(tile), kind) not in self._tiles:
            values = (tile.astype(np.uint32) << 16).view(np.float32).reshape(-1, block)
            self._tiles[id(tile), kind] = gguf.quants.quantize(values, kind).view(np.uint8).reshape(-1)
        return self._tiles[id(tile), kind]


def _write_facts(writer: gguf.GGUFWriter, arch: str, config: dict[str, Any]) -> None:
    """The keys that llama.cpp's converter writes for these architectures."""
    head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    rope = config["rope_parameters"]
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(int(head * rope["partial_rotary_factor"]))
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    if arch == "glm4moe":
        writer.add_expert_count(config["n_routed_experts"])
        writer.add_expert_used_count(config["num_experts_per_tok"])
        writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
        writer.add_expert_shared_count(config["n_shared_experts"])
        writer.add_leading_dense_block_count(config["first_k_dense_replace"])
        writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
        writer.add_expert_weights_scale(config["routed_scaling_factor"])
        writer.add_expert_weights_norm(config["norm_topk_prob"])


def _write_vocabulary(writer: gguf.GGUFWriter, tokenizer: dict[str, Any], config: dict[str, Any]) -> None:
    vocab, special = tokenizer["model"]["vocab"], {a["content"]: a["id"] for a in tokenizer["added_tokens"]}
    by_id = {i: token for token, i in (vocab | special).items()}
    tokens = [by_id.get(i, f"[PAD{i}]") for i in range(config["vocab_size"])]
    kinds = [
        gguf.TokenType.CONTROL if token in special
        else gguf.TokenType.NORMAL if i in by_id else gguf.TokenType.UNUSED
        for i, token in enumerate(tokens)
    ]  # fmt: skip
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in tokenizer["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(PRE_TOKENIZER)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    end = config["eos_token_id"]
    writer.add_eos_token_id(end[0] if isinstance(end, list) else end)
    writer.add_add_bos_token(False)
