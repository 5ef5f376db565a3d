"""Distances between rows."""

from __future__ import annotations

import torch
from torch import Tensor

from gallium.vnpu.precision import wide
from gallium.vnpu.registry import op
from gallium.vnpu.writing import write

INFINITE = -1.0  # how torch_npu writes p = inf for CdistBackward


@op("Cdist")
def cdist(x1: Tensor, x2: Tensor, p: float, mode: int, out: Tensor) -> None:
    """torch.cdist; mode says when the Euclidean distance may be had from a matrix product, 0 for large inputs."""
    write(out, torch.ops.aten._cdist_forward(wide(x1), wide(x2), p, mode or None))


@op("CdistBackward")
def cdist_backward(grad: Tensor, x1: Tensor, x2: Tensor, distances: Tensor, p: float, out: Tensor) -> None:
    """The gradient of x1."""
    power = torch.inf if p == INFINITE else p
    write(out, torch.ops.aten._cdist_backward(wide(grad), wide(x1), wide(x2), power, wide(distances)))


@op("Pdist")
def pdist(x: Tensor, p: float, out: Tensor) -> None:
    """torch.nn.functional.pdist."""
    write(out, torch.ops.aten._pdist_forward(wide(x), p))
