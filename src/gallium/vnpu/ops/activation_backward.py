"""Gradients of activation functions: PyTorch's own formulas, written into the output."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gallium.vnpu.ops._factories import Function, Number, binary, register_all, ternary
from gallium.vnpu.ops.activations import FAST_GELU_SLOPE
from gallium.vnpu.registry import Unsupported, op
from gallium.vnpu.writing import into, write

aten = torch.ops.aten


def _to_out(overload: Any) -> Function:
    """An overload whose output is called grad_input, with the usual name."""

    def function(*args: Any, out: Tensor, **keywords: Any) -> None:
        overload(*args, grad_input=out, **keywords)

    return function


_elu = _to_out(aten.elu_backward.grad_input)
_gelu = _to_out(aten.gelu_backward.grad_input)
_hardtanh = _to_out(aten.hardtanh_backward.grad_input)
_leaky_relu = _to_out(aten.leaky_relu_backward.grad_input)
_logit = _to_out(aten.logit_backward.grad_input)
_softplus = _to_out(aten.softplus_backward.grad_input)

register_all(
    {  # (grad_output, self or output, grad_input)
        "HardsigmoidBackward": _to_out(aten.hardsigmoid_backward.grad_input),
        "HardswishBackward": aten.hardswish_backward.out,
        "HardswishBackwardV2": aten.hardswish_backward.out,
        "SigmoidBackward": _to_out(aten.sigmoid_backward.grad_input),
        "SiluBackward": _to_out(aten.silu_backward.grad_input),
        "TanhBackward": _to_out(aten.tanh_backward.grad_input),
    },
    binary,
)
register_all(
    {  # (grad_output, self, number, grad_input)
        "GluBackward": _to_out(aten.glu_backward.grad_input),
        "HardshrinkBackward": _to_out(aten.hardshrink_backward.grad_input),
        "SoftshrinkBackward": _to_out(aten.softshrink_backward.grad_input),
        "ThresholdBackward": _to_out(aten.threshold_backward.grad_input),
    },
    ternary,
)


@op("MishBackward")
def mish(grad_output: Tensor, self: Tensor, grad_input: Tensor) -> None:
    """Of Mish."""
    write(grad_input, aten.mish_backward.default(grad_output, self))


@op("GeluBackward")
def gelu(grad_output: Tensor, self: Tensor, grad_input: Tensor) -> None:
    """Of Gelu, which is the approximation by tanh."""
    into(_gelu, grad_input, grad_output, self, approximate="tanh")


@op("GeluBackwardV2")
def gelu_v2(grad_output: Tensor, self: Tensor, approximate: str, grad_input: Tensor) -> None:
    """Of GeluV2."""
    if approximate not in ("none", "tanh"):
        raise Unsupported("approximate", approximate, "none, tanh")
    into(_gelu, grad_input, grad_output, self, approximate=approximate)


@op("FastGeluBackward")
def fast_gelu(grad: Tensor, self: Tensor, grad_input: Tensor) -> None:
    """Of FastGelu: with s = sigmoid(1.702 x), s + 1.702 x s (1 - s)."""
    x = self.float()
    gate = torch.sigmoid(x * FAST_GELU_SLOPE)
    write(grad_input, gate.addcmul(x * gate, 1 - gate, value=FAST_GELU_SLOPE).mul_(grad))


@op("EluBackward")
def elu(
    grad_output: Tensor,
    alpha: Number,
    scale: Number,
    input_scale: Number,
    is_result: bool,
    self_or_result: Tensor,
    grad_input: Tensor,
) -> None:
    """Of Elu, from its input or its result."""
    into(_elu, grad_input, grad_output, alpha, scale, input_scale, is_result, self_or_result)


@op("HardtanhBackward")
def hardtanh(grad_output: Tensor, self: Tensor, low: Number, high: Number, grad_input: Tensor) -> None:
    """Of Hardtanh."""
    into(_hardtanh, grad_input, grad_output, self, low, high)


@op("LeakyReluBackward")
def leaky_relu(
    grad_output: Tensor, self: Tensor, negative_slope: Number, self_is_result: bool, grad_input: Tensor
) -> None:
    """Of LeakyRelu, from its input or its result."""
    into(_leaky_relu, grad_input, grad_output, self, negative_slope, self_is_result)


@op("SoftplusBackward")
def softplus(grad_output: Tensor, self: Tensor, beta: Number, threshold: Number, grad_input: Tensor) -> None:
    """Of Softplus."""
    into(_softplus, grad_input, grad_output, self, beta, threshold)


@op("LogSigmoidBackward", unused={"buffer": "has no elements on the NPU: see LogSigmoidForward"})
def log_sigmoid(grad_output: Tensor, self: Tensor, buffer: Tensor, grad_input: Tensor) -> None:
    """Of LogSigmoidForward: sigmoid(-self)."""
    write(grad_input, torch.sigmoid(-self).mul_(grad_output))


@op("LogitGrad")
def logit(self: Tensor, grad_output: Tensor, eps: float, grad_input: Tensor) -> None:
    """Of Logit."""
    into(_logit, grad_input, grad_output, self, None if eps < 0 else eps)


@op("PreluBackward")
def prelu(grad_output: Tensor, self: Tensor, weight: Tensor, grad_input: Tensor, grad_weight: Tensor) -> None:
    """Of Prelu; the weight has one element for each channel (dimension 1), or one for all."""
    channels = [1] * self.dim()
    if weight.numel() != 1:
        channels[1] = weight.numel()
    by_input, by_weight = aten._prelu_kernel_backward.default(grad_output, self, weight.reshape(channels))
    write(grad_input, by_input)
    write(grad_weight, by_weight.sum_to_size(channels).reshape(grad_weight.shape))
