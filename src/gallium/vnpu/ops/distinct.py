"""Distinct values: Unique, Unique2, UniqueConsecutive, UniqueDim. How many there are is known only after running."""

from __future__ import annotations

import torch
from torch import Tensor

from gallium.vnpu.registry import op
from gallium.vnpu.tensors import DynamicOutput
from gallium.vnpu.writing import write

_NO_DIM = 1000  # how op-plugin writes a dimension that was not given


@op("Unique", dynamic=("y",))
def unique(self: Tensor, sorted: bool, return_inverse: bool, y: DynamicOutput, inverse: Tensor) -> None:
    """Distinct values, and for each element which of them it is."""
    values, where, _counts = torch.unique(self, sorted, return_inverse=True, return_counts=True)
    y.settle(values)
    if return_inverse:
        write(inverse, where)


@op("Unique2", dynamic=("y", "counts"))
def unique2(
    self: Tensor,
    sorted: bool,
    return_inverse: bool,
    return_counts: bool,
    y: DynamicOutput,
    inverse: Tensor,
    counts: DynamicOutput,
) -> None:
    """Distinct values, for each element which of them it is, and how often each occurs."""
    values, where, times = torch.unique(self, sorted, return_inverse=True, return_counts=True)
    y.settle(values)
    if return_inverse or return_counts:  # op-plugin makes room for it in both cases
        write(inverse, where)
    counts.settle(times if return_counts else times[:0])


@op("UniqueConsecutive", dynamic=("y", "counts"))
def unique_consecutive(
    self: Tensor,
    return_inverse: bool,
    return_counts: bool,
    dim: int,
    y: DynamicOutput,
    inverse: Tensor,
    counts: DynamicOutput,
) -> None:
    """One value for each run of equal ones; along a dimension, one slice for each run."""
    chosen = None if dim == _NO_DIM else dim
    values, where, times = torch.unique_consecutive(self, return_inverse=True, return_counts=True, dim=chosen)
    y.settle(values)
    if return_inverse:
        write(inverse, where)
    counts.settle(times if return_counts else times[:0])


@op(
    "UniqueDim",
    dynamic=("y", "counts"),
    unused={
        "sorted": "slices come out sorted in either case, as in PyTorch",
        "return_inverse": "op-plugin makes room for the inverse and returns it in either case",
    },
)
def unique_dim(
    self: Tensor,
    sorted: bool,
    return_inverse: bool,
    dim: int,
    y: DynamicOutput,
    inverse: Tensor,
    counts: DynamicOutput,
) -> None:
    """Distinct slices along a dimension."""
    values, where, times = torch.unique(self, return_inverse=True, return_counts=True, dim=dim)
    y.settle(values)
    write(inverse, where)
    counts.settle(times)
