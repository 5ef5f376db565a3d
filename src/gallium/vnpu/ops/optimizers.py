"""Optimiser steps and gradient scaling."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gallium.vnpu.registry import Illegal, op

Tensors = tuple[Tensor, ...]
HALVES = (torch.float16, torch.bfloat16)


@op("AmpUpdateScale")
def amp_update_scale(
    scale: Tensor,
    tracker: Tensor,
    found_inf: Tensor,
    growth_factor: float,
    backoff_factor: float,
    growth_interval: int,
    out_scale: Tensor,
    out_tracker: Tensor,
) -> None:
    """The next loss scale: less after an overflow, more after many steps without one."""
    if out_scale is not scale:
        out_scale.copy_(scale)
    if out_tracker is not tracker:
        out_tracker.copy_(tracker)
    torch._amp_update_scale_(out_scale, out_tracker, found_inf, growth_factor, backoff_factor, growth_interval)


def dense_copies(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors as PyTorch's fused CPU kernels want them: they walk through memory and know one type at a time."""
    return [x.to(torch.float32 if x.dtype in HALVES else x.dtype).contiguous() for x in tensors]


def write_back(tensors: Sequence[Tensor], copies: Sequence[Tensor]) -> None:
    """Copy what the kernel changed to where it belongs."""
    for tensor, copy in zip(tensors, copies, strict=True):
        if copy is not tensor:
            tensor.copy_(copy)


@op("ApplyAdamWV2")
def adamw_step(
    self: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    max_exp_avg_sq: Tensor | None,
    grad: Tensor,
    step: Tensor,
    lr: float,
    beta1: float,
    beta2: float,
    weight_decay: float,
    eps: float,
    amsgrad: bool,
    maximize: bool,
) -> None:
    """One step of AdamW; `step` counts those before it (op-plugin, FusedAdamWKernelNpuOpApi)."""
    if amsgrad and max_exp_avg_sq is None:
        raise Illegal("max_exp_avg_sq", None, "given when amsgrad is on")
    states = [self, exp_avg, exp_avg_sq, *([max_exp_avg_sq] if amsgrad and max_exp_avg_sq is not None else [])]
    copies = dense_copies([*states, grad])
    torch._fused_adamw_(
        copies[:1],
        copies[-1:],
        copies[1:2],
        copies[2:3],
        copies[3:-1],
        [step.float() + 1],
        lr=lr,
        beta1=beta1,
        beta2=beta2,
        weight_decay=weight_decay,
        eps=eps,
        amsgrad=amsgrad,
        maximize=maximize,
    )
    write_back(states, copies[:-1])


@op("FusedAdam")
def fused_adam(
    params: Tensors,
    grads: Tensors,
    exp_avgs: Tensors,
    exp_avg_sqs: Tensors,
    max_exp_avg_sqs: Tensors,
    steps: Tensors,
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
    lr: float,
    beta1: float,
    beta2: float,
    weight_decay: float,
    eps: float,
    amsgrad: bool,
    maximize: bool,
) -> None:
    """One step of Adam for many parameters; `steps` count those before it, as in ApplyAdamWV2.

    Without amsgrad torch_npu passes zeros as the maxima, and they stay.
    """
    lists = [params, exp_avgs, exp_avg_sqs, *([max_exp_avg_sqs] if amsgrad else [])]
    copies = [dense_copies(states) for states in lists]
    torch._fused_adam_(
        copies[0],
        dense_copies(grads),
        copies[1],
        copies[2],
        copies[3] if amsgrad else [],
        [step.float() + 1 for step in steps],
        lr=lr,
        beta1=beta1,
        beta2=beta2,
        weight_decay=weight_decay,
        eps=eps,
        amsgrad=amsgrad,
        maximize=maximize,
        grad_scale=grad_scale,
        found_inf=found_inf,
    )
    for states, results in zip(lists, copies, strict=True):
        write_back(states, results)


@op("FusedSgd")
def fused_sgd(
    params: Tensors,
    grads: Tensors,
    momentum_buffers: Tensors,
    grad_scale: Tensor | None,
    weight_decay: float,
    momentum: float,
    lr: float,
    dampening: float,
    nesterov: bool,
    maximize: bool,
    is_first_step: bool,
) -> None:
    """One step of SGD for many parameters (op-plugin, test_fused_sgd: as torch._fused_sgd_)."""
    weights, buffers = dense_copies(params), dense_copies(momentum_buffers)
    torch._fused_sgd_(
        weights,
        dense_copies(grads),
        buffers,
        weight_decay=weight_decay,
        momentum=momentum,
        lr=lr,
        dampening=dampening,
        nesterov=nesterov,
        maximize=maximize,
        is_first_step=is_first_step,
        grad_scale=grad_scale,
    )
    write_back(params, weights)
    write_back(momentum_buffers, buffers)


@op("ApplyAdamW")
def adamw(
    var: Tensor,
    m: Tensor,
    v: Tensor,
    beta1_power: Tensor,
    beta2_power: Tensor,
    lr: Tensor,
    weight_decay: Tensor,
    beta1: Tensor,
    beta2: Tensor,
    epsilon: Tensor,
    grad: Tensor,
    max_grad_norm: Tensor | None,
    amsgrad: bool,
    maximize: bool,
) -> None:
    """One step of AdamW, with the powers of the steps before it (op-plugin, test_npu_apply_adam_w)."""
    if amsgrad and max_grad_norm is None:
        raise Illegal("max_grad_norm", None, "given when amsgrad is on")
    gradient = -grad if maximize else grad
    b1, b2 = beta1.item(), beta2.item()
    var.mul_(1 - lr.item() * weight_decay.item())
    m.lerp_(gradient, 1 - b1)
    v.mul_(b2).addcmul_(gradient, gradient, value=1 - b2)
    largest = v
    if amsgrad and max_grad_norm is not None:
        largest = torch.maximum(max_grad_norm, v)
        max_grad_norm.copy_(largest)
    denominator = (largest / (1 - beta2_power.item() * b2)).sqrt_().add_(epsilon.item())
    var.addcdiv_(m, denominator, value=-lr.item() / (1 - beta1_power.item() * b1))


@op("ApplyAdam", unused={"use_locking": "asks for a lock against other writers; operators of one stream run in order"})
def adam(
    var: Tensor,
    m: Tensor,
    v: Tensor,
    beta1_power: Tensor,
    beta2_power: Tensor,
    lr: Tensor,
    beta1: Tensor,
    beta2: Tensor,
    epsilon: Tensor,
    grad: Tensor,
    use_locking: bool,
    use_nesterov: bool,
) -> None:
    """One step of Adam, with the powers of this step (op-plugin's npu_apply_adam page)."""
    b1, b2 = beta1.item(), beta2.item()
    rate = lr.item() * (1 - beta2_power.item()) ** 0.5 / (1 - beta1_power.item())
    m.lerp_(grad, 1 - b1)
    v.mul_(b2).addcmul_(grad, grad, value=1 - b2)
    direction = m * b1 + grad * (1 - b1) if use_nesterov else m
    var.addcdiv_(direction, v.sqrt().add_(epsilon.item()), value=-rate)
