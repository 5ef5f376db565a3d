"""Products of 8-bit and 4-bit integers with scales: QuantMatmul and the fusions around it."""

from __future__ import annotations

import torch
import torch.nn.functional as nn
from torch import Tensor

from gallium.vnpu import soc
from gallium.vnpu.checks import SINCE_910B, check_choice, check_dims, check_dtype, check_family
from gallium.vnpu.quantisation import (
    Matrix,
    dequantised,
    given,
    grouped_product,
    holds_int4,
    integer_product,
    integers,
    msd_product,
    symmetric,
    write_quantised,
)
from gallium.vnpu.refusals import Illegal, Unsupported, only, refuse_given
from gallium.vnpu.registry import op
from gallium.vnpu.writing import write

LONGEST_SIDE = 65535
GELU = {"gelu_erf": "none", "gelu_tanh": "tanh"}
DEQUANT_MODES = ("pertoken", "pertensor")


@op("QuantMatmulV5", "QuantMatmulWeightNz")
def quant_matmul(
    x1: Matrix,
    x2: Matrix,
    pertoken_scale: Tensor | None,
    scale: Tensor,
    y_scale: Tensor | None,
    x1_offset: Tensor | None,
    x2_offset: Tensor | None,
    y_offset: Tensor | None,
    bias: Tensor | None,
    transpose1: bool,
    transpose2: bool,
    group_size: int,
    result: Tensor,
) -> None:
    """Docs of op-plugin: torch_npu.npu_quant_matmul. A transposed operand comes with its strides.

    Three kinds: both of 8 bits or both of 4, with a scale for each column; both of 4 bits with a scale for each group
    of the inner dimension; 8 bits times 4, with such groups and y_offset as the bias.
    """
    refuse_given(y_scale=y_scale, x1_offset=given(x1_offset))
    left, right = _sides(x1, x2, transpose1, transpose2)
    if holds_int4(x2) and not holds_int4(x1):
        write(result, _eight_by_four(left, right, pertoken_scale, scale, given(y_offset), bias, group_size))
        return
    refuse_given(y_offset=given(y_offset))
    if scale.dim() == 2 and scale.shape[0] > 1:
        write(result, _by_groups(left, right, pertoken_scale, scale, given(x2_offset), bias, group_size))
        return
    only("group_sizes", group_size, 0)
    _check_types(bias, pertoken_scale, result)
    product = integer_product(left, right)
    scaled, packed_offset = dequantised(product, scale, pertoken_scale, bias)
    if result.dtype == torch.int8:
        offset = given(x2_offset) if packed_offset is None else packed_offset
        write_quantised(result, scaled if offset is None else scaled + offset.float())
    elif result.dtype == torch.int32:
        write(result, scaled.double().round())
    else:
        refuse_given(offset=given(x2_offset))
        write(result, scaled)


@op("FusedQuantMatmul", "FusedQuantMatmulWeightNz")
def quant_matmul_gelu(
    x1: Matrix,
    x2: Matrix,
    x1_scale: Tensor,
    x2_scale: Tensor,
    reserved_4: Tensor | None,
    reserved_5: Tensor | None,
    reserved_6: Tensor | None,
    reserved_7: Tensor | None,
    bias: Tensor | None,
    reserved_9: Tensor | None,
    approximate: str,
    group_size: int,
    result: Tensor,
) -> None:
    """QuantMatmul, then GELU: docs of op-plugin, torch_npu.npu_quant_matmul_gelu."""
    check_family("npu_quant_matmul_gelu", *SINCE_910B)
    refuse_given(reserved_4=reserved_4, reserved_5=reserved_5, reserved_6=reserved_6, reserved_7=reserved_7)
    refuse_given(reserved_9=reserved_9)
    only("group_size", group_size, 0)
    check_choice("approximate", approximate, GELU, " or ".join(GELU))
    left, right = _sides(x1, x2, False, False)
    scaled, _ = dequantised(integer_product(left, right), x2_scale, x1_scale, given(bias))
    write(result, nn.gelu(scaled, approximate=GELU[approximate]))


@op(
    "QuantMatmulReduceSumWeightNz",
    unused={"dims": "is the batch: torch_npu means (0,), but passes a list that no longer exists, with any content"},
)
def quant_matmul_reduce_sum(
    x1: Matrix,
    x2: Matrix,
    x1_scale: Tensor,
    x2_scale: Tensor,
    y_scale: Tensor | None,
    x1_offset: Tensor | None,
    x2_offset: Tensor | None,
    y_offset: Tensor | None,
    bias: Tensor | None,
    transpose_x1: bool,
    transpose_x2: bool,
    group_size: int,
    dims: tuple[int, ...],
    keep_dims: bool,
    result: Tensor,
) -> None:
    """Batched QuantMatmul, summed over the batch: docs of op-plugin, torch_npu.npu_quant_matmul_reduce_sum."""
    check_family("npu_quant_matmul_reduce_sum", *SINCE_910B)
    refuse_given(y_scale=y_scale, x1_offset=x1_offset, x2_offset=x2_offset, y_offset=y_offset, bias=bias)
    only("group_size", group_size, -1, 0)
    left, right = _sides(x1, x2, transpose_x1, transpose_x2)
    scaled = integer_product(left, right).float() * x1_scale.float().unsqueeze(-1) * x2_scale.float()
    write(result, scaled.sum(0, keepdim=keep_dims))


@op("QuantMatmulDequant")
def quant_matmul_dequant(
    x: Tensor,
    quantized_weight: Matrix,
    weight_scale: Tensor,
    bias: Tensor | None,
    x_scale: Tensor | None,
    x_offset: Tensor | None,
    smooth_scale: Tensor | None,
    quant_mode: str | None,
    trans: bool,
    out: Tensor,
) -> None:
    """x quantised by row or with a given scale, times an 8-bit weight [columns, rows if trans], in floats again
    (op-plugin's test test_quant_matmul_dequant)."""
    weight = integers(quantized_weight)
    rows, scales = quantised_rows(x, x_scale, x_offset, smooth_scale, quant_mode)
    product = integer_product(rows, weight.transpose(-1, -2) if trans else weight)
    write(out, dequantised(product, weight_scale, None, None)[0] * scales + (0 if bias is None else bias.float()))


def quantised_rows(
    x: Tensor, x_scale: Tensor | None, x_offset: Tensor | None, smooth_scale: Tensor | None, quant_mode: str | None
) -> tuple[Tensor, Tensor]:
    """x as int8 and its scale, a column: measured by row, or given for each row or for all."""
    check_dims("x", x, 2, 2)
    check_choice("quant_mode", quant_mode, DEQUANT_MODES, " or ".join(DEQUANT_MODES))
    refuse_given(x_offset=x_offset)
    wide = x.float() if smooth_scale is None else x.float() * smooth_scale.float()
    if x_scale is None:
        if quant_mode == "pertensor":
            raise Illegal("x_scale", None, "given where quant_mode is pertensor")
        scaled, scale = symmetric(wide, 127)
    else:
        scale = x_scale.float().reshape(-1, 1)
        scaled = wide / scale
    return scaled.round().clamp(-128, 127).to(torch.int8), scale


def _sides(x1: Matrix, x2: Matrix, transpose1: bool, transpose2: bool) -> tuple[Tensor, Tensor]:
    left, right = integers(x1), integers(x2)
    for name, side in (("x1", left), ("x2", right)):
        if side.dtype != torch.int8:
            raise Unsupported(f"the dtype of {name}", side.dtype, "int8 and int4")
        check_dims(name, side, 2, 6)
        if 0 in side.shape or side.shape[-1] > LONGEST_SIDE:
            raise Illegal(f"the shape of {name}", list(side.shape), f"not empty, the last at most {LONGEST_SIDE}")
    left = left.transpose(-1, -2) if transpose1 else left
    right = right.transpose(-1, -2) if transpose2 else right
    if left.shape[-1] != right.shape[-2]:
        raise Illegal("the inner dimension of x2", right.shape[-2], f"that of x1, {left.shape[-1]}")
    return left, right


def _check_types(bias: Tensor | None, pertoken_scale: Tensor | None, result: Tensor) -> None:
    if soc.current().family == "310P":
        check_dtype("bias", bias, (torch.int32,))
        check_dtype("the output", result, (torch.int8, torch.float16))
        if pertoken_scale is not None:
            raise Illegal("pertoken_scale", pertoken_scale, "None on 310P")
    elif result.dtype == torch.int8 and pertoken_scale is not None:
        raise Illegal("pertoken_scale", pertoken_scale, "None where the output is int8")


def _inner_group(group_size: int, depth: int, groups: int) -> None:
    """group_size: the sizes of groups along m, n and k, 16 bits each; 0: as the scale's shape says."""
    size = group_size & 0xFFFF
    if size and size * groups != depth:
        raise Illegal("group_sizes", size, f"{depth // groups}, which the shape of the scale gives")


def _eight_by_four(
    left: Tensor,
    right: Tensor,
    pertoken_scale: Tensor | None,
    scale: Tensor,
    y_offset: Tensor | None,
    bias: Tensor | None,
    group_size: int,
) -> Tensor:
    refuse_given(bias=given(bias))
    if y_offset is None or pertoken_scale is None:
        raise Illegal("offset and pertoken_scale", None, "given for int8 times int4")
    check_dims("scale", scale, 2, 2)
    _inner_group(group_size, left.shape[-1], scale.shape[0])
    return msd_product(left, right, scale, y_offset) * pertoken_scale.float().reshape(-1, 1)


def _by_groups(
    left: Tensor,
    right: Tensor,
    pertoken_scale: Tensor | None,
    scale: Tensor,
    offset: Tensor | None,
    bias: Tensor | None,
    group_size: int,
) -> Tensor:
    refuse_given(bias=given(bias))
    if pertoken_scale is None:
        raise Illegal("pertoken_scale", None, "given where scale has groups")
    _inner_group(group_size, left.shape[-1], scale.shape[0])
    return grouped_product(left, right, scale, offset) * pertoken_scale.float().reshape(-1, 1)
