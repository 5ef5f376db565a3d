"""The stock GLM of transformers with small random weights: one forward pass and greedy generation."""

from __future__ import annotations

import argparse

import torch
import torch_npu  # noqa: F401
from transformers import GlmConfig, GlmForCausalLM


def small_glm() -> GlmForCausalLM:
    """A GLM of the real architecture that fits anywhere."""
    torch.manual_seed(0)
    config = GlmConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=256,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return GlmForCausalLM(config).eval()


@torch.no_grad()
def generate(tokens: int, device: str, dtype: torch.dtype = torch.float32) -> tuple[list[int], list[float]]:
    """The tokens that follow a fixed prompt, and the first logits of the prompt's last position."""
    model = small_glm().to(device, dtype)
    prompt = torch.arange(3, 19, device=device)[None]
    logits = model(prompt).logits[0, -1, :5].float().tolist()
    out = model.generate(prompt, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False)
    return out[0, prompt.shape[1] :].tolist(), logits


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20, help="how many tokens to generate")
    parser.add_argument("--device", default="npu")
    options = parser.parse_args()
    new, first = generate(options.steps, options.device)
    print("logits:", " ".join(f"{logit:.6f}" for logit in first))
    print("tokens:", *new)
