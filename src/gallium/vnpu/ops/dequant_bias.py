"""Integer sums of a quantised product made numbers again."""

from __future__ import annotations

import torch
from torch import Tensor

from gallium.vnpu.checks import check_choice, check_dims, check_dtype, check_shape
from gallium.vnpu.registry import Illegal, op, refuse_given
from gallium.vnpu.tensors import DTYPES
from gallium.vnpu.writing import write


@op("DequantBias")
def dequant_bias(
    x: Tensor, weight_scale: Tensor, activation_scale: Tensor | None, bias: Tensor | None, dtype: int, out: Tensor
) -> None:
    """x times a scale for each column and, if given, one for each row.

    No page says whether the bias comes before or after the scales, so it is refused.
    """
    refuse_given(bias=bias)
    check_dtype("x", x, [torch.int32])
    check_dims("x", x, 2, 2)
    check_shape("weight_scale", weight_scale, x.shape[1:])
    check_shape("activation_scale", activation_scale, x.shape[:1])
    check_choice("output_dtype", DTYPES.get(dtype), (torch.float16, torch.bfloat16))
    if DTYPES[dtype] != out.dtype:
        raise Illegal("output_dtype", DTYPES[dtype], f"that of the output, {out.dtype}")
    result = x.float() * weight_scale.float()
    if activation_scale is not None:
        result.mul_(activation_scale.float().unsqueeze(1))
    write(out, result)
