"""Tiny random checkpoints of the four families, made with Hugging Face transformers; odd sizes on purpose."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from itertools import count
from typing import Any, NamedTuple

import numpy as np

from gallium.ops.handles import FloatArray

SMALL: dict[str, Any] = {
    "vocab_size": 211, "hidden_size": 36, "intermediate_size": 50, "num_hidden_layers": 3,
    "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 12, "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "pad_token_id": 0, "eos_token_id": [3, 5],
    "bos_token_id": 1,
}  # fmt: skip
MOE: dict[str, Any] = {
    "n_routed_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 18, "n_shared_experts": 2,
    "first_k_dense_replace": 1, "routed_scaling_factor": 1.7, "n_group": 1, "topk_group": 1,
    "num_mtp_layers": 0,
}  # fmt: skip


def rope(theta: float, factor: float | None) -> dict[str, Any]:
    """A rope block of the 5.x dialect."""
    block: dict[str, Any] = {"rope_type": "default", "rope_theta": theta}
    return block if factor is None else {**block, "partial_rotary_factor": factor}


VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "glm-bias-half-rope": ("Glm", {"attention_bias": True, "rope_parameters": rope(1e4, None)}),
    "glm-edge-tied": (
        "Glm",
        {"attention_bias": False, "tie_word_embeddings": True, "rope_parameters": rope(5e6, 1.0)},
    ),
    "glm4-bias": ("Glm4", {"attention_bias": True, "rope_parameters": rope(1e4, 0.5)}),
    "glm4-wide-heads": (
        "Glm4",
        {"attention_bias": False, "head_dim": 20, "num_attention_heads": 5, "num_key_value_heads": 1},
    ),
    "glm4_moe-355b-like": (
        "Glm4Moe",
        {**MOE, "attention_bias": True, "use_qk_norm": True, "rope_parameters": rope(1e6, 0.5)},
    ),
    "glm4_moe-air-like": (
        "Glm4Moe",
        {**MOE, "attention_bias": True, "use_qk_norm": False, "n_shared_experts": 1, "head_dim": 16},
    ),
    "glm4_moe-groups": (
        "Glm4Moe",
        {**MOE, "n_group": 4, "topk_group": 2, "num_experts_per_tok": 4, "tie_word_embeddings": True},
    ),
    "glm4_moe-all-sparse": (
        "Glm4Moe",
        {**MOE, "first_k_dense_replace": 0, "norm_topk_prob": False, "num_experts_per_tok": 1},
    ),
    "llama": ("Llama", {"num_key_value_heads": 6, "head_dim": 6, "rope_parameters": rope(1e5, None)}),
    "llama-biased-tied": (
        "Llama",
        {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True, "head_dim": 10},
    ),
}


@cache
def make(variant: str) -> Any:
    """A random transformers model: every tensor drawn, norms and biases too, so that none can hide.

    Made once per session: whoever changes it works on a copy.
    """
    import torch
    import transformers

    kind, overrides = VARIANTS[variant]
    config = getattr(transformers, f"{kind}Config")(**{**SMALL, **overrides})
    config._experts_implementation = "eager"  # the grouped kernel wants sizes that are multiples of four
    torch.manual_seed(sum(map(ord, variant)))
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if name.endswith("inv_freq"):
                continue
            if "norm" in name:
                tensor.normal_(1.0, 0.2)
            else:
                tensor.normal_(0.0, 0.5 if "bias" in name else 0.3)
        model.tie_weights()
    return model


def tensors(model: Any) -> dict[str, FloatArray]:
    """The state as NumPy arrays; a tied head once, as files have it."""
    state = {name: np.asarray(t.detach().float().numpy()) for name, t in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        state.pop("lm_head.weight", None)
    return state


def config_of(model: Any) -> dict[str, Any]:
    """The config as transformers writes it (5.x dialect)."""
    config: dict[str, Any] = model.config.to_dict()
    return config


@contextmanager
def inference() -> Iterator[None]:
    """torch without gradients and on one thread: for such small matrices more threads only wait for each other."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            yield
    finally:
        torch.set_num_threads(threads)


def hf_logits(model: Any, tokens: list[int]) -> FloatArray:
    """All logits of one sequence in float32."""
    import torch

    with inference():
        logits: FloatArray = model(torch.tensor([tokens])).logits[0].numpy()
    return logits


def hf_greedy(model: Any, prompt: list[int], count: int) -> list[int]:
    """`count` greedy tokens, not stopped by any end token."""
    import torch

    with inference():
        ids = torch.tensor([prompt])
        everything = torch.ones_like(ids)  # or generate would leave out pad tokens
        out = model.generate(ids, attention_mask=everything, max_new_tokens=count, do_sample=False, eos_token_id=None)
    return [int(i) for i in out[0, len(prompt) :]]


class Answer(NamedTuple):
    """What transformers says: a greedy answer whose every token is chosen by a safe margin."""

    prompt: list[int]
    tokens: list[int]
    logits: FloatArray  # of the prompt and all tokens but the last


PROMPT, ANSWER = 37, 64
SAFE_MARGIN = 5e-3  # between the two best logits; 50 times the difference that parity allows


@cache
def answer(variant: str) -> Answer:
    """The answer to the first random prompt that has a safe margin everywhere."""
    model = make(variant)
    answers = (ask(model, seed) for seed in count())
    return next(found for found in answers if margin(found) > SAFE_MARGIN)


def ask(model: Any, seed: int) -> Answer:
    """The answer to one random prompt."""
    prompt = [int(i) for i in np.random.default_rng(seed).integers(0, model.config.vocab_size, PROMPT)]
    tokens = hf_greedy(model, prompt, ANSWER)
    return Answer(prompt, tokens, hf_logits(model, prompt + tokens[:-1]))


def margin(found: Answer) -> float:
    """The smallest distance between the two best logits of any token of the answer."""
    best = np.sort(found.logits[PROMPT - 1 :], axis=1)
    return float((best[:, -1] - best[:, -2]).min())
