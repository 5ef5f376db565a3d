"""Cross entropy in one step, and split over a vocabulary that several devices share."""

from __future__ import annotations

import torch
from torch import Tensor

from gallium.vnpu.registry import Illegal, only, op, refuse_given
from gallium.vnpu.writing import write

_PAGE = "docs: npu_cross_entropy_loss"


def _refuse_zloss(scale: float, wanted: bool) -> None:
    if scale != 0.0:
        raise Illegal("lse_square_scale_for_zloss", scale, f"0 ({_PAGE})")
    if wanted:
        raise Illegal("return_zloss", wanted, f"False ({_PAGE})")


def _counted(target: Tensor, ignore_index: int) -> Tensor:
    """Which rows count; a negative ignore_index ignores none (docs: npu_cross_entropy_loss)."""
    return target != ignore_index if ignore_index >= 0 else torch.ones_like(target, dtype=torch.bool)


@op(
    "CrossEntropyLoss",
    unused={
        "zloss": "an empty tensor, since a zloss is refused",
        "lse_for_zloss": "an empty tensor, since a zloss is refused",
    },
)
def cross_entropy_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    reduction: str,
    ignore_index: int,
    label_smoothing: float,
    lse_square_scale_for_zloss: float,
    return_zloss: bool,
    loss: Tensor,
    log_prob: Tensor,
    zloss: Tensor,
    lse_for_zloss: Tensor,
) -> None:
    """Cross entropy of logits and the logarithms of the probabilities (docs: npu_cross_entropy_loss, and its test)."""
    _refuse_zloss(lse_square_scale_for_zloss, return_zloss)
    if not 0.0 <= label_smoothing < 1.0:
        raise Illegal("label_smoothing", label_smoothing, f"from 0 to below 1 ({_PAGE})")
    classes = input.shape[1]
    if ignore_index >= classes:
        raise Illegal("ignore_index", ignore_index, f"below the number of classes, {classes} ({_PAGE})")
    logs = torch.log_softmax(input.float(), -1)
    scale = torch.ones(classes, dtype=torch.float32) if weight is None else weight.float()
    counted = _counted(target, ignore_index)
    own = scale[target] * counted
    each = -(1 - label_smoothing) * own * logs.gather(1, target.unsqueeze(1)).squeeze(1)
    if label_smoothing:
        each -= (logs * scale).sum(-1) * counted * (label_smoothing / classes)
    write(log_prob, logs)
    write(loss, each if reduction == "none" else _reduce(each, own, reduction).reshape(1))


def _reduce(each: Tensor, weights: Tensor, reduction: str) -> Tensor:
    if reduction == "sum":
        return each.sum()
    if reduction == "mean":
        return each.sum() / weights.sum()
    raise Illegal("reduction", reduction, f"mean, sum or none ({_PAGE})")


@op("CrossEntropyLossGrad")
def cross_entropy_loss_grad(
    grad_loss: Tensor,
    log_prob: Tensor,
    target: Tensor,
    weight: Tensor | None,
    grad_zloss: Tensor | None,
    lse_for_zloss: Tensor | None,
    reduction: str,
    ignore_index: int,
    label_smoothing: float,
    lse_square_scale_for_zloss: float,
    grad_input: Tensor,
) -> None:
    """Gradient of CrossEntropyLoss. The page allows it with fewer arguments than the loss."""
    if (grad_zloss is not None and grad_zloss.numel()) or (lse_for_zloss is not None and lse_for_zloss.numel()):
        raise Illegal("grad_zloss", grad_zloss, f"left out ({_PAGE})")
    _refuse_zloss(lse_square_scale_for_zloss, False)
    if label_smoothing:
        raise Illegal("label_smoothing", label_smoothing, f"0 where a gradient is asked for ({_PAGE})")
    if reduction not in ("mean", "sum", "none"):
        raise Illegal("reduction", reduction, f"mean, sum or none ({_PAGE})")
    if reduction == "mean" and (weight is not None or ignore_index >= 0):
        raise Illegal(
            "weight or ignore_index", "given", f"left out where the gradient of a mean is asked for ({_PAGE})"
        )
    own = _counted(target, ignore_index).float()
    if weight is not None:
        own = own * weight.float()[target]
    each = own * grad_loss.float()
    if reduction == "mean":
        each = each / own.sum()
    gradient = log_prob.float().exp()
    gradient[torch.arange(len(target)), target] -= 1
    write(grad_input, gradient * each.unsqueeze(1))


@op("FusedLinearOnlineMaxSum", cube=True)
def fused_linear_online_max_sum(
    input: Tensor,
    weight: Tensor,
    target: Tensor,
    vocab_start_index: int,
    vocab_end_index: int,
    logits_max: Tensor,
    sum_exp_logits: Tensor,
    predicted_logits: Tensor,
    target_mask: Tensor,
    masked_target: Tensor,
    vocab_parallel_logits: Tensor | None,
) -> None:
    """This device's share of a cross entropy over a split vocabulary (docs: npu_fused_linear_online_max_sum)."""
    if input.shape[1] > 65534:
        raise Illegal("input.size(1)", input.shape[1], "at most 65534 (docs: npu_fused_linear_online_max_sum)")
    if not 0 <= vocab_start_index <= vocab_end_index:
        raise Illegal("vocab_start_index", vocab_start_index, f"from 0 to vocab_end_index = {vocab_end_index}")
    logits = input.float() @ weight.float().t()
    outside = (target < vocab_start_index) | (target > vocab_end_index)
    local = torch.where(outside, 0, target - vocab_start_index)
    highest = logits.amax(-1)
    logits_below = logits - highest.unsqueeze(1)
    own = logits_below.gather(1, local.long().unsqueeze(1)).squeeze(1)
    write(logits_max, highest)
    write(sum_exp_logits, logits_below.exp().sum(-1))
    write(predicted_logits, own.masked_fill(outside, 0))
    write(target_mask, _packed(outside))
    write(masked_target, local)
    if vocab_parallel_logits is not None:
        write(vocab_parallel_logits, logits)


def _packed(bits: Tensor) -> Tensor:
    """Eight bits to a byte, the first one highest; what is over at the end is 1."""
    filled = torch.nn.functional.pad(bits.to(torch.uint8), (0, -len(bits) % 8), value=1)
    return (filled.view(-1, 8) << torch.arange(7, -1, -1)).sum(-1).to(torch.uint8)


def _unpacked(packed: Tensor, count: int) -> Tensor:
    bits = (packed.unsqueeze(1) >> torch.arange(7, -1, -1, dtype=torch.uint8)) & 1
    return bits.flatten()[:count]


@op("FusedCrossEntropyLossWithMaxSum")
def fused_cross_entropy_loss_with_max_sum(
    logits_max: Tensor,
    sum_exp_logits: Tensor,
    predicted_logits: Tensor,
    label_smoothing: float,
    input: Tensor | None,
    weight: Tensor | None,
    vocab_parallel_logits: Tensor | None,
    loss: Tensor,
    softmax: Tensor | None,
) -> None:
    """The loss from the shares of all devices (docs: npu_fused_cross_entropy_loss_with_max_sum)."""
    only("label_smoothing", label_smoothing, 0.0)
    refuse_given(input=input, weight=weight)
    write(loss, sum_exp_logits.log() - predicted_logits)
    if softmax is not None and vocab_parallel_logits is not None:
        write(softmax, _softmax(vocab_parallel_logits, logits_max, sum_exp_logits))


def _softmax(logits: Tensor, highest: Tensor, total: Tensor) -> Tensor:
    return (logits.float() - highest.unsqueeze(1)).exp_().div_(total.unsqueeze(1))


@op("FusedLinearCrossEntropyLossGrad", cube=True)
def fused_linear_cross_entropy_loss_grad(
    grad: Tensor,
    input: Tensor,
    weight: Tensor,
    target_mask: Tensor,
    masked_target: Tensor,
    label_smoothing: float,
    logits_max: Tensor | None,
    sum_exp_logits: Tensor | None,
    softmax: Tensor | None,
    input_grad: Tensor,
    weight_grad: Tensor,
) -> None:
    """Gradients for input and weight, from the softmax or from what it is made of.

    Source: docs, npu_fused_linear_cross_entropy_loss_with_max_sum_backward.
    """
    only("label_smoothing", label_smoothing, 0.0)
    if weight.shape[0] < 128:
        raise Illegal("weight.size(0)", weight.shape[0], "at least 128 (docs)")
    if softmax is not None:
        gradient = softmax.clone()
    elif logits_max is not None and sum_exp_logits is not None:
        gradient = _softmax(input.float() @ weight.float().t(), logits_max, sum_exp_logits)
    else:
        raise Illegal("softmax", softmax, "given, or else logits_max and sum_exp_logits")
    rows = len(grad)
    gradient[torch.arange(rows), masked_target.long()] -= 1 - _unpacked(target_mask, rows).float()
    gradient *= grad.unsqueeze(1)
    write(input_grad, gradient @ weight.float())
    write(weight_grad, gradient.t() @ input.float())
