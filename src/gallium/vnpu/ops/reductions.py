"""Reductions over dimensions: sums, products, extremes, truth. An empty list of dimensions means all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gallium.vnpu.registry import op, register
from gallium.vnpu.tensors import DTYPES
from gallium.vnpu.writing import into, into_all, write

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


@op("Equal")
def equal(self: Tensor, other: Tensor, out: Tensor) -> None:
    """Whether both have one shape and equal elements."""
    out.fill_(torch.equal(self, other))


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


@op("Prod")
def prod(self: Tensor, dtype: int, out: Tensor) -> None:
    """The product of all elements, computed in the type `dtype`."""
    write(out, torch.prod(self, dtype=DTYPES[dtype]))


@op("ProdDim")
def prod_dim(self: Tensor, dim: int, keepdim: bool, dtype: int, out: Tensor) -> None:
    """The product along a dimension, computed in the type `dtype`."""
    typed(torch.prod, out, dtype, self, dim, keepdim)


@op("Aminmax")
def aminmax(self: Tensor, dims: Dims, keepdim: bool, low: Tensor, high: Tensor) -> None:
    """Smallest and largest."""
    into(torch.amin, low, self, dims or (), keepdim)
    into(torch.amax, high, self, dims or (), keepdim)


@op("AminmaxAll")
def aminmax_all(self: Tensor, low: Tensor, high: Tensor) -> None:
    """Smallest and largest of all elements."""
    aminmax(self, (), False, low, high)


@op("AminmaxDim")
def aminmax_dim(self: Tensor, dim: int, keepdim: bool, low: Tensor, high: Tensor) -> None:
    """Smallest and largest along a dimension."""
    aminmax(self, (dim,), keepdim, low, high)


def _best(name: str, function: Callable[..., Any]) -> None:
    def body(self: Tensor, dim: int, keepdim: bool, out: Tensor) -> None:
        into(function, out, self.byte() if self.dtype == torch.bool else self, dim, keepdim)

    register(name, body)


_best("ArgMax", torch.argmax)
_best("ArgMin", torch.argmin)


def best_of_dim(name: str, function: Callable[..., Any]) -> None:
    """Register a function that finds one element along a dimension and tells where it is."""

    def body(self: Tensor, dim: int, keepdim: bool, values: Tensor, indices: Tensor) -> None:
        into_all(function, (values, indices), self, dim, keepdim)

    register(name, body)


best_of_dim("MaxDim", torch.max)
best_of_dim("MinDim", torch.min)
