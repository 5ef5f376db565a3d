"""Variance and standard deviation. An empty list of dimensions means all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gallium.vnpu.registry import register
from gallium.vnpu.writing import into, write

Dims = tuple[int, ...] | None


def _spread(name: str, function: Callable[..., Any]) -> None:
    def body(self: Tensor, dims: Dims, correction: int, keepdim: bool, out: Tensor) -> None:
        into(function, out, self, dims or None, correction=correction, keepdim=keepdim)

    register(name, body)


def _spread_and_mean(name: str, function: Callable[..., Any]) -> None:
    def body(self: Tensor, dims: Dims, correction: int, keepdim: bool, spread: Tensor, mean: Tensor) -> None:
        results = function(self, dims or None, correction=correction, keepdim=keepdim)
        write(spread, results[0])
        write(mean, results[1])

    register(name, body)


_spread("Std", torch.std)
_spread("VarCorrection", torch.var)
_spread_and_mean("StdMeanCorrection", torch.std_mean)
_spread_and_mean("VarMean", torch.var_mean)
