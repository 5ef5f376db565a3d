"""Softmax fused with scale, mask and bias: ScaledMaskedSoftmax, MaskedSoftmaxWithRelPosBias."""

from __future__ import annotations

import torch
from torch import Tensor

from gallium.vnpu.registry import Illegal, only, op
from gallium.vnpu.writing import write

_MASKED = -10000.0
_PAGE = "docs: npu_scaled_masked_softmax"


def _check(x: Tensor, fixed_triu_mask: bool) -> None:
    if fixed_triu_mask:
        raise Illegal("fixed_triu_mask", fixed_triu_mask, f"False ({_PAGE})")
    if x.dim() < 2 or any(not 32 <= size <= 4096 or size % 32 for size in x.shape[-2:]):
        raise Illegal("the last two sizes of x", list(x.shape[-2:]), f"multiples of 32 from 32 to 4096 ({_PAGE})")


@op("ScaledMaskedSoftmax")
def scaled_masked_softmax(x: Tensor, mask: Tensor, scale: float, fixed_triu_mask: bool, out: Tensor) -> None:
    """Softmax over the last dimension of `x * scale`, which is -10000 where the mask is true (docs and tests)."""
    _check(x, fixed_triu_mask)
    write(out, torch.softmax((x.float() * scale).masked_fill_(mask, _MASKED), -1))


@op("ScaledMaskedSoftmaxBackward")
def scaled_masked_softmax_backward(
    grad_output: Tensor, y: Tensor, mask: Tensor, scale: float, fixed_triu_mask: bool, grad_input: Tensor
) -> None:
    """Gradient of ScaledMaskedSoftmax; none where the mask is true."""
    _check(y, fixed_triu_mask)
    gradient = torch._softmax_backward_data(grad_output.float(), y.float(), -1, torch.float32)
    write(grad_input, gradient.mul_(scale).masked_fill_(mask, 0))


@op("MaskedSoftmaxWithRelPosBias")
def masked_softmax_with_rel_pos_bias(
    x: Tensor, atten_mask: Tensor | None, bias: Tensor, scale: float, inner_precision_mode: int, out: Tensor
) -> None:
    """Softmax over the last dimension of `x + mask + bias` (op-plugin's test; it knows no other scale or mode)."""
    only("scale_value", scale, 1.0)
    only("inner_precision_mode", inner_precision_mode, 0)
    total = x.float() + bias if atten_mask is None else x.float() + atten_mask + bias
    write(out, torch.softmax(total, -1))
