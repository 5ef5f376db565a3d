"""Floats times a quantised weight that is turned back to floats first: WeightQuantBatchMatmul."""

from __future__ import annotations

import torch
from torch import Tensor

from gallium.vnpu import soc
from gallium.vnpu.checks import HALVES, check_choice, check_dtype, check_same_dtype
from gallium.vnpu.quantisation import Matrix, integers, unpacked_scale, write_quantised
from gallium.vnpu.refusals import Illegal, Unsupported
from gallium.vnpu.registry import op
from gallium.vnpu.writing import write

MOST_ROWS_OF_INT64_SCALE, INT64_ALIGNMENT = 96, 64
SMALLEST_GROUP = 32


@op("WeightQuantBatchMatmulV2", "WeightQuantBatchMatmulNz")
def weight_quant_batch_matmul(
    x: Tensor,
    weight: Matrix,
    antiquant_scale: Tensor,
    antiquant_offset: Tensor | None,
    quant_scale: Tensor | None,
    quant_offset: Tensor | None,
    bias: Tensor | None,
    antiquant_group_size: int,
    result: Tensor,
) -> None:
    """`x @ ((weight + offset) * scale) + bias`, quantised if quant_scale is given: docs of op-plugin,
    torch_npu.npu_weight_quant_batchmatmul."""
    check_dtype("x", x, HALVES)
    restored = restored_weight(weight, antiquant_scale, antiquant_offset, antiquant_group_size, x)
    product = x.float() @ restored
    if bias is not None:
        check_dtype("bias", bias, (torch.float16 if x.dtype == torch.float16 else torch.float32,))
        product = product + bias.float()
    if quant_scale is None:
        if quant_offset is not None:
            raise Illegal("quant_offset", quant_offset, "left out where quant_scale is")
        write(result, product)
        return
    if soc.current().family == "310P":
        raise Illegal("quant_scale", quant_scale, "None on 310P")
    factor, packed = unpacked_scale(quant_scale)
    offset = packed if packed is not None else quant_offset
    scaled = product * factor
    write_quantised(result, scaled if offset is None else scaled + offset.float())


@op(
    "WeightQuantBatchMatmulV3",
    unused={"inner_precise": "chooses a faster way with less precision, which is not emulated: results are exact"},
)
def weight_quant_batch_matmul_v3(
    x: Tensor,
    weight: Matrix,
    antiquant_scale: Tensor,
    antiquant_offset: Tensor | None,
    quant_scale: Tensor | None,
    quant_offset: Tensor | None,
    bias: Tensor | None,
    antiquant_group_size: int,
    inner_precise: int,
    result: Tensor,
) -> None:
    """WeightQuantBatchMatmulV2 with a choice of precision."""
    weight_quant_batch_matmul(
        x,
        weight,
        antiquant_scale,
        antiquant_offset,
        quant_scale,
        quant_offset,
        bias,
        antiquant_group_size,
        result,
    )


def restored_weight(weight: Matrix, scale: Tensor, offset: Tensor | None, group_size: int, x: Tensor) -> Tensor:
    """(weight + offset) * scale in float32. The scale is one, one per column, or one per column and group of rows."""
    values = integers(weight)
    if values.dtype != torch.int8:
        raise Unsupported("the dtype of weight", values.dtype, "int8 and int4")
    rows, columns = values.shape[-2:]
    if x.shape[-1] != rows:
        raise Illegal("the inner dimension of weight", rows, f"that of x, {x.shape[-1]}")
    if scale.dtype == torch.int64:
        _check_int64_scale(x, scale, offset, columns)
    else:
        check_same_dtype("antiquant_scale", scale, "x", x)
        check_same_dtype("antiquant_offset", offset, "antiquant_scale", scale)
    factor = _spread(unpacked_scale(scale)[0], rows, columns, group_size)
    wide = values.float()
    if offset is not None:
        if offset.shape != scale.shape:
            raise Illegal("the shape of antiquant_offset", list(offset.shape), f"the scale's, {list(scale.shape)}")
        wide = wide + _spread(offset.float(), rows, columns, group_size)
    return wide * factor


def _spread(values: Tensor, rows: int, columns: int, group_size: int) -> Tensor:
    """To a shape that broadcasts over [rows, columns]."""
    if group_size == 0 or values.dim() < 2 or values.shape[-2] == 1:
        if values.numel() not in (1, columns) and values.shape[-1] != columns:
            raise Illegal("the shape of antiquant_scale", list(values.shape), f"of 1 or {columns} elements")
        return values if values.dim() != 1 else values.unsqueeze(0)
    check_choice("antiquant_group_size", group_size % SMALLEST_GROUP, (0,), f"a multiple of {SMALLEST_GROUP}")
    groups = -(-rows // group_size)
    if tuple(values.shape[-2:]) != (groups, columns):
        raise Illegal("the shape of antiquant_scale", list(values.shape), f"[{groups}, {columns}]")
    return values.repeat_interleave(group_size, -2)[..., :rows, :]


def _check_int64_scale(x: Tensor, scale: Tensor, offset: Tensor | None, columns: int) -> None:
    check_dtype("x", x, (torch.float16,))
    check_dtype("antiquant_offset", offset, (torch.int32,))
    rows, depth = x.shape[-2:]
    aligned = depth % INT64_ALIGNMENT == 0 and columns % INT64_ALIGNMENT == 0
    if scale.numel() != columns or rows > MOST_ROWS_OF_INT64_SCALE or not aligned:
        legal = f"one per column, with at most {MOST_ROWS_OF_INT64_SCALE} rows, k and n multiples of {INT64_ALIGNMENT}"
        raise Illegal("an int64 antiquant_scale", list(scale.shape), legal)
