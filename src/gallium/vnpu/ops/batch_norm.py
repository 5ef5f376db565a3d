"""Batch normalisation, its gradient, and the parts of it that synchronise over processes."""

from __future__ import annotations

import torch
from torch import Tensor

from gallium.vnpu.checks import check_dims
from gallium.vnpu.precision import wide
from gallium.vnpu.registry import op
from gallium.vnpu.writing import write


@op("BatchNorm")
def batch_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    out: Tensor,
    save_mean: Tensor,
    save_invstd: Tensor,
) -> None:
    """torch.native_batch_norm, which updates running_mean and running_var in training.

    Without training PyTorch has no save_mean and save_invstd; torch_npu has outputs, which nothing reads: zero.
    """
    running = wide(running_mean), wide(running_var)
    y, mean, invstd = torch.native_batch_norm(wide(x), wide(weight), wide(bias), *running, training, momentum, eps)
    write(out, y)
    if not training:
        save_mean.zero_()
        save_invstd.zero_()
        return
    write(save_mean, mean)
    write(save_invstd, invstd)
    for kept, updated in zip((running_mean, running_var), running, strict=True):
        if kept is not None and updated is not None and kept is not updated:
            kept.copy_(updated)


@op("BatchNormBackward")
def batch_norm_backward(
    grad_out: Tensor,
    x: Tensor,
    weight: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    save_mean: Tensor | None,
    save_invstd: Tensor | None,
    training: bool,
    eps: float,
    output_mask: tuple[bool, ...],
    grad_input: Tensor | None,
    grad_weight: Tensor | None,
    grad_bias: Tensor | None,
) -> None:
    """The gradients that output_mask asks for; those of weight and bias in float32."""
    known = map(wide, (weight, running_mean, running_var, save_mean, save_invstd))
    grads = torch.ops.aten.native_batch_norm_backward(wide(grad_out), wide(x), *known, training, eps, list(output_mask))
    for wanted, out, value in zip(output_mask, (grad_input, grad_weight, grad_bias), grads, strict=True):
        if wanted and out is not None:
            write(out, value)


@op("BatchNormStats")
def batch_norm_stats(x: Tensor, eps: float, mean: Tensor, invstd: Tensor) -> None:
    """Mean and 1 / sqrt(variance + eps) of each channel, in float32."""
    variance, average = torch.var_mean(x.float(), _all_but_channels(x), correction=0)
    write(mean, average)
    write(invstd, variance.add_(eps).rsqrt_())


@op("BatchNormElemt", unused={"eps": "it is in invstd already, as in PyTorch's own kernel"})
def batch_norm_elemt(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, invstd: Tensor, eps: float, out: Tensor
) -> None:
    """(x - mean) * invstd * weight + bias."""
    y = _centred(x, mean).mul_(_per_channel(invstd, x))
    if weight is not None:
        y.mul_(_per_channel(weight, x))
    if bias is not None:
        y.add_(_per_channel(bias, x))
    write(out, y)


@op("BatchNormElemtBackward")
def batch_norm_elemt_backward(
    grad_out: Tensor,
    x: Tensor,
    mean: Tensor,
    invstd: Tensor,
    weight: Tensor | None,
    sum_dy: Tensor,
    sum_dy_xmu: Tensor,
    count: Tensor,
    out: Tensor,
) -> None:
    """The gradient of the input from the sums of all processes; count has the elements of a channel of each process."""
    total, scale = count.sum().float(), invstd.float()
    slope = _per_channel(scale.square() * sum_dy_xmu / total, x)
    grad = grad_out.float() - _per_channel(sum_dy / total, x) - _centred(x, mean).mul_(slope)
    write(out, grad.mul_(_per_channel(scale if weight is None else scale * weight, x)))


@op("BatchNormReduce")
def batch_norm_reduce(x: Tensor, total: Tensor, square_total: Tensor) -> None:
    """The sums of the elements and of their squares, for each channel."""
    check_dims("self", x, 2, 8)
    dims, values = _all_but_channels(x), x.float()
    write(total, values.sum(dims))
    write(square_total, values.square().sum(dims))


@op("BatchNormReduceBackward")
def batch_norm_reduce_backward(
    grad_out: Tensor,
    x: Tensor,
    mean: Tensor,
    invstd: Tensor,
    weight: Tensor | None,
    input_g: bool,
    weight_g: bool,
    bias_g: bool,
    sum_dy: Tensor | None,
    sum_dy_xmu: Tensor | None,
    grad_weight: Tensor | None,
    grad_bias: Tensor | None,
) -> None:
    """This process's sums for BatchNormElemtBackward, and the gradients of weight and bias."""
    dims, dy = _all_but_channels(x), grad_out.float()
    total, moment = dy.sum(dims), (dy * _centred(x, mean)).sum(dims)
    has_weight = weight is not None
    outputs = [
        (input_g, sum_dy, total),
        (input_g, sum_dy_xmu, moment),
        (weight_g and has_weight, grad_weight, moment * invstd),
        (bias_g, grad_bias, total),
    ]
    for wanted, out, value in outputs:
        if wanted and out is not None:
            write(out, value)


@op("BatchNormGatherStatsWithCounts")
def batch_norm_gather_stats_with_counts(
    x: Tensor,
    mean: Tensor,
    invstd: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
    counts: Tensor,
    all_mean: Tensor,
    all_invstd: Tensor,
) -> None:
    """The statistics of all processes together, from mean and invstd [processes, channels] and counts [processes]."""
    check_dims("input", x, 2, 8)
    weights = counts.float().reshape(-1, 1)
    total, means = weights.sum(), mean.float()
    average = (means * weights).sum(0) / total
    squares = ((invstd.float().reciprocal().square() - eps + (means - average).square()) * weights).sum(0)
    write(all_mean, average)
    write(all_invstd, (squares / total + eps).rsqrt())
    _update_running(running_mean, average, momentum)
    _update_running(running_var, squares / (total - 1), momentum)


@op("SyncBatchNormGatherStats")
def sync_batch_norm_gather_stats(
    total: Tensor,
    square_total: Tensor,
    counts: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    momentum: float,
    eps: float,
    batch_mean: Tensor,
    batch_invstd: Tensor,
) -> None:
    """Statistics from the sums of all processes, [processes, channels].

    The running variance is not corrected for bias, unlike PyTorch's: op-plugin's test_batchnorm_gather_stats_update.
    """
    count = counts.sum()
    average = total.float().sum(0) / count
    variance = square_total.float().sum(0) / count - average.square()
    write(batch_mean, average)
    write(batch_invstd, (variance + eps).rsqrt())
    _update_running(running_mean, average, momentum)
    _update_running(running_var, variance, momentum)


def _update_running(running: Tensor | None, value: Tensor, momentum: float) -> None:
    if running is not None:
        running.copy_(running.float() * (1 - momentum) + value * momentum)


def _all_but_channels(x: Tensor) -> tuple[int, ...]:
    return (0, *range(2, x.dim()))


def _per_channel(values: Tensor, x: Tensor) -> Tensor:
    return values.view(-1, *(1 for _ in range(x.dim() - 2)))


def _centred(x: Tensor, mean: Tensor) -> Tensor:
    return x.float() - _per_channel(mean, x)
