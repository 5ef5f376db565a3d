"""Losses: NLLLoss, MseLoss, L1Loss, BinaryCrossEntropy, KlDiv, CtcLoss and others. Reduction 0 none, 1 mean, 2 sum."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gallium.vnpu.registry import op, register
from gallium.vnpu.writing import write

_aten = torch.ops.aten


def _of_two(name: str, function: Callable[..., Any]) -> None:
    def body(self: Tensor, target: Tensor, reduction: int, out: Tensor) -> None:
        write(out, function(self, target, reduction))

    register(name, body)


_of_two("MseLoss", _aten.mse_loss)
_of_two("L1Loss", _aten.l1_loss)
_of_two("SoftMarginLoss", _aten.soft_margin_loss)


@op("SmoothL1Loss")
def smooth_l1_loss(self: Tensor, target: Tensor, reduction: int, beta: float, out: Tensor) -> None:
    """Square below a difference of beta, straight above."""
    write(out, _aten.smooth_l1_loss(self, target, reduction, beta))


@op("KlDiv")
def kl_div(self: Tensor, target: Tensor, reduction: int, log_target: bool, out: Tensor) -> None:
    """Kullback-Leibler divergence of logarithms from a target, which may be logarithms too."""
    write(out, torch.kl_div(self, target, reduction, log_target=log_target))


@op("BinaryCrossEntropy")
def binary_cross_entropy(self: Tensor, target: Tensor, weight: Tensor | None, reduction: int, out: Tensor) -> None:
    """Cross entropy of probabilities."""
    write(out, _aten.binary_cross_entropy(self, target, weight, reduction))


@op("BinaryCrossEntropyWithLogits")
def binary_cross_entropy_with_logits(
    self: Tensor, target: Tensor, weight: Tensor | None, pos_weight: Tensor | None, reduction: int, out: Tensor
) -> None:
    """Cross entropy of the sigmoid of logits."""
    write(out, _aten.binary_cross_entropy_with_logits(self, target, weight, pos_weight, reduction))


def _likelihood(name: str, function: Callable[..., Any]) -> None:
    def body(
        self: Tensor,
        target: Tensor,
        weight: Tensor,
        reduction: int,
        ignore_index: int,
        out: Tensor,
        total_weight: Tensor,
    ) -> None:
        loss, total = function(self, target.long(), weight, reduction, ignore_index)
        write(out, loss)
        write(total_weight, total)

    register(name, body)


_likelihood("NLLLoss", _aten.nll_loss_forward)
_likelihood("NLLLoss2d", _aten.nll_loss2d_forward)


@op("MultilabelMarginLoss")
def multilabel_margin_loss(self: Tensor, target: Tensor, reduction: int, out: Tensor, is_target: Tensor) -> None:
    """Hinge loss of every target class against every other; and which classes are targets."""
    loss, marks = _aten.multilabel_margin_loss_forward(self.to(_wide(self)), target.long(), reduction)
    write(out, loss)
    write(is_target, marks)


@op("CtcLoss")
def ctc_loss(
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: tuple[int, ...],
    target_lengths: tuple[int, ...],
    blank: int,
    zero_infinity: bool,
    neg_log_likelihood: Tensor,
    log_alpha: Tensor,
) -> None:
    """Connectionist temporal classification; the room that `log_alpha` has to spare is zero."""
    loss, alpha = _aten._ctc_loss(
        log_probs.to(_wide(log_probs)), targets.long(), input_lengths, target_lengths, blank, zero_infinity
    )
    write(neg_log_likelihood, loss)
    log_alpha.zero_()
    log_alpha[..., : alpha.shape[-1]].copy_(alpha)


def _wide(x: Tensor) -> torch.dtype:
    """float32 at least: what some of PyTorch's CPU kernels take."""
    return torch.promote_types(x.dtype, torch.float32)
