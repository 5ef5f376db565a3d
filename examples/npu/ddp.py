"""DistributedDataParallel over HCCL, for torchrun."""

from __future__ import annotations

import argparse
import os

import torch
import torch.distributed as dist
import torch_npu  # noqa: F401
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

BATCH = 32


def problem() -> tuple[nn.Module, Tensor, Tensor]:
    """A model, inputs and targets, the same in every process."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 1))
    inputs = torch.randn(BATCH, 16)
    return model, inputs, inputs.sin().sum(1, keepdim=True)


def train(model: nn.Module, inputs: Tensor, targets: Tensor, steps: int) -> list[float]:
    """The losses of this process's part of the batch."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(steps):
        loss = nn.functional.mse_loss(model(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses).tolist()


def main(steps: int) -> None:
    """One rank: train on its part of the batch, and print the mean losses of all."""
    rank = int(os.environ["LOCAL_RANK"])
    torch.npu.set_device(rank)
    dist.init_process_group("hccl")
    model, inputs, targets = problem()
    part = slice(rank, None, dist.get_world_size())
    losses = train(
        DistributedDataParallel(model.npu(), device_ids=[rank]), inputs[part].npu(), targets[part].npu(), steps
    )
    mean = torch.tensor(losses, device="npu")
    dist.all_reduce(mean, op=dist.ReduceOp.AVG)
    if rank == 0:
        print("losses:", " ".join(f"{loss:.6f}" for loss in mean.tolist()))
    dist.destroy_process_group()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=40)
    main(parser.parse_args().steps)
