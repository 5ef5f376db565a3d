"""Grouped products of integers joined with what surrounds them: SwiGLU, quantisation, routing back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as nn
from torch import Tensor

from gallium.vnpu.checks import SINCE_910B, check_choice, check_dims, check_family, check_shape
from gallium.vnpu.named import register_named
from gallium.vnpu.ops.grouped_matmul import MOST_GROUPS, TUNING
from gallium.vnpu.ops.quant_matmul import quantised_rows
from gallium.vnpu.quantisation import (
    Matrix,
    Quantised,
    dequantised,
    given,
    group_ends,
    grouped_product,
    integer_product,
    integers,
    msd_product,
    symmetric,
    unpacked_scale,
    write_quantised,
)
from gallium.vnpu.refusals import Illegal, Unsupported, only, refuse_given
from gallium.vnpu.registry import op
from gallium.vnpu.writing import write


@op("GroupedMatmulSwigluQuantWeightNZ", unused={"output_offset": "is reserved: the quantisation has no offset"})
def grouped_matmul_swiglu_quant(
    x: Matrix,
    weight: Matrix,
    bias: Tensor | None,
    offset: Tensor | None,
    weight_scale: Tensor,
    x_scale: Tensor,
    group_list: Tensor,
    output: Quantised,
    output_scale: Tensor,
    output_offset: Tensor | None,
) -> None:
    """int8 rows by the ends in group_list, as GroupedMatmulSwigluQuantV2 with its defaults."""
    refuse_given(bias=bias, offset=offset)
    _swiglu_quant(x, weight, weight_scale, None, x_scale, None, group_list, 0, output, output_scale)


@op("GroupedMatmulSwigluQuantV2", "GroupedMatmulSwigluQuantWeightNzV2", unused=TUNING)
def grouped_matmul_swiglu_quant_v2(
    x: Matrix,
    weight: Sequence[Matrix],
    weight_scale: Sequence[Tensor],
    weight_assist_matrix: Sequence[Tensor],
    bias: Tensor | None,
    x_scale: Tensor,
    smooth_scale: Tensor | None,
    group_list: Tensor,
    dequant_mode: int,
    dequant_dtype: int,
    quant_mode: int,
    group_list_type: int,
    tuning_config: tuple[int, ...] | None,
    output: Quantised,
    output_scale: Tensor,
) -> None:
    """Product, SwiGLU and quantisation by row: docs of op-plugin, torch_npu.npu_grouped_matmul_swiglu_quant_v2.

    dequant_mode 0: a scale for each column; 1: for each group of the inner dimension too.
    """
    check_family("npu_grouped_matmul_swiglu_quant_v2", *SINCE_910B)
    refuse_given(bias=bias)
    only("dequant_mode", dequant_mode, 0, 1)
    only("dequant_dtype", dequant_dtype, 0)
    only("quant_mode", quant_mode, 0)
    if len(weight) != 1 or len(weight_scale) != 1:
        raise Illegal("the length of weight", len(weight), "1")
    if (dequant_mode == 1) != (weight_scale[0].dim() == 3):
        raise Illegal("dequant_mode", dequant_mode, "1 where weight_scale has 3 dimensions, else 0")
    assist = weight_assist_matrix[0] if weight_assist_matrix else None
    _swiglu_quant(
        x, weight[0], weight_scale[0], assist, x_scale, smooth_scale, group_list, group_list_type, output, output_scale
    )


@dataclass(frozen=True, kw_only=True)
class FinalizeRouting:
    """Product, then each row added to its token: docs, torch_npu.npu_grouped_matmul_finalize_routing."""

    x: Matrix
    w: Matrix
    scale: Tensor | None
    bias: Tensor | None
    offset: Tensor | None = None
    antiquant_scale: Tensor | None = None
    antiquant_offset: Tensor | None = None
    pertoken_scale: Tensor | None
    group_list: Tensor
    shared_input: Tensor | None
    logit: Tensor | None
    row_index: Tensor | None
    dtype: int
    shared_input_weight: float
    shared_input_offset: int
    transpose_x: bool
    transpose_w: bool
    group_list_type: int
    tuning_config: tuple[int, ...] | None = None
    result: Tensor

    def run(self) -> None:
        """Compute and write the result."""
        refuse_given(antiquant_scale=self.antiquant_scale, antiquant_offset=self.antiquant_offset)
        only("transpose_x", self.transpose_x, False)
        rows = _dequantised_rows(
            self.x, self.w, self.scale, self.bias, self.offset, self.pertoken_scale, self.group_list,
            self.transpose_w, self.group_list_type,
        )  # fmt: skip
        _route(
            rows, self.shared_input, self.logit, self.row_index, self.shared_input_weight, self.shared_input_offset,
            self.result,
        )  # fmt: skip


_DTYPE = {"dtype": "is the output's type, which arrives allocated in it"}
for _name in ("GroupedMatmulFinalizeRoutingV2", "GroupedMatmulFinalizeRoutingWeightNz"):
    register_named(_name, FinalizeRouting, cube=False, unused=_DTYPE)
for _name in ("GroupedMatmulFinalizeRoutingV3", "GroupedMatmulFinalizeRoutingWeightNzV2"):
    register_named(_name, FinalizeRouting, cube=False, unused=TUNING | _DTYPE)


@op("QuantGroupedMatmulDequant", "QuantGroupedMatmulDequantWeightNZ")
def quant_grouped_matmul_dequant(
    x: Tensor,
    quantized_weight: Matrix,
    weight_scale: Tensor,
    group_list: Tensor,
    bias: Tensor | None,
    x_scale: Tensor | None,
    x_offset: Tensor | None,
    smooth_scale: Tensor | None,
    quant_mode: str | None,
    trans: bool,
    out: Tensor,
) -> None:
    """QuantMatmulDequant with a weight for each group of rows (op-plugin's test test_quant_grouped_matmul_dequant)."""
    refuse_given(bias=bias)
    rows, scales = quantised_rows(x, x_scale, x_offset, smooth_scale, quant_mode)
    weight = integers(quantized_weight)
    weight = weight.transpose(-1, -2) if trans else weight
    start = 0
    for group, end in enumerate(group_ends(group_list, 0, x.shape[0], weight.shape[0])):
        product = integer_product(rows[start:end], weight[group])
        scale = scales if scales.shape[0] == 1 else scales[start:end]
        write(out[start:end], dequantised(product, weight_scale[group], None, None)[0] * scale)
        start = end


def _swiglu_quant(
    x: Matrix,
    weight: Matrix,
    weight_scale: Tensor,
    assist: Tensor | None,
    x_scale: Tensor,
    smooth_scale: Tensor | None,
    group_list: Tensor,
    list_type: int,
    output: Quantised,
    output_scale: Tensor,
) -> None:
    left, right = integers(x), integers(weight)
    check_dims("x", left, 2, 2)
    check_dims("weight", right, 3, 3)
    if not isinstance(output, Tensor) or output.dtype != torch.int8:
        raise Unsupported("the output's type", getattr(output, "dtype", "not of torch"), "int8")
    _check_groups(right, group_list)
    start = 0
    for group, end in enumerate(group_ends(group_list, list_type, left.shape[0], right.shape[0])):
        rows = slice(start, end)
        start = end
        if rows.stop == rows.start:
            continue
        product = _group_product(left[rows], right[group], weight_scale[group], assist, group)
        act, gate = (product * x_scale[rows].float().reshape(-1, 1)).chunk(2, -1)
        gated = nn.silu(act) * gate
        if smooth_scale is not None:
            gated = gated * smooth_scale[group].float()
        scaled, scale = symmetric(gated, 127)
        write_quantised(output[rows], scaled)
        write(output_scale[rows], scale.squeeze(-1))


def _group_product(x: Tensor, weight: Tensor, scale: Tensor, assist: Tensor | None, group: int) -> Tensor:
    """One group's product with the weight's scales, in float32."""
    by_groups = scale if scale.dim() == 2 else scale.unsqueeze(0)
    if assist is not None:
        return msd_product(x, weight, by_groups, assist[group])
    if by_groups.shape[0] > 1:
        return grouped_product(x, weight, by_groups, None)
    return integer_product(x, weight).float() * unpacked_scale(by_groups[0])[0]


def _check_groups(weight: Tensor, group_list: Tensor) -> None:
    check_choice("the number of groups", len(group_list), range(1, MOST_GROUPS + 1), f"1 to {MOST_GROUPS}")
    check_shape("group_list", group_list, weight.shape[:1])


def _dequantised_rows(
    x: Matrix,
    w: Matrix,
    scale: Tensor | None,
    bias: Tensor | None,
    offset: Tensor | None,
    pertoken_scale: Tensor | None,
    group_list: Tensor,
    transpose_w: bool,
    list_type: int,
) -> Tensor:
    """Each group's rows times its weight; zero for rows that belong to no group.

    bias: for int8 times int4, what msd_product takes; offset: of the 4-bit weight, for each group of the inner
    dimension, already times its scale (op-plugin's test test_npu_grouped_matmul_finalize_routing).
    """
    check_family("npu_grouped_matmul_finalize_routing", *SINCE_910B)
    left, right = integers(x), integers(w)
    right = right.transpose(-1, -2) if transpose_w else right
    if scale is None:
        raise Illegal("scale", None, "given")
    _check_groups(right, group_list)
    bias, offset = given(bias), given(offset)
    result = torch.zeros(left.shape[0], right.shape[-1])
    start = 0
    for group, end in enumerate(group_ends(group_list, list_type, left.shape[0], right.shape[0])):
        rows = slice(start, end)
        start = end
        part = _group_product(left[rows], right[group], scale[group], bias, group)
        if offset is not None:
            groups = offset.shape[1]
            inner = left[rows].float().view(len(part), groups, left.shape[1] // groups).sum(-1)
            part += inner @ offset[group].float()
        result[rows] = part
    return result if pertoken_scale is None else result * pertoken_scale.float().reshape(-1, 1)


def _route(
    rows: Tensor,
    shared_input: Tensor | None,
    logit: Tensor | None,
    row_index: Tensor | None,
    shared_weight: float,
    shared_offset: int,
    result: Tensor,
) -> None:
    """Add each row, times its logit, to the result's row that row_index names; and the shared expert's rows."""
    if logit is not None:
        rows = rows * logit.float().reshape(-1, 1)
    total = rows if row_index is None else torch.zeros(result.shape).index_add_(0, row_index.long(), rows)
    if shared_input is not None:
        last = shared_offset + shared_input.shape[0]
        if not 0 <= shared_offset <= last <= total.shape[0]:
            raise Illegal("shared_input_offset", shared_offset, f"so that the rows end at {total.shape[0]} at most")
        total[shared_offset:last] += shared_weight * shared_input.float()
    write(result, total)
