"""Microscaling quantisation of a tensor to small floats and back; only the 950 family has it."""

from __future__ import annotations

import torch
from torch import Tensor

from gallium.vnpu.checks import HALVES, check_choice, check_dtype, check_family
from gallium.vnpu.microscaling import BIAS, BLOCK, MxOutput, quantise_mx
from gallium.vnpu.quantisation import PRODUCES
from gallium.vnpu.refusals import Unsupported, only
from gallium.vnpu.registry import op
from gallium.vnpu.writing import write


@op("DynamicMxQuant", unused={"y_dtype": PRODUCES})
def dynamic_mx_quant(
    input: Tensor,
    axis: int,
    round_mode: str,
    y_dtype: int,
    block_size: int,
    scale_alg: int,
    y: MxOutput,
    mxscale: Tensor,
) -> None:
    """Blocks of 32 along the axis share an exponent; `quantise_mx` says how."""
    _quantise(input, axis, round_mode, block_size, scale_alg, y, mxscale)


@op("DynamicMxQuantV2", unused={"y_dtype": PRODUCES})
def dynamic_mx_quant_v2(
    input: Tensor,
    axis: int,
    round_mode: str,
    y_dtype: int,
    block_size: int,
    scale_alg: int,
    dst_type_max: float,
    y: MxOutput,
    mxscale: Tensor,
) -> None:
    """DynamicMxQuant; dst_type_max is for other ways to choose the exponent."""
    only("dst_type_max", dst_type_max, 0.0)
    _quantise(input, axis, round_mode, block_size, scale_alg, y, mxscale)


@op("DynamicMxQuantV3", unused={"y_dtype": PRODUCES})
def dynamic_mx_quant_v3(
    input: Tensor,
    axis: int,
    round_mode: str,
    y_dtype: int,
    block_size: int,
    scale_alg: int,
    dst_type_max: float,
    max_low_bound: float,
    y: MxOutput,
    mxscale: Tensor,
) -> None:
    """DynamicMxQuantV2; max_low_bound is for other ways to choose the exponent."""
    only("dst_type_max", dst_type_max, 0.0)
    only("max_low_bound", max_low_bound, 0.0)
    _quantise(input, axis, round_mode, block_size, scale_alg, y, mxscale)


@op("DynamicMxQuantWithDualAxis", unused={"y_dtype": PRODUCES})
def dynamic_mx_quant_with_dual_axis(
    input: Tensor,
    round_mode: str,
    y_dtype: int,
    scale_alg: int,
    y1: MxOutput,
    mxscale1: Tensor,
    y2: MxOutput,
    mxscale2: Tensor,
) -> None:
    """DynamicMxQuant along the last dimension, and along the one before it."""
    _quantise(input, -1, round_mode, BLOCK, scale_alg, y1, mxscale1)
    _quantise(input, -2, round_mode, BLOCK, scale_alg, y2, mxscale2)


@op("DynamicMxQuantWithDualAxisV2", unused={"y_dtype": PRODUCES})
def dynamic_mx_quant_with_dual_axis_v2(
    input: Tensor,
    round_mode: str,
    y_dtype: int,
    scale_alg: int,
    dst_type_max: float,
    y1: MxOutput,
    mxscale1: Tensor,
    y2: MxOutput,
    mxscale2: Tensor,
) -> None:
    """DynamicMxQuantWithDualAxis; dst_type_max is for other ways to choose the exponent."""
    only("dst_type_max", dst_type_max, 0.0)
    _quantise(input, -1, round_mode, BLOCK, scale_alg, y1, mxscale1)
    _quantise(input, -2, round_mode, BLOCK, scale_alg, y2, mxscale2)


@op("AntiMxQuant", unused={"y_dtype": PRODUCES})
def anti_mx_quant(x: Tensor, mxscale: Tensor, axis: int, y_dtype: int, y: Tensor) -> None:
    """Blocks of 32 along the axis times their shared powers of two."""
    check_family("npu_anti_mx_quant", "950")
    if not isinstance(x, Tensor):
        raise Unsupported("the type of x", getattr(x, "type_name", "int4"), "float8_e4m3fn, float8_e5m2")
    axis %= x.dim()
    exponent = mxscale.view(torch.uint8).movedim(axis, -2).flatten(-2).int() - BIAS
    spread = exponent.repeat_interleave(BLOCK, -1)[..., : x.shape[axis]]
    write(y, torch.ldexp(x.float().movedim(axis, -1), spread).movedim(-1, axis))


def _quantise(x: Tensor, axis: int, round_mode: str, block: int, scale_alg: int, y: MxOutput, mxscale: Tensor) -> None:
    check_family("npu_dynamic_mx_quant", "950")
    check_dtype("input", x, HALVES)
    check_choice("round_mode", round_mode, ("rint",))
    only("block_size", block, BLOCK)
    axis -= x.dim() if axis >= 0 else 0
    if axis >= -2:
        quantise_mx(y, mxscale, x.float(), axis, scale_alg)
    elif isinstance(y, Tensor):
        quantise_mx(y.movedim(axis, -1), mxscale.movedim(axis - 1, -2), x.float().movedim(axis, -1), -1, scale_alg)
    else:
        raise Unsupported("axis", axis, "-1 and -2 for 4-bit floats")
