"""Sorting and selecting by rank: Sort, Topk, Kthvalue, medians, and distinct values."""

from __future__ import annotations

import torch
from torch import Tensor

from gallium.vnpu.ops.reductions import best_of_dim
from gallium.vnpu.registry import only, op
from gallium.vnpu.writing import into_all, write


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


@op("Kthvalue")
def kthvalue(self: Tensor, k: int, dim: int, keepdim: bool, values: Tensor, indices: Tensor) -> None:
    """The k-th smallest, counted from one, and where it is."""
    into_all(torch.kthvalue, (values, indices), self, k, dim, keepdim)


@op("Median")
def median(self: Tensor, out: Tensor) -> None:
    """The lower median of all elements."""
    write(out, torch.median(self))


@op("NanMedian")
def nan_median(self: Tensor, out: Tensor) -> None:
    """The lower median of all elements that are numbers."""
    write(out, torch.nanmedian(self))


best_of_dim("MedianDim", torch.median)
best_of_dim("NanMedianDim", torch.nanmedian)
