"""Activation functions."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._C import _nn as nn

from gallium.vnpu.ops._factories import (
    binary,
    binary_inplace,
    register_all,
    ternary,
    ternary_inplace,
    unary,
    unary_inplace,
)
from gallium.vnpu.registry import op, register
from gallium.vnpu.writing import into

BOTH = {
    "Hardsigmoid": nn.hardsigmoid,
    "Hardswish": nn.hardswish,
    "Mish": nn.mish,
}

register_all(BOTH, unary)
register_all(BOTH, unary_inplace, prefix="Inplace")
register_all({"Gelu": nn.gelu, "Silu": nn.silu}, unary)
register_all({"Hardshrink": torch.hardshrink, "LeakyRelu": nn.leaky_relu, "Softshrink": nn.softshrink}, binary)
register("InplaceLeakyRelu", binary_inplace(nn.leaky_relu))
register_all({"Hardtanh": nn.hardtanh, "Softplus": nn.softplus, "Threshold": torch.threshold}, ternary)
register_all({"Hardtanh": nn.hardtanh, "Threshold": torch.threshold}, ternary_inplace, prefix="Inplace")


@op("Relu")
def relu(self: Tensor, out: Tensor) -> None:
    """max(0, self)."""
    into(torch.clamp_min, out, self, 0)


@op("InplaceRelu")
def relu_inplace(self: Tensor) -> None:
    """Relu in place."""
    self.relu_()
