"""Sorting and selecting by rank: Sort, Topk, Kthvalue, medians."""

from __future__ import annotations

import torch
from torch import Tensor

from gallium.vnpu.registry import only, op
from gallium.vnpu.writing import into_all


@op("Sort")
def sort(self: Tensor, stable: bool, dim: int, descending: bool, values: Tensor, indices: Tensor) -> None:
    """Sorted values and where they came from."""
    into_all(torch.sort, (values, indices), self, stable=stable, dim=dim, descending=descending)


@op("Topk")
def topk(self: Tensor, k: int, dim: int, largest: bool, sorted: bool, values: Tensor, indices: Tensor) -> None:
    """The k largest or smallest, and where they are."""
    into_all(torch.topk, (values, indices), self, k, dim, largest, sorted)


@op("TopkV2")
def topk_v2(
    self: Tensor, k: int, dim: int, largest: bool, sorted: bool, mode: int, values: Tensor, indices: Tensor
) -> None:
    """As Topk. torch_npu passes the mode 1 always; what another one means is not known."""
    only("mode", mode, 1)
    into_all(torch.topk, (values, indices), self, k, dim, largest, sorted)
