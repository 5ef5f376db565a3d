"""Mixed precision: autocast to float16 with a gradient scaler, which survives an overflow."""

from __future__ import annotations

import argparse

import torch
import torch_npu  # noqa: F401
from torch import nn


def train(steps: int, device: str) -> tuple[list[float], list[float]]:
    """The losses and the scale after each step; the gradients of step 2 overflow on purpose."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.LayerNorm(64), nn.Linear(64, 1)).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scaler = torch.amp.GradScaler(device, init_scale=1024.0)
    inputs = torch.randn(64, 16).to(device)
    targets = inputs.sin().sum(1, keepdim=True)
    losses, scales = [], []
    for step in range(steps):
        with torch.autocast(device, dtype=torch.float16):
            loss = nn.functional.mse_loss(model(inputs).float(), targets)
        optimizer.zero_grad()
        scaler.scale(loss * (1e8 if step == 2 else 1.0)).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
        scales.append(scaler.get_scale())
    return losses, scales


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--device", default="npu")
    options = parser.parse_args()
    found, scale = train(options.steps, options.device)
    print("losses:", " ".join(f"{loss:.6f}" for loss in found))
    print("scales:", *scale)
