"""Group normalisation, alone and followed by SiLU or Swish, with gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from gallium.vnpu.checks import FLOATS, check_choice, check_dims, check_dtype, check_same_dtype, check_shape
from gallium.vnpu.precision import wide
from gallium.vnpu.refusals import Illegal
from gallium.vnpu.registry import op
from gallium.vnpu.writing import write

WIDEST_GROUP_WITH_GRADIENT = 4000  # channels; docs of op-plugin: torch_npu.npu_group_norm_swish


@op("GroupNorm")
def group_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    n: int,
    c: int,
    hxw: int,
    group: int,
    eps: float,
    out: Tensor,
    mean: Tensor,
    rstd: Tensor,
) -> None:
    """torch.native_group_norm."""
    values = torch.native_group_norm(wide(x), wide(weight), wide(bias), n, c, hxw, group, eps)
    for output, value in zip((out, mean, rstd), values, strict=True):
        write(output, value)


@op("GroupNormBackward")
def group_norm_backward(
    grad_out: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    n: int,
    c: int,
    hxw: int,
    group: int,
    output_mask: tuple[bool, ...],
    grad_input: Tensor | None,
    grad_weight: Tensor | None,
    grad_bias: Tensor | None,
) -> None:
    """The gradients that output_mask asks for."""
    operands = [wide(t) for t in (grad_out, x, mean, rstd, weight)]
    grads = torch.ops.aten.native_group_norm_backward(*operands, n, c, hxw, group, list(output_mask))
    for wanted, out, value in zip(output_mask, (grad_input, grad_weight, grad_bias), grads, strict=True):
        if wanted and out is not None:
            write(out, value)


@op("GroupNormSilu")
def group_norm_silu(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    group: int,
    eps: float,
    out: Tensor,
    mean: Tensor,
    rstd: Tensor,
) -> None:
    """silu(GroupNorm(x)). Limits: docs of op-plugin, torch_npu.npu_group_norm_silu."""
    if eps <= 0:
        raise Illegal("eps", eps, "more than 0")
    if weight is not None:
        check_same_dtype("bias", bias, "weight", weight)
        if x.dtype == torch.float32:
            check_same_dtype("weight", weight, "input, which is the most precise", x)
    _normalised_and_swished(x, weight, bias, group, eps, 1.0, out, mean, rstd)


@op("GroupNormSwish")
def group_norm_swish(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    num_groups: int,
    data_format: str,
    eps: float,
    activate_swish: bool,
    swish_scale: float,
    out: Tensor,
    mean: Tensor,
    rstd: Tensor,
) -> None:
    """y * sigmoid(swish_scale * y) of y = GroupNorm(x). Limits: docs of op-plugin, torch_npu.npu_group_norm_swish."""
    check_choice("data_format", data_format, ("NCHW",))
    check_choice("activate_swish", activate_swish, (True,))
    check_same_dtype("weight", weight, "input", x)
    check_same_dtype("bias", bias, "input", x)
    _normalised_and_swished(x, weight, bias, num_groups, eps, swish_scale, out, mean, rstd)


@op("GroupNormSwishGrad")
def group_norm_swish_grad(
    grad: Tensor,
    mean: Tensor,
    rstd: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    num_groups: int,
    data_format: str,
    swish_scale: float,
    dweight_require_grad: bool,
    dbias_require_grad: bool,
    grad_x: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
) -> None:
    """The gradient of GroupNormSwish; those of weight and bias only if they are asked for."""
    check_choice("data_format", data_format, ("NCHW",))
    sizes = _sizes(x, num_groups)
    if sizes[1] // num_groups > WIDEST_GROUP_WITH_GRADIENT:
        raise Illegal("channels in a group", sizes[1] // num_groups, f"at most {WIDEST_GROUP_WITH_GRADIENT}")
    x_wide, scale, shift, center, spread = x.float(), weight.float(), bias.float(), mean.float(), rstd.float()
    n, c, hxw = sizes
    normal = x_wide.reshape(n, num_groups, -1).sub(center[..., None]).mul_(spread[..., None]).view(n, c, hxw)
    y = normal.mul_(scale[:, None]).add_(shift[:, None])
    gate = torch.sigmoid(swish_scale * y)
    dy = grad.float() * (gate * (1 + swish_scale * y * (1 - gate))).view(x.shape)
    grads = torch.ops.aten.native_group_norm_backward(
        dy, x_wide, center, spread, scale, n, c, hxw, num_groups, [True, dweight_require_grad, dbias_require_grad]
    )
    write(grad_x, grads[0])
    if dweight_require_grad:
        write(grad_weight, grads[1])
    if dbias_require_grad:
        write(grad_bias, grads[2])


def _normalised_and_swished(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    groups: int,
    eps: float,
    scale: float,
    out: Tensor,
    mean: Tensor,
    rstd: Tensor,
) -> None:
    check_dtype("input", x, FLOATS)
    sizes = _sizes(x, groups)
    check_shape("weight", weight, (sizes[1],))
    check_shape("bias", bias, (sizes[1],))
    y, mean_value, rstd_value = torch.native_group_norm(wide(x), wide(weight), wide(bias), *sizes, groups, eps)
    write(mean, mean_value)
    write(rstd, rstd_value)
    torch.mul(y, torch.sigmoid(y * scale), out=out)


def _sizes(x: Tensor, groups: int) -> tuple[int, int, int]:
    """Batch, channels, elements of a channel."""
    check_dims("input", x, 2, 8)
    n, c = x.shape[:2]
    if groups <= 0 or c % groups:
        raise Illegal("group", groups, f"a divisor of the {c} channels")
    return n, c, x.shape[2:].numel()
