"""Batch normalisation in the steps of CANN's older interface: sums, update, and the same two for the gradient.

"batch_variance" is the variance and not its inverse root: op-plugin passes the running variance in its place.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gallium.vnpu.aclop import aclop
from gallium.vnpu.precision import wide
from gallium.vnpu.writing import write


@aclop("BNTrainingReduce", "BN3DTrainingReduce", unused={"epsilon": "sums have no use for it"})
def reduce(sum: Tensor, square_sum: Tensor, /, x: Tensor, *, epsilon: float = 0.0) -> None:
    """The sums of each channel's values and of their squares."""
    values = wide(x)
    write(sum, values.sum(_others(x)))
    write(square_sum, (values * values).sum(_others(x)))


@aclop("BNTrainingUpdate", "BN3DTrainingUpdate")
def update(
    y: Tensor,
    mean_out: Tensor,
    variance_out: Tensor,
    batch_mean: Tensor,
    batch_variance: Tensor,
    /,
    x: Tensor,
    sum: Tensor,
    square_sum: Tensor,
    scale: Tensor,
    offset: Tensor,
    mean: Tensor,
    variance: Tensor,
    *,
    epsilon: float,
    factor: float,
) -> None:
    """The normalised x, and the running mean and (unbiased) variance, of which `factor` is renewed."""
    count = x.numel() // x.shape[1]
    new_mean = sum / count
    new_variance = (square_sum / count - new_mean * new_mean).clamp_(min=0.0)
    write(y, _normalised(x, new_mean, new_variance, epsilon) * _column(scale, x) + _column(offset, x))
    unbiased = new_variance * (count / max(count - 1, 1))
    write(mean_out, torch.lerp(wide(mean), new_mean, factor))
    write(variance_out, torch.lerp(wide(variance), unbiased, factor))
    write(batch_mean, new_mean)
    write(batch_variance, new_variance)


@aclop("BNInfer")
def infer(
    y: Tensor, /, x: Tensor, scale: Tensor, offset: Tensor, mean: Tensor, variance: Tensor, *, epsilon: float
) -> None:
    """Normalisation by the running statistics."""
    write(y, _normalised(x, mean, variance, epsilon) * _column(scale, x) + _column(offset, x))


@aclop("BNTrainingUpdateGrad", "BN3DTrainingUpdateGrad")
def update_grad(
    diff_scale: Tensor,
    diff_offset: Tensor,
    /,
    grads: Tensor,
    x: Tensor,
    batch_mean: Tensor,
    batch_variance: Tensor,
    *,
    epsilon: float,
) -> None:
    """The gradients of scale and offset."""
    normalised = _normalised(x, batch_mean, batch_variance, epsilon)
    write(diff_scale, (wide(grads) * normalised).sum(_others(x)))
    write(diff_offset, wide(grads).sum(_others(x)))


@aclop("BNTrainingReduceGrad", "BN3DTrainingReduceGrad")
def reduce_grad(
    y: Tensor,
    /,
    grads: Tensor,
    x: Tensor,
    diff_scale: Tensor,
    diff_offset: Tensor,
    scale: Tensor,
    batch_mean: Tensor,
    batch_variance: Tensor,
    *,
    epsilon: float,
) -> None:
    """The gradient of x in training."""
    count = x.numel() // x.shape[1]
    normalised = _normalised(x, batch_mean, batch_variance, epsilon)
    common = (_column(diff_offset, x) + normalised * _column(diff_scale, x)) / count
    write(y, (wide(grads) - common) * _column(wide(scale) * (wide(batch_variance) + epsilon).rsqrt(), x))


@aclop("BNInferGrad")
def infer_grad(x_backprop: Tensor, /, grads: Tensor, scale: Tensor, batch_variance: Tensor, *, epsilon: float) -> None:
    """The gradient of x in evaluation."""
    write(x_backprop, wide(grads) * _column(wide(scale) * (wide(batch_variance) + epsilon).rsqrt(), grads))


def _others(x: Tensor) -> list[int]:
    """All dimensions but that of the channels."""
    return [0, *range(2, x.dim())]


def _column(values: Tensor, x: Tensor) -> Tensor:
    """A value for each channel, to be broadcast over x."""
    return wide(values).view(-1, *[1] * (x.dim() - 2))


def _normalised(x: Tensor, mean: Tensor, variance: Tensor, epsilon: float) -> Tensor:
    return (wide(x) - _column(mean, x)) * _column((wide(variance) + epsilon).rsqrt(), x)
