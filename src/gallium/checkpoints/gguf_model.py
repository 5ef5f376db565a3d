"""Translates a GGUF file into Hugging Face's names and config dialect, so that models know only one language.

Tensor names and keys per architecture are those that llama.cpp's converter writes (its `conversion/` and
`gguf-py/gguf/constants.py`). Rows of q and k of the architectures llama, chatglm and glm4 are in interleaved pair
order (rope type NORM), those of glm4moe in half-split order (NeoX). A llama file is therefore exactly a `glm` model
whose rope covers the whole head. chatglm and glm4 have gate and up in one tensor, `ffn_up` = [gate; up].
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from gallium.checkpoints.tensor import StoredTensor
from gallium.errors import CheckpointError, UnsupportedModel

MODEL_TYPES = {"llama": "glm", "chatglm": "glm", "glm4": "glm4", "glm4moe": "glm4_moe"}
TOP = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
COMMON = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
SEPARATE = {"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj"}
FUSED = {"ffn_up": "mlp.gate_up_proj"}
MTP = {
    "nextn.eh_proj": "eh_proj", "nextn.embed_tokens": "embed_tokens", "nextn.enorm": "enorm", "nextn.hnorm": "hnorm",
    "nextn.shared_head_head": "shared_head.head", "nextn.shared_head_norm": "shared_head.norm",
}  # fmt: skip
LAYER_NAMES: dict[str, dict[str, str]] = {
    "llama": COMMON | SEPARATE | {"ffn_norm": "post_attention_layernorm"},
    "chatglm": COMMON | FUSED | {"ffn_norm": "post_attention_layernorm"},
    "glm4": COMMON | FUSED | MTP | {
        "ffn_norm": "post_attention_layernorm", "post_attention_norm": "post_self_attn_layernorm",
        "post_ffw_norm": "post_mlp_layernorm",
    },
    "glm4moe": COMMON | SEPARATE | MTP | {
        "post_attention_norm": "post_attention_layernorm", "attn_q_norm": "self_attn.q_norm",
        "attn_k_norm": "self_attn.k_norm", "ffn_gate_inp": "mlp.gate",
        "ffn_gate_shexp": "mlp.shared_experts.gate_proj", "ffn_up_shexp": "mlp.shared_experts.up_proj",
        "ffn_down_shexp": "mlp.shared_experts.down_proj",
    },
}  # fmt: skip
EXPERT_STACKS = {"ffn_gate_exps": "gate_proj", "ffn_up_exps": "up_proj", "ffn_down_exps": "down_proj"}
FUSED_EXPERTS = "ffn_gate_up_exps"
ROUTER_BIAS = ("exp_probs_b.bias", "exp_probs_b")
TURN_ENDS = ("<|endoftext|>", "<|user|>", "<|observation|>")
LAYER_TENSOR = re.compile(r"blk\.(?P<layer>0|[1-9]\d{0,5})\.(?P<module>.+)\.(?P<kind>weight|bias)")
SIGMOID = 2  # expert_gating_func
MAX_COUNT = 1 << 31
MAX_EXPERTS = 1024  # several times those of any model; each becomes tensors of its own


class Keys:
    """Look-ups below one architecture's prefix; errors name the key and the value."""

    def __init__(self, metadata: Mapping[str, Any], arch: str) -> None:
        self.metadata, self.arch = metadata, arch

    def get(self, key: str) -> Any:
        """The raw value, None if absent. A list per layer counts as one value if all layers agree."""
        value = self.metadata.get(f"{self.arch}.{key}")
        if isinstance(value, list) and value and all(v == value[0] for v in value):
            return value[0]
        return value

    def whole(self, key: str, default: int | None = None, *, least: int = 1, most: int = MAX_COUNT) -> int:
        """A whole number from `least` to `most`."""
        value = self.get(key)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise self._wrong(key, value, f"a whole number of at least {least} and at most {most}")
        return value

    def real(self, key: str, default: float | None = None) -> float:
        """A positive number, as its shortest decimal: the file has float32, whose 1e-5 is not Python's."""
        value = self.get(key)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise self._wrong(key, value, "a positive number")
        return float(str(np.float32(value)))

    def _wrong(self, key: str, value: Any, wanted: str) -> CheckpointError:
        shown = "is missing" if value is None else f"is {str(value)[:60]!r}"
        return CheckpointError(f"the GGUF file cannot be run: its {self.arch}.{key} {shown}; it must be {wanted}.")


def architecture(metadata: Mapping[str, Any]) -> str:
    """`general.architecture`, if Gallium runs it; UnsupportedModel names the ones it does."""
    arch = metadata.get("general.architecture")
    if not isinstance(arch, str) or arch not in MODEL_TYPES:
        raise UnsupportedModel(
            f"GGUF architecture {arch!r} is not supported; supported: {', '.join(MODEL_TYPES)} "
            "(GLM-4, GLM-Edge, GLM-4-0414, Z1, GLM-4.5 to 4.7, and models of the Llama architecture)."
        )
    return arch


def translate_config(metadata: Mapping[str, Any], tensors: Mapping[str, StoredTensor]) -> dict[str, Any]:
    """The file's hyperparameters as a config.json of `transformers` 5 would state them.

    Raises CheckpointError for a missing or impossible value, UnsupportedModel for one that changes the function that
    the model computes in a way Gallium does not.
    """
    arch = architecture(metadata)
    keys = Keys(metadata, arch)
    _refuse_other_models(keys)
    hidden, heads = keys.whole("embedding_length"), keys.whole("attention.head_count")
    head_dim = keys.whole("attention.key_length", hidden // heads)
    if keys.whole("attention.value_length", head_dim) != head_dim:
        raise UnsupportedModel(f"{arch}.attention.value_length differs from key_length ({head_dim}): not supported.")
    mtp = keys.whole("nextn_predict_layers", 0, least=0)
    config: dict[str, Any] = {
        "model_type": MODEL_TYPES[arch],
        "vocab_size": _vocab_size(keys, tensors),
        "hidden_size": hidden,
        "intermediate_size": keys.whole("feed_forward_length"),
        "num_hidden_layers": keys.whole("block_count", least=mtp + 1) - mtp,
        "num_attention_heads": heads,
        "num_key_value_heads": keys.whole("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "rms_norm_eps": keys.real("attention.layer_norm_rms_epsilon"),
        "max_position_embeddings": keys.whole("context_length"),
        "rope_parameters": _rope(keys, tensors, head_dim),
        "attention_bias": any(f"blk.0.attn_{part}.bias" in tensors for part in ("q", "k", "v", "qkv")),
        "tie_word_embeddings": "output.weight" not in tensors,
    }
    return config | _special_ids(metadata) | (_moe(keys, tensors, mtp) if arch == "glm4moe" else {})


def _vocab_size(keys: Keys, tensors: Mapping[str, StoredTensor]) -> int:
    embedding = tensors.get("token_embd.weight")
    return keys.whole("vocab_size") if embedding is None else embedding.shape[0]


def _refuse_other_models(keys: Keys) -> None:
    """Models that share the architecture's name and not its function."""
    if keys.arch != "glm4moe" and keys.get("expert_count"):
        raise UnsupportedModel(
            f"this {keys.arch} file is a mixture of experts (such as Mixtral), which is not supported."
        )
    sections = keys.metadata.get(f"{keys.arch}.rope.dimension_sections")
    if isinstance(sections, list) and any(sections):
        raise UnsupportedModel(
            f"this {keys.arch} file has the rope of a model that sees images (rope.dimension_sections), which is not "
            "supported; use the file of a text model."
        )


def _rope(keys: Keys, tensors: Mapping[str, StoredTensor], head_dim: int) -> dict[str, Any]:
    """`rope_parameters`; anything that stretches positions is refused."""
    kind, factor = (
        keys.get("rope.scaling.type"),
        keys.get("rope.scaling.factor") or keys.get("rope.scale_linear") or 1,
    )
    stretched = kind not in (None, "none", "linear") or (kind != "none" and factor != 1)
    tables = [name for name in tensors if name.startswith("rope_") and not _all_ones(name, tensors[name])]
    if stretched or tables:
        what = f"the table {tables[0]}" if tables else f"type {kind or 'linear'}, factor {factor}"
        raise UnsupportedModel(
            f"this GGUF file scales its rope ({what}), which is not supported, and without it contexts would be "
            "computed wrongly. Use a file without rope scaling."
        )
    dim = keys.whole("rope.dimension_count", head_dim)
    if dim > head_dim or dim % 2:
        raise CheckpointError(f"the GGUF file rotates {dim} of the {head_dim} values of a head: impossible.")
    fraction = dim / head_dim
    if int(head_dim * fraction) != dim:  # models multiply and cut off; rounding must not lose one
        fraction = math.nextafter(fraction, 2.0)
    return {
        "rope_type": "default",
        "rope_theta": keys.real("rope.freq_base", 10000.0),
        "partial_rotary_factor": fraction,
    }


def _all_ones(name: str, tensor: StoredTensor) -> bool:
    """Whether a table of frequency factors changes nothing."""
    return name == "rope_freqs.weight" and math.prod(tensor.shape) < 1 << 16 and bool((tensor.float32() == 1).all())


def _special_ids(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """bos, pad, and as end of sequence every end token that the file names: eos, end of turn, end of message."""
    found: dict[str, Any] = {"pad_token_id": None}  # what is not stated is GLM's own in transformers
    for key, short in (("bos_token_id", "bos"), ("pad_token_id", "padding")):
        value = metadata.get(f"tokenizer.ggml.{short}_token_id")
        if isinstance(value, int):
            found[key] = value
    ends = [metadata.get(f"tokenizer.ggml.{short}_token_id") for short in ("eos", "eot", "eom")]
    ends += _turn_ends(metadata)
    found["eos_token_id"] = list(dict.fromkeys(e for e in ends if isinstance(e, int)))
    return found


def _turn_ends(metadata: Mapping[str, Any]) -> list[int]:
    """GLM ends a turn with the next role's token; some GGUF files name only <|endoftext|> as the end."""
    tokens = metadata.get("tokenizer.ggml.tokens")
    if metadata.get("general.architecture") == "llama" or not isinstance(tokens, list):
        return []
    return [tokens.index(t) for t in TURN_ENDS if t in tokens]


def _moe(keys: Keys, tensors: Mapping[str, StoredTensor], mtp: int) -> dict[str, Any]:
    if keys.whole("expert_gating_func", SIGMOID, least=0) not in (0, SIGMOID):  # 0: not stated
        raise UnsupportedModel(f"{keys.arch}.expert_gating_func is not {SIGMOID} (sigmoid): not supported.")
    scale = keys.get("expert_weights_scale")
    return {
        "moe_intermediate_size": keys.whole("expert_feed_forward_length"),
        "n_routed_experts": keys.whole("expert_count", most=MAX_EXPERTS),
        "num_experts_per_tok": keys.whole("expert_used_count"),
        "n_shared_experts": keys.whole("expert_shared_count", 0, least=0),
        "routed_scaling_factor": keys.real("expert_weights_scale") if scale else 1.0,
        "norm_topk_prob": bool(keys.get("expert_weights_norm")),
        "n_group": keys.whole("expert_group_count", 1),
        "topk_group": keys.whole("expert_group_used_count", 1),
        "first_k_dense_replace": keys.whole("leading_dense_block_count", 0, least=0),
        "use_qk_norm": "blk.0.attn_q_norm.weight" in tensors,
        "num_nextn_predict_layers": mtp,
    }


def translate_names(
    tensors: Mapping[str, StoredTensor], arch: str, config: Mapping[str, Any]
) -> dict[str, StoredTensor]:
    """Hugging Face name -> tensor. A name without a counterpart is kept, so that the completeness check reports it."""
    out: dict[str, StoredTensor] = {}
    for name, tensor in tensors.items():
        if name == "rope_freqs.weight":  # `_rope` has seen that it changes nothing
            continue
        for target, part in _translate(name, tensor, arch, config, tensors).items():
            if target in out:
                raise CheckpointError(f"the GGUF file has two tensors for {target}; {name!r} is one.")
            out[target] = part
    return out


def _translate(
    name: str, tensor: StoredTensor, arch: str, config: Mapping[str, Any], tensors: Mapping[str, StoredTensor]
) -> dict[str, StoredTensor]:
    """The Hugging Face tensors that one GGUF tensor holds."""
    if name.endswith(ROUTER_BIAS) and arch == "glm4moe":
        name = name.removesuffix(".bias") + ".bias"
    match = LAYER_TENSOR.fullmatch(name)
    if match is None:
        return {TOP.get(name, name): tensor}
    prefix, module, kind = f"model.layers.{match['layer']}.", match["module"], match["kind"]
    if module == "attn_qkv":
        return _split_qkv(prefix, kind, tensor, config)
    if arch == "glm4moe":
        if module == "exp_probs_b":
            return {f"{prefix}mlp.gate.e_score_correction_bias": tensor}
        if module in EXPERT_STACKS or module == FUSED_EXPERTS:
            packed = f"blk.{match['layer']}.{FUSED_EXPERTS}.weight" in tensors
            return _experts(prefix + "mlp.experts.", module, kind, tensor, config["n_routed_experts"], packed)
    target = LAYER_NAMES[arch].get(module)
    return {f"{prefix}{target}.{kind}" if target else name: tensor}


def _experts(
    prefix: str, module: str, kind: str, stack: StoredTensor, count: int, packed: bool
) -> dict[str, StoredTensor]:
    """A stack of experts: whole where gate and up are fused (as transformers packs them), else one by one."""
    if len(stack.shape) != 3 or stack.shape[0] != count or kind != "weight":
        raise CheckpointError(f"{stack.name} has the shape {list(stack.shape)}; {count} experts were announced.")
    if packed:
        return {prefix + ("gate_up_proj" if module == FUSED_EXPERTS else EXPERT_STACKS[module]): stack}
    return {f"{prefix}{e}.{EXPERT_STACKS[module]}.weight": stack.index(e) for e in range(count)}


def _split_qkv(prefix: str, kind: str, tensor: StoredTensor, config: Mapping[str, Any]) -> dict[str, StoredTensor]:
    """The rows of a fused projection, as views."""
    head_dim = config["head_dim"]
    heights = [config["num_attention_heads"] * head_dim] + 2 * [config["num_key_value_heads"] * head_dim]
    if tensor.shape[0] != sum(heights):
        raise CheckpointError(f"{tensor.name} has {tensor.shape[0]} rows; the heads need {sum(heights)}.")
    out, start = {}, 0
    for part, height in zip("qkv", heights, strict=True):
        out[f"{prefix}self_attn.{part}_proj.{kind}"] = tensor.rows(start, start + height)
        start += height
    return out
