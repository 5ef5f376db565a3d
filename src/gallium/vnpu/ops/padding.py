"""Padding: with a constant, by reflection, by replication; and gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gallium.vnpu.registry import Illegal, op, register
from gallium.vnpu.writing import into

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


def _pad(name: str, function: Callable[..., Any]) -> None:
    def body(self: Tensor, padding: tuple[int, ...], out: Tensor) -> None:
        into(function, out, self, padding)

    register(name, body)


def _pad_backward(name: str, function: Callable[..., Any]) -> None:
    def body(grad_output: Tensor, self: Tensor, padding: tuple[int, ...], grad_input: Tensor) -> None:
        shape = grad_input.shape
        function(grad_output, self, padding, grad_input=grad_input)
        if grad_input.shape != shape:
            raise Illegal("grad_output's shape", list(grad_output.shape), "that of self with its padding")

    register(name, body)


for _kind in ("reflection", "replication"):
    for _n in (1, 2, 3):
        _name = f"{_kind.capitalize()}Pad{_n}d"
        _pad(_name, getattr(torch.ops.aten, f"{_kind}_pad{_n}d").out)
        _pad_backward(f"{_name}Backward", getattr(torch.ops.aten, f"{_kind}_pad{_n}d_backward").grad_input)
