"""Reductions over dimensions: sums, products, extremes, truth. An empty list of dimensions means all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gallium.vnpu.registry import op, register
from gallium.vnpu.tensors import DTYPES
from gallium.vnpu.writing import into, write

Number = bool | int | float | complex
Dims = tuple[int, ...] | None


def typed(function: Callable[..., Any], out: Tensor, dtype: int, *args: Any) -> None:
    """`function(*args)` computed in the type of code `dtype`, which may differ from the output's."""
    wanted = DTYPES[dtype]
    if wanted == out.dtype:
        into(function, out, *args, dtype=wanted)
    else:
        write(out, function(*args, dtype=wanted))


def _sum_like(name: str, function: Callable[..., Any]) -> None:
    def body(self: Tensor, dims: Dims, keepdim: bool, dtype: int, out: Tensor) -> None:
        typed(function, out, dtype, self, dims or (), keepdim)

    register(name, body)


_sum_like("ReduceSum", torch.sum)
_sum_like("ReduceNansum", torch.nansum)


@op("Mean")
def mean(self: Tensor, dims: Dims, keepdim: bool, dtype: int, out: Tensor) -> None:
    """The mean, computed in the type `dtype`."""
    typed(torch.mean, out, dtype, self, dims or (), keepdim)


def _truth(name: str, function: Callable[..., Any]) -> None:
    def body(self: Tensor, dims: Dims, keepdim: bool, out: Tensor) -> None:
        if out.dtype == torch.bool or out.dtype == self.dtype == torch.uint8:
            into(function, out, self, dim=dims or None, keepdim=keepdim)
        else:
            write(out, function(self, dim=dims or None, keepdim=keepdim))

    register(name, body)


_truth("All", torch.all)
_truth("Any", torch.any)


def _extreme(name: str, function: Callable[..., Any]) -> None:
    def body(self: Tensor, dims: Dims, keepdim: bool, out: Tensor) -> None:
        into(function, out, self, dims or (), keepdim)

    register(name, body)


_extreme("Amax", torch.amax)
_extreme("Amin", torch.amin)


def _extreme_of_all(name: str, function: Callable[..., Any]) -> None:
    def body(self: Tensor, out: Tensor) -> None:
        into(function, out, self)

    register(name, body)


_extreme_of_all("Max", torch.max)
_extreme_of_all("Min", torch.min)


@op("LinalgVectorNorm")
def vector_norm(self: Tensor, order: Number, dims: Dims, keepdim: bool, dtype: int, out: Tensor) -> None:
    """The norm of the given order of the elements as one vector."""
    wanted = DTYPES[dtype]
    if wanted == out.dtype:
        into(torch.linalg.vector_norm, out, self, order, dims or None, keepdim, dtype=wanted)
    else:
        write(out, torch.linalg.vector_norm(self, order, dims or None, keepdim, dtype=wanted))
