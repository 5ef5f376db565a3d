"""Writing by index into a copy: Scatter, ScatterAdd, ScatterReduce, IndexAdd and others."""

from __future__ import annotations

import torch
from torch import Tensor

from gallium.vnpu.registry import op
from gallium.vnpu.refusals import Unsupported
from gallium.vnpu.writing import into

Number = bool | int | float | complex

_REDUCE = {1: "sum", 2: "prod"}  # 0 overwrites


@op("Scatter")
def scatter(self: Tensor, dim: int, index: Tensor, src: Tensor, reduction: int, out: Tensor) -> None:
    """`self` with elements of `src` written, added (1) or multiplied (2) at `index`."""
    if reduction == 0:
        into(torch.scatter, out, self, dim, index, src)
    elif reduction in _REDUCE:
        into(torch.scatter_reduce, out, self, dim, index, src, _REDUCE[reduction])
    else:
        raise Unsupported("reduction", reduction, "0 none, 1 add, 2 multiply")


@op("ScatterAdd")
def scatter_add(self: Tensor, dim: int, index: Tensor, src: Tensor, out: Tensor) -> None:
    """`self` with elements of `src` added at `index`."""
    into(torch.scatter_add, out, self, dim, index, src)
