"""Gradients of losses. Reduction 0 none, 1 mean, 2 sum; the gradient of a mean is divided by the number of elements."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gallium.vnpu.registry import op, register
from gallium.vnpu.writing import write

_aten = torch.ops.aten
_MEAN = 1


def _of_two(name: str, function: Callable[..., Any]) -> None:
    def body(grad_output: Tensor, self: Tensor, target: Tensor, reduction: int, grad_input: Tensor) -> None:
        write(grad_input, function(grad_output, self, target, reduction))

    register(name, body)


def _l1_loss_backward(grad_output: Tensor, self: Tensor, target: Tensor, reduction: int) -> Tensor:
    return _share(grad_output * torch.sign(self - target), reduction)


def _share(gradient: Tensor, reduction: int) -> Tensor:
    return gradient / gradient.numel() if reduction == _MEAN else gradient


_of_two("MseLossBackward", _aten.mse_loss_backward)
_of_two("L1LossBackward", _l1_loss_backward)
_of_two("SoftMarginLossBackward", _aten.soft_margin_loss_backward)


@op("SmoothL1LossBackward")
def smooth_l1_loss_backward(
    grad_output: Tensor, self: Tensor, target: Tensor, reduction: int, beta: float, grad_input: Tensor
) -> None:
    """Gradient of SmoothL1Loss."""
    write(grad_input, _aten.smooth_l1_loss_backward(grad_output, self, target, reduction, beta))


@op("KlDivBackward")
def kl_div_backward(
    grad_output: Tensor, self: Tensor, target: Tensor, reduction: int, log_target: bool, grad_input: Tensor
) -> None:
    """Gradient of KlDiv with respect to the input."""
    probability = torch.exp(target) if log_target else target
    gradient = _share(-probability * grad_output + torch.zeros_like(self), reduction)
    write(grad_input, gradient.sum_to_size(self.shape))


@op("KlDivTargetBackward")
def kl_div_target_backward(
    grad_output: Tensor, self: Tensor, target: Tensor, reduction: int, log_target: bool, grad_target: Tensor
) -> None:
    """Gradient of KlDiv with respect to the target; 0 where a target is 0."""
    if log_target:
        gradient = torch.exp(target) * (target + 1 - self)
    else:
        gradient = torch.where(target == 0, 0, torch.log(target) + 1 - self)
    write(grad_target, _share(gradient * grad_output, reduction).sum_to_size(target.shape))


@op("BinaryCrossEntropyBackward")
def binary_cross_entropy_backward(
    grad_output: Tensor, self: Tensor, target: Tensor, weight: Tensor | None, reduction: int, grad_input: Tensor
) -> None:
    """Gradient of BinaryCrossEntropy."""
    write(grad_input, _aten.binary_cross_entropy_backward(grad_output, self, target, weight, reduction))


@op("BinaryCrossEntropyWithLogitsBackward")
def binary_cross_entropy_with_logits_backward(
    grad_output: Tensor,
    self: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    reduction: int,
    grad_input: Tensor,
) -> None:
    """Gradient of BinaryCrossEntropyWithLogits."""
    probability = torch.sigmoid(self)
    if pos_weight is None:
        gradient = probability - target
    else:
        positive = pos_weight * target
        gradient = (positive + 1 - target) * probability - positive
    if weight is not None:
        gradient = gradient * weight
    write(grad_input, _share(gradient * grad_output, reduction))


def _likelihood(name: str, function: Callable[..., Any]) -> None:
    def body(
        grad_output: Tensor,
        self: Tensor,
        target: Tensor,
        weight: Tensor,
        reduction: int,
        ignore_index: int,
        total_weight: Tensor,
        grad_input: Tensor,
    ) -> None:
        logs = self.contiguous()  # the kernel for pictures takes no other
        args = (grad_output, logs, target.long(), weight, reduction, ignore_index, total_weight)
        write(grad_input, function(*args))

    register(name, body)


_likelihood("NLLLossBackward", _aten.nll_loss_backward)
_likelihood("NLLLoss2dBackward", _aten.nll_loss2d_backward)


@op("CtcLossBackward")
def ctc_loss_backward(
    grad: Tensor,
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: tuple[int, ...],
    target_lengths: tuple[int, ...],
    neg_log_likelihood: Tensor,
    log_alpha: Tensor,
    blank: int,
    zero_infinity: bool,
    grad_input: Tensor,
) -> None:
    """Gradient of CtcLoss; of `log_alpha` only as many columns count as the longest target has."""
    wide = torch.promote_types(log_probs.dtype, torch.float32)
    columns = 2 * max(target_lengths, default=0) + 1
    gradient = _aten._ctc_loss_backward(
        grad.to(wide),
        log_probs.to(wide),
        targets.long(),
        input_lengths,
        target_lengths,
        neg_log_likelihood.to(wide),
        log_alpha[..., :columns].to(wide),
        blank,
        zero_infinity,
    )
    write(grad_input, gradient)
