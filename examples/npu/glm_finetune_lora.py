"""LoRA fine-tuning of a small random GLM with peft: train the adapter, save it, load it on a fresh model."""

from __future__ import annotations

import argparse
import tempfile

import torch
import torch_npu  # noqa: F401
from glm_generate import small_glm
from peft import LoraConfig, PeftModel, get_peft_model


def finetune(steps: int, device: str) -> tuple[list[float], float]:
    """The losses, and the largest difference of logits between the trained model and one with the saved adapter."""
    model = get_peft_model(small_glm(), LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj", "o_proj"]))
    model.to(device).train()
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-2)
    ids = torch.randint(3, 512, (4, 24)).to(device)
    losses = []
    for _ in range(steps):
        loss = model(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        model.save_pretrained(folder)
        fresh = PeftModel.from_pretrained(small_glm(), folder).to(device).eval()
        difference = (model.eval()(input_ids=ids).logits - fresh(input_ids=ids).logits).abs().max().item()
    return losses, difference


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--device", default="npu")
    options = parser.parse_args()
    found, after_loading = finetune(options.steps, options.device)
    print("losses:", " ".join(f"{loss:.6f}" for loss in found))
    print(f"difference after loading: {after_loading}")
