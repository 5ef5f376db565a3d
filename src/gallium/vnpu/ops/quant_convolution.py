"""Convolution of 8-bit integers, and batched products of 8-bit floats: what only the 950 family has."""

from __future__ import annotations

import torch
import torch.nn.functional as nn
from torch import Tensor

from gallium.vnpu.checks import check_choice, check_dims, check_dtype, check_family, check_shape
from gallium.vnpu.quantisation import LARGEST_FP8, unpacked_scale
from gallium.vnpu.refusals import only, refuse_given
from gallium.vnpu.registry import op
from gallium.vnpu.writing import write

FP8_DEPTH, FP8_COLUMNS = 512, 128  # docs of op-plugin: torch_npu.npu_transpose_quant_batchmatmul


@op("QuantConvolution", unused={"output_padding": "belongs to transposed convolution, which is refused"})
def quant_convolution(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor,
    offset: Tensor | None,
    strides: tuple[int, ...],
    pads: tuple[int, ...],
    dilations: tuple[int, ...],
    transposed: bool,
    output_padding: tuple[int, ...] | None,
    groups: int,
    offset_x: int,
    round_mode: str,
    output: Tensor,
) -> None:
    """`(conv(x, w) + bias) * scale` for each output channel (op-plugin's test of npu_quant_conv2d), exactly: in
    float64, which holds every sum of products."""
    check_family("npu_quant_conv2d", "950")
    check_dtype("input", input, (torch.int8,))
    check_dtype("weight", weight, (torch.int8,))
    check_dtype("bias", bias, (torch.int32,))
    check_dims("input", input, 4, 4)
    refuse_given(offset=offset)
    only("transposed", transposed, False)
    only("offset_x", offset_x, 0)
    check_choice("round_mode", round_mode, ("rint",))
    wide = None if bias is None else bias.double()
    sums = nn.conv2d(input.double(), weight.double(), wide, strides, pads[:2], dilations, groups)
    write(output, sums.float() * unpacked_scale(scale)[0].reshape(1, -1, 1, 1))


@op(
    "TransposeQuantBatchMatMul",
    unused={"dtype": "is the output's type, which arrives allocated in it"},
)
def transpose_quant_batch_matmul(
    x1: Tensor,
    x2: Tensor,
    bias: Tensor | None,
    x1_scale: Tensor | None,
    x2_scale: Tensor | None,
    dtype: int,
    group_size: int,
    perm_x1: tuple[int, ...],
    perm_x2: tuple[int, ...],
    perm_y: tuple[int, ...],
    batch_split_factor: int,
    result: Tensor,
) -> None:
    """Batched products of 8-bit floats with a scale for each row and column; the batch lies in the middle of x1 and of
    the result: docs of op-plugin, torch_npu.npu_transpose_quant_batchmatmul."""
    check_family("npu_transpose_quant_batchmatmul", "950")
    refuse_given(bias=bias)
    only("group_sizes", group_size, 0)
    only("batch_split_factor", batch_split_factor, 1)
    check_choice("perm_x1", tuple(perm_x1), ((1, 0, 2),))
    check_choice("perm_x2", tuple(perm_x2), ((0, 1, 2),))
    check_choice("perm_y", tuple(perm_y), ((1, 0, 2),))
    for name, side in (("x1", x1), ("x2", x2)):
        check_dtype(name, side, LARGEST_FP8)
        check_dims(name, side, 3, 3)
    check_choice("the inner dimension", x1.shape[-1], (FP8_DEPTH,))
    check_choice("the columns of x2", x2.shape[-1], (FP8_COLUMNS,))
    check_shape("x1_scale", x1_scale, x1.shape[:1])
    check_shape("x2_scale", x2_scale, x2.shape[-1:])
    product = torch.bmm(x1.float().transpose(0, 1), x2.float())
    if x2_scale is not None:
        product = product * x2_scale.float()
    if x1_scale is not None:
        product = product * x1_scale.float().reshape(1, -1, 1)
    write(result, product.transpose(0, 1))
