"""Running results along a dimension: Cumsum, Cumprod, Cummax, Cummin."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gallium.vnpu.ops.reductions import typed
from gallium.vnpu.registry import op, register
from gallium.vnpu.writing import into_all, write

Number = bool | int | float | complex


@op("Cumsum")
def cumsum(self: Tensor, dim: int, dtype: int, out: Tensor) -> None:
    """The running sum, computed in the type `dtype`."""
    typed(torch.cumsum, out, dtype, self, dim)


@op("Cumprod")
def cumprod(self: Tensor, dim: Number, dtype: int, out: Tensor) -> None:
    """The running product, computed in the type `dtype`; the dimension comes as a scalar."""
    typed(torch.cumprod, out, dtype, self, int(dim.real))


def _running_extreme(name: str, function: Callable[..., Any]) -> None:
    def body(self: Tensor, dim: int, values: Tensor, indices: Tensor) -> None:
        if values.dtype == self.dtype and indices.dtype == torch.int64:
            into_all(function, (values, indices), self, dim)
        else:
            for out, result in zip((values, indices), function(self, dim), strict=True):
                write(out, result)

    register(name, body)


_running_extreme("Cummax", torch.cummax)
_running_extreme("Cummin", torch.cummin)
