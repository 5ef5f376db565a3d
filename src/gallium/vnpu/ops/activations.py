"""Activation functions."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._C import _nn as nn

from gallium.vnpu.checks import check_floating
from gallium.vnpu.ops._factories import (
    Number,
    binary,
    binary_inplace,
    register_all,
    ternary,
    ternary_inplace,
    unary,
    unary_inplace,
)
from gallium.vnpu.registry import Unsupported, op
from gallium.vnpu.writing import into, write

GELU_MODES = {0: "none", 1: "tanh"}
FAST_GELU_SLOPE = 1.702

register_all({"Hardsigmoid": nn.hardsigmoid, "Hardswish": nn.hardswish, "Mish": nn.mish}, unary)
register_all({"Hardsigmoid": nn.hardsigmoid, "Hardswish": nn.hardswish, "Mish": nn.mish}, unary_inplace, "Inplace")
register_all({"Silu": nn.silu}, unary)
register_all({"Glu": nn.glu, "Hardshrink": torch.hardshrink, "Softshrink": nn.softshrink}, binary)
register_all({"LeakyRelu": nn.leaky_relu}, binary)
register_all({"LeakyRelu": nn.leaky_relu}, binary_inplace, "Inplace")
register_all({"Hardtanh": nn.hardtanh, "Softplus": nn.softplus, "Threshold": torch.threshold}, ternary)
register_all({"Hardtanh": nn.hardtanh, "Threshold": torch.threshold}, ternary_inplace, "Inplace")


@op("Relu")
def relu(self: Tensor, out: Tensor) -> None:
    """max(0, self)."""
    into(torch.clamp_min, out, self, 0)


@op("InplaceRelu")
def relu_inplace(self: Tensor) -> None:
    """Relu in place."""
    self.relu_()


@op("Gelu")
def gelu(self: Tensor, out: Tensor) -> None:
    """The approximation by tanh: torch_npu calls this whatever `approximate` says (op-plugin's npu_gelu page)."""
    into(nn.gelu, out, self, approximate="tanh")


@op("GeluV2")
def gelu_v2(self: Tensor, approximate: int, out: Tensor) -> None:
    """Gelu: 0 exact, 1 by tanh (op-plugin, npu_gelu_approximate_mode)."""
    if approximate not in GELU_MODES:
        raise Unsupported("approximate", approximate, "0 and 1")
    into(nn.gelu, out, self, approximate=GELU_MODES[approximate])


@op("FastGelu")
def fast_gelu(self: Tensor, out: Tensor) -> None:
    """self * sigmoid(1.702 * self) (op-plugin's npu_fast_gelu page; the 910B family)."""
    write(out, torch.sigmoid(self.float() * FAST_GELU_SLOPE).mul_(self))


@op("Elu")
def elu(self: Tensor, alpha: Number, scale: Number, input_scale: Number, out: Tensor) -> None:
    """scale * (self if positive, else alpha * (exp(input_scale * self) - 1))."""
    into(nn.elu, out, self, alpha, scale, input_scale)


@op("InplaceElu")
def elu_inplace(self: Tensor, alpha: Number, scale: Number, input_scale: Number) -> None:
    """Elu in place."""
    into(nn.elu, self, self, alpha, scale, input_scale)


@op("Celu")
def celu(self: Tensor, alpha: float, out: Tensor) -> None:
    """self if positive, else alpha * (exp(self / alpha) - 1)."""
    into(nn.elu, out, self, alpha, 1.0, 1.0 / alpha)


@op("InplaceCelu")
def celu_inplace(self: Tensor, alpha: float) -> None:
    """Celu in place."""
    into(nn.elu, self, self, alpha, 1.0, 1.0 / alpha)


@op("LogSigmoidForward", unused={"buffer": "PyTorch's CPU kernel keeps exp(-|x|) there; the NPU's has no elements"})
def log_sigmoid(self: Tensor, out: Tensor, buffer: Tensor) -> None:
    """log(sigmoid(self))."""
    into(nn.log_sigmoid, out, self)


@op("Logit")
def logit(self: Tensor, eps: float, out: Tensor) -> None:
    """log(x / (1 - x)), with x limited to eps .. 1 - eps unless eps is negative."""
    check_floating("self", self)  # op-plugin gives the output the type of self
    into(torch.logit, out, self, None if eps < 0 else eps)


@op("Prelu")
def prelu(self: Tensor, weight: Tensor, out: Tensor) -> None:
    """self if positive, else weight * self."""
    write(out, torch._prelu_kernel(self, weight))
