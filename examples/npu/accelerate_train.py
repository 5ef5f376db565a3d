"""Data-parallel training with Hugging Face accelerate, for `accelerate launch --num_processes 2`."""

from __future__ import annotations

import argparse

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def train(steps: int, cpu: bool = False) -> list[float]:
    """The mean loss of all processes in each step."""
    accelerator = Accelerator(cpu=cpu)
    torch.manual_seed(0)
    inputs = torch.randn(256, 16)
    data = TensorDataset(inputs, inputs.sin().sum(1, keepdim=True))
    model = nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    batches = DataLoader(data, batch_size=32 // accelerator.num_processes)
    model, optimizer, batches = accelerator.prepare(model, optimizer, batches)
    losses: list[float] = []
    while len(losses) < steps:
        for x, y in batches:
            loss = nn.functional.mse_loss(model(x), y)
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
            losses.append(accelerator.reduce(loss.detach(), "mean").item())
    accelerator.print("device:", accelerator.device.type, "processes:", accelerator.num_processes)
    accelerator.end_training()
    return losses[:steps]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=40)
    options = parser.parse_args()
    found = train(options.steps)
    if Accelerator().is_main_process:
        print("losses:", " ".join(f"{loss:.6f}" for loss in found))
