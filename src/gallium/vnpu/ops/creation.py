"""New tensors from numbers: Arange, Range, Linspace, LogSpace, Eye, OneHot."""

from __future__ import annotations

import torch
from torch import Tensor

from gallium.vnpu.registry import Illegal, op
from gallium.vnpu.writing import into

Real = bool | int | float
Number = Real | complex


@op("Arange")
def arange(start: Number, end: Number, step: Number, out: Tensor) -> None:
    """Numbers from start up to, and without, end."""
    into(torch.arange, out, start, end, step)


@op("Range")
def range_(start: Real, end: Real, step: Real, out: Tensor) -> None:
    """Numbers from start up to, and with, end."""
    if out.numel() != int((end - start) / step + 1):
        raise Illegal("the output's length", out.numel(), f"that of the range from {start} to {end} by {step}")
    wide = torch.float64 if out.is_floating_point() else torch.int64
    out.copy_(torch.arange(out.numel(), dtype=wide).mul_(step).add_(start).view_as(out))


@op("Linspace")
def linspace(start: Number, end: Number, steps: int, out: Tensor) -> None:
    """`steps` numbers at equal distances from start to end."""
    into(torch.linspace, out, start, end, steps)


@op("LogSpace")
def log_space(start: Number, end: Number, steps: int, base: float, out: Tensor) -> None:
    """`base` to the power of the numbers of Linspace."""
    into(torch.logspace, out, start, end, steps, base)


@op("Eye")
def eye(n: int, m: int, out: Tensor) -> None:
    """Ones on the diagonal, zeros elsewhere."""
    if out.shape != (n, m):
        raise Illegal("the output's shape", list(out.shape), f"[{n}, {m}]")
    out.zero_()
    out.diagonal().fill_(1)


@op("OneHot")
def one_hot(self: Tensor, depth: int, on_value: Tensor, off_value: Tensor, axis: int, out: Tensor) -> None:
    """`on_value` at the place along the new dimension `axis` that each number says, `off_value` elsewhere.

    A number outside 0 to depth - 1 leaves its row without `on_value`.
    """
    axis %= self.dim() + 1
    if out.shape != (*self.shape[:axis], depth, *self.shape[axis:]):
        raise Illegal("the output's shape", list(out.shape), f"that of self with {depth} at dimension {axis}")
    places = torch.arange(depth).view(depth, *(1,) * (self.dim() - axis))
    torch.where(self.unsqueeze(axis) == places, on_value.reshape(()), off_value.reshape(()), out=out)
