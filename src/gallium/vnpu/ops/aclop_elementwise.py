"""Activations, distances and rotary embeddings through CANN's older interface."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gallium.vnpu.aclop import aclop
from gallium.vnpu.precision import wide
from gallium.vnpu.refusals import Unsupported
from gallium.vnpu.writing import into, write

INFINITE = -1.0  # how op-plugin passes the norm p = inf


@aclop("LeakyRelu")
def leaky_relu(out: Tensor, /, x: Tensor, *, negative_slope: float) -> None:
    """torch.nn.functional.leaky_relu."""
    into(torch.ops.aten.leaky_relu, out, x, negative_slope)


@aclop("LeakyReluGrad")
def leaky_relu_grad(out: Tensor, /, gradients: Tensor, features: Tensor, *, negative_slope: float) -> None:
    """The gradient of LeakyRelu."""
    write(out, torch.where(features > 0, gradients, gradients * negative_slope))


@aclop("Relu")
def relu(out: Tensor, /, x: Tensor) -> None:
    """torch.relu."""
    into(torch.clamp_min, out, x, 0)


@aclop("ReluGrad")
def relu_grad(out: Tensor, /, gradients: Tensor, features: Tensor) -> None:
    """The gradient of Relu, from its input or its output."""
    write(out, torch.where(features > 0, gradients, 0))


@aclop("SigmoidGrad")
def sigmoid_grad(out: Tensor, /, y: Tensor, dy: Tensor) -> None:
    """The gradient of Sigmoid, from its output."""
    write(out, wide(dy) * wide(y) * (1 - wide(y)))


@aclop("TanhGrad")
def tanh_grad(out: Tensor, /, y: Tensor, dy: Tensor) -> None:
    """The gradient of Tanh, from its output."""
    write(out, wide(dy) * (1 - wide(y).square()))


@aclop("ClipByValue")
def clip(out: Tensor, /, x: Tensor, low: Tensor, high: Tensor) -> None:
    """torch.clamp."""
    into(torch.clamp, out, x, low, high)


@aclop("Gelu")
def gelu(out: Tensor, /, x: Tensor) -> None:
    """torch.nn.functional.gelu, approximated by tanh (the same as aclnnGelu)."""
    write(out, torch.nn.functional.gelu(wide(x), approximate="tanh"))


@aclop("GeluGrad", unused={"y": "is the output, or anything: op-plugin passes dy once more"})
def gelu_grad(out: Tensor, /, dy: Tensor, x: Tensor, y: Tensor) -> None:
    """The gradient of Gelu."""
    write(out, torch.ops.aten.gelu_backward(wide(dy), wide(x), approximate="tanh"))


@aclop("SiluGrad")
def silu_grad(out: Tensor, /, dy: Tensor, x: Tensor) -> None:
    """The gradient of torch.nn.functional.silu."""
    write(out, torch.ops.aten.silu_backward(wide(dy), wide(x)))


@aclop("SoftmaxV2")
def softmax(out: Tensor, /, x: Tensor, *, axes: tuple[int, ...]) -> None:
    """torch.softmax."""
    write(out, wide(x).softmax(_one(axes)))


@aclop("SoftmaxGrad")
def softmax_grad(out: Tensor, /, softmax: Tensor, grad: Tensor, *, axes: tuple[int, ...]) -> None:
    """The gradient of SoftmaxV2, from its output."""
    probabilities = wide(softmax)
    write(out, torch.ops.aten._softmax_backward_data(wide(grad), probabilities, _one(axes), probabilities.dtype))


@aclop("SwishGrad", unused={"y": "is the output of Swish, which follows from x"})
def swish_grad(out: Tensor, /, dy: Tensor, x: Tensor, y: Tensor) -> None:
    """The gradient of Swish with the scale 1."""
    write(out, torch.ops.aten.silu_backward(wide(dy), wide(x)))


@aclop("Swish")
def swish(out: Tensor, /, x: Tensor, *, scale: float) -> None:
    """x * sigmoid(scale * x)."""
    values = wide(x)
    write(out, values * torch.sigmoid(values * scale))


@aclop("Mish")
def mish(out: Tensor, /, x: Tensor) -> None:
    """torch.nn.functional.mish."""
    write(out, torch.nn.functional.mish(wide(x)))


@aclop("MishGrad")
def mish_grad(out: Tensor, /, grad: Tensor, x: Tensor) -> None:
    """The gradient of Mish."""
    write(out, torch.ops.aten.mish_backward(wide(grad), wide(x)))


@aclop("CdistGrad")
def cdist_grad(out: Tensor, /, grad: Tensor, x1: Tensor, x2: Tensor, cdist: Tensor, *, p: float) -> None:
    """The gradient of torch.cdist to x1. All inputs are broadcast to [..., P, R, M]; out has the shape of x1."""
    difference = wide(x1) - wide(x2)
    distance, size = wide(cdist), difference.abs()
    if p in (INFINITE, math.inf):
        share = torch.where(size == distance, difference.sign(), 0.0)
    elif p == 0:
        share = torch.zeros_like(difference)
    elif p == 1:
        share = difference.sign()
    else:
        share = difference.sign() * size.pow(p - 1) / distance.pow(p - 1)
        share = share.masked_fill_((distance == 0) | ((size == 0) & (p < 1)), 0.0)
    write(out, (wide(grad) * share).sum(-2).sum_to_size(out.shape))


@aclop("RotaryMul")
def rotary_mul(y: Tensor, /, x: Tensor, r1: Tensor, r2: Tensor) -> None:
    """x * r1 + rotate_half(x) * r2."""
    write(y, wide(x) * wide(r1) + _rotated(wide(x)) * wide(r2))


@aclop("RotaryMulGrad")
def rotary_mul_grad(
    dx: Tensor,
    dr1: Tensor,
    dr2: Tensor,
    /,
    x: Tensor,
    r1: Tensor,
    r2: Tensor,
    dy: Tensor,
    *,
    need_backward: bool,
) -> None:
    """The gradients of RotaryMul; those of r1 and r2 only on `need_backward`, and zero otherwise."""
    grad, values = wide(dy), wide(x)
    write(dx, grad * wide(r1) - _rotated(grad * wide(r2)))
    if need_backward:
        write(dr1, (grad * values).sum_to_size(dr1.shape))
        write(dr2, (grad * _rotated(values)).sum_to_size(dr2.shape))
    else:
        dr1.zero_()
        dr2.zero_()


def _one(axes: tuple[int, ...]) -> int:
    if len(axes) != 1:
        raise Unsupported("axes", axes, "one dimension")
    return axes[0]


def _rotated(x: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat((-second, first), -1)
