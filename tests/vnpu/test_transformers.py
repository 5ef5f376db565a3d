"""Stock GLM models of transformers, small and random: forward, generation, training and checkpoints as on the CPU.

Bounds. Both devices round each operator's result to the model's type, and differ where torch_npu calls one fused
operator and the CPU path several, or in another order. In float32 that is a few units of 2^-24 per layer: 1e-5 of the
largest logit. In bfloat16 one unit is 2^-8, and the residual stream of two layers passes some ten such roundings of
random sign: 4 units. AdamW divides each gradient by its own size, so a gradient that is mostly rounding moves its
weight by up to the learning rate in either direction: single weights may differ by twice that per step, the mean may
not.
"""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import transformers
from tests.vnpu.support import called
from torch import Tensor
from transformers import PreTrainedModel

SIZES = {
    "vocab_size": 128, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 128, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
GROUPED = {"num_key_value_heads": 2, "head_dim": 8}
EXPERTS = {
    "moe_intermediate_size": 16, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1, "n_group": 1,
    "topk_group": 1,
}  # fmt: skip
LATENT = {
    "num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8,
    "v_head_dim": 16,
}  # fmt: skip
MODELS = {
    "Glm": GROUPED,
    "Glm4": GROUPED,
    "Glm4Moe": GROUPED | EXPERTS | {"first_k_dense_replace": 1},
    "Glm4MoeLite": LATENT | EXPERTS,
    "GlmMoeDsa": LATENT | EXPERTS | {"index_n_heads": 2, "index_head_dim": 16, "index_topk": 8},
}
TYPES = [torch.float32, torch.bfloat16]
STEPS, RATE = 5, 1e-3

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning"),  # of torch_npu and transformers
    pytest.mark.parametrize("name", MODELS),
    pytest.mark.parametrize("dtype", TYPES, ids=["float32", "bfloat16"]),
]


def pair(name: str, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedModel]:
    """The same model on the CPU and on the NPU."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**SIZES, **MODELS[name])
    model = getattr(transformers, f"{name}ForCausalLM")._from_config(config, dtype=dtype).eval()
    return model, copy.deepcopy(model).npu()


def prompt() -> Tensor:
    return torch.randint(3, 128, (2, 12), generator=torch.Generator().manual_seed(1))


def bound(dtype: torch.dtype, reference: Tensor) -> float:
    return reference.abs().max().item() * (1e-5 if dtype == torch.float32 else 4 * 2**-8)


@torch.no_grad()
def test_forward_and_generate(name: str, dtype: torch.dtype) -> None:
    model, ours = pair(name, dtype)
    with called() as functions:
        logits = ours(prompt().npu()).logits.cpu()
    expected = model(prompt()).logits
    torch.testing.assert_close(logits, expected, rtol=0, atol=bound(dtype, expected))
    assert {"Matmul", "Silu"} <= functions, functions
    tokens = ours.generate(prompt().npu(), max_new_tokens=8, min_new_tokens=8, do_sample=False).cpu()
    check_greedy(model, tokens, dtype)


def check_greedy(model: PreTrainedModel, tokens: Tensor, dtype: torch.dtype) -> None:
    """Each new token is the CPU's best one after the same text, or within twice the bound of it."""
    start = prompt().shape[1]
    assert tokens.shape[1] == start + 8 and torch.equal(tokens[:, :start], prompt())
    logits = model(tokens).logits[:, start - 1 : -1].float()
    logits[..., 2] = -torch.inf  # min_new_tokens forbids the end
    chosen = logits.gather(-1, tokens[:, start:, None]).squeeze(-1)
    assert (logits.max(-1).values - chosen).max() <= 2 * bound(dtype, logits[..., 3:])


def train(model: PreTrainedModel) -> list[float]:
    model.train()
    ids = prompt().to(model.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    losses = []
    for _ in range(STEPS):
        loss = model(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def compare_weights(ours: PreTrainedModel, model: PreTrainedModel, dtype: torch.dtype) -> None:
    unit = 2**-24 if dtype == torch.float32 else 2**-8
    differences = []
    for (key, weight), reference in zip(ours.named_parameters(), model.parameters(), strict=True):
        differences.append((weight.detach().cpu().float() - reference.detach().float()).abs().flatten())
        assert differences[-1].max() <= 2 * RATE * STEPS + 4 * unit * reference.abs().max(), key
    mean = torch.cat(differences).mean()
    assert mean <= RATE * (1e-3 if dtype == torch.float32 else 0.1), mean


def test_training_and_checkpoint(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model, ours = pair(name, dtype)
    losses = train(ours)
    assert losses[-1] < losses[0] - 0.1
    torch.testing.assert_close(losses, train(model), rtol=1e-5 if dtype == torch.float32 else 2**-8, atol=0)
    compare_weights(ours, model, dtype)

    ours.eval().save_pretrained(tmp_path)
    loaded = type(ours).from_pretrained(tmp_path, dtype=dtype).eval()
    for key, weight in ours.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], weight.cpu()), key
    with torch.no_grad():
        assert torch.equal(loaded.npu()(prompt().npu()).logits, ours(prompt().npu()).logits)
