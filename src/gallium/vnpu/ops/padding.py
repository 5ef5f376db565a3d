"""Padding: with a constant, by reflection, by replication."""

from __future__ import annotations

from torch import Tensor

from gallium.vnpu.registry import Illegal, op

Number = bool | int | float | complex


@op("ConstantPadNd")
def constant_pad_nd(self: Tensor, pad: tuple[int, ...], value: Number, out: Tensor) -> None:
    """`pad` holds (before, after) for the last dimension first; negative numbers cut."""
    target, source = out, self
    wanted = list(self.shape)
    for i in range(len(pad) // 2):
        dim = self.dim() - 1 - i
        before, after = pad[2 * i], pad[2 * i + 1]
        wanted[dim] += before + after
        source = source.narrow(dim, max(-before, 0), self.shape[dim] + min(before, 0) + min(after, 0))
        target = target.narrow(dim, max(before, 0), out.shape[dim] - max(before, 0) - max(after, 0))
    if list(out.shape) != wanted:
        raise Illegal("the output's shape", list(out.shape), f"{wanted}")
    if target.shape != out.shape:
        out.fill_(value)
    target.copy_(source)
