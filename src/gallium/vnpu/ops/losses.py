"""Losses and their gradients. Reduction 0 none, 1 mean, 2 sum."""

from __future__ import annotations

import torch
from torch import Tensor

from gallium.vnpu.registry import op
from gallium.vnpu.writing import write

_aten = torch.ops.aten


@op("NLLLoss")
def nll_loss(
    self: Tensor, target: Tensor, weight: Tensor, reduction: int, ignore_index: int, out: Tensor, total_weight: Tensor
) -> None:
    """Negative log likelihood of the target class, and the sum of the weights that took part."""
    loss, total = _aten.nll_loss_forward(self, target.long(), weight, reduction, ignore_index)
    write(out, loss)
    write(total_weight, total)


@op("NLLLossBackward")
def nll_loss_backward(
    grad_output: Tensor,
    self: Tensor,
    target: Tensor,
    weight: Tensor,
    reduction: int,
    ignore_index: int,
    total_weight: Tensor,
    grad_input: Tensor,
) -> None:
    """Gradient of NLLLoss."""
    args = (grad_output, self, target.long(), weight, reduction, ignore_index, total_weight)
    write(grad_input, _aten.nll_loss_backward(*args))
