"""Normalisation and SwiGLU with microscaled results; all of them exist on the 950 family only."""

from __future__ import annotations

import torch
import torch.nn.functional as nn
from torch import Tensor

from gallium.vnpu.checks import HALVES, check_dtype, check_family, check_same_dtype, check_shape
from gallium.vnpu.microscaling import MxOutput, quantise_mx
from gallium.vnpu.ops.gated import halves, in_order
from gallium.vnpu.ops.rms_norm import reciprocal_rms
from gallium.vnpu.refusals import only, refuse_given
from gallium.vnpu.registry import op

TYPE = "chooses the output's type, which arrives allocated in it"
VARIANT = "belongs to swiglu_mode 1, which is refused: no public source describes it here"


@op("RmsNormDynamicMxQuant", unused={"y_dtype": TYPE})
def rms_norm_mx_quant(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor | None,
    epsilon: float,
    scale_alg: int,
    round_mode: str,
    y_dtype: int,
    output_rstd: bool,
    y: MxOutput,
    mxscale: Tensor,
    rstd: Tensor,
) -> None:
    """RmsNorm, plus beta, in blocks of 32 along the last dimension; rstd if asked for."""
    check_family("RmsNormDynamicMxQuant", "950")
    only("round_mode", round_mode, "rint")
    quantise_mx(y, mxscale, _normalised(x, gamma, beta, epsilon, rstd if output_rstd else None), -1, scale_alg)


@op("AddRmsNormDynamicMxQuant", unused={"y_dtype": TYPE})
def add_rms_norm_mx_quant(
    x1: Tensor,
    x2: Tensor,
    gamma: Tensor,
    beta: Tensor | None,
    epsilon: float,
    scale_alg: int,
    round_mode: str,
    y_dtype: int,
    output_rstd: bool,
    y: MxOutput,
    x: Tensor,
    mxscale: Tensor,
    rstd: Tensor,
) -> None:
    """RmsNormDynamicMxQuant of x = x1 + x2."""
    check_family("AddRmsNormDynamicMxQuant", "950")
    only("round_mode", round_mode, "rint")
    check_shape("x2", x2, x1.shape)
    check_same_dtype("x2", x2, "x1", x1)
    torch.add(x1, x2, out=x)
    quantise_mx(y, mxscale, _normalised(x, gamma, beta, epsilon, rstd if output_rstd else None), -1, scale_alg)


@op(
    "SwigluMxQuant",
    unused={
        "clamp_limit": VARIANT,
        "glu_alpha": VARIANT,
        "glu_bias": VARIANT,
        "group_mode": "belongs to group_index, which is refused",
        "y_dtype": TYPE,
    },
)
def swiglu_mx_quant(
    x: Tensor,
    group_index: Tensor | None,
    activate_dim: int,
    activate_left: bool,
    swiglu_mode: int,
    clamp_limit: float,
    glu_alpha: float,
    glu_bias: float,
    group_mode: int,
    axis: int,
    y_dtype: int,
    round_mode: str,
    scale_alg: int,
    max_dtype: float,
    y: MxOutput,
    mxscale: Tensor,
) -> None:
    """SwiGlu in blocks of 32 along the last dimension."""
    check_family("SwigluMxQuant", "950")
    refuse_given(group_index=group_index)
    only("swiglu_mode", swiglu_mode, 0)
    only("axis", axis, -1, x.dim() - 1)
    only("round_mode", round_mode, "rint")
    only("max_dtype_value", max_dtype, 0.0)
    quantise_mx(y, mxscale, _swiglu(x, activate_dim, activate_left), -1, scale_alg)


@op("SwigluMxQuantWithDualAxis", unused={"y_dtype": TYPE})
def swiglu_mx_quant_both_ways(
    x: Tensor,
    group_index: Tensor | None,
    activate_left: bool,
    round_mode: str,
    scale_alg: int,
    y_dtype: int,
    dst_type_max: float,
    y1: MxOutput,
    mxscale1: Tensor,
    y2: MxOutput,
    mxscale2: Tensor,
) -> None:
    """SwiGlu twice: in blocks along the last dimension, and along the one before it."""
    check_family("SwigluMxQuantWithDualAxis", "950")
    refuse_given(group_index=group_index)
    only("round_mode", round_mode, "rint")
    only("dst_type_max", dst_type_max, 0.0)
    values = _swiglu(x, -1, activate_left)
    quantise_mx(y1, mxscale1, values, -1, scale_alg)
    quantise_mx(y2, mxscale2, values, -2, scale_alg)


@op("SwigluBackwardMxQuantWithDualAxis", unused={"x_dtype": TYPE})
def swiglu_backward_mx_quant_both_ways(
    x: Tensor,
    y_grad: Tensor,
    group_index: Tensor | None,
    activate_left: bool,
    round_mode: str,
    scale_alg: int,
    x_dtype: int,
    dst_type_max: float,
    y1: MxOutput,
    mxscale1: Tensor,
    y2: MxOutput,
    mxscale2: Tensor,
) -> None:
    """The gradient of SwiGlu, twice as in SwigluMxQuantWithDualAxis."""
    check_family("SwigluBackwardMxQuantWithDualAxis", "950")
    refuse_given(group_index=group_index)
    only("round_mode", round_mode, "rint")
    only("dst_type_max", dst_type_max, 0.0)
    check_dtype("x", x, HALVES)
    up, gate = in_order(x.float(), -1, activate_left)
    grad = y_grad.float()
    grad_gate, grad_up = torch.ops.aten.silu_backward(grad * up, gate), grad * nn.silu(gate)
    values = torch.cat((grad_gate, grad_up) if activate_left else (grad_up, grad_gate), -1)
    quantise_mx(y1, mxscale1, values, -1, scale_alg)
    quantise_mx(y2, mxscale2, values, -2, scale_alg)


def _swiglu(x: Tensor, dim: int, activate_left: bool) -> Tensor:
    check_dtype("x", x, HALVES)
    left, right = halves(x.float(), dim)
    return nn.silu(left) * right if activate_left else left * nn.silu(right)


def _normalised(x: Tensor, gamma: Tensor, beta: Tensor | None, epsilon: float, rstd: Tensor | None) -> Tensor:
    check_shape("beta", beta, gamma.shape)
    normal = torch.mul(x, reciprocal_rms(x, gamma, epsilon, rstd)).mul_(gamma)
    return normal if beta is None else normal.add_(beta)
