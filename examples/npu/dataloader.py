"""Batches from worker processes, through pinned memory, copied to the NPU without waiting."""

from __future__ import annotations

import argparse

import torch
import torch_npu  # noqa: F401
from torch import Tensor
from torch.utils.data import DataLoader, Dataset


class Numbers(Dataset[Tensor]):
    """Item i is a vector of i."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Tensor:
        return torch.full((32,), float(index))


def total(steps: int, device: str, workers: int = 2) -> tuple[float, bool]:
    """The sum of all items, added up on the device, and whether every batch was pinned."""
    batches = DataLoader(Numbers(8 * steps), batch_size=8, num_workers=workers, pin_memory=device != "cpu")
    result = torch.zeros((), device=device)
    pinned = True
    for batch in batches:
        pinned &= batch.is_pinned()
        result += batch.to(device, non_blocking=True).sum()
    return result.item(), pinned


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=16, help="how many batches")
    parser.add_argument("--device", default="npu")
    options = parser.parse_args()
    found, all_pinned = total(options.steps, options.device)
    print(f"total: {found:.1f}")
    print("pinned:", all_pinned)
