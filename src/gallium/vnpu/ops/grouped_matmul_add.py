"""Products of groups of the inner dimension, added to what is there: gradients of grouped weights."""

from __future__ import annotations

from torch import Tensor

from gallium.vnpu.checks import check_choice, check_dims
from gallium.vnpu.quantisation import group_ends
from gallium.vnpu.refusals import only
from gallium.vnpu.registry import op

INNER = 2  # group_type


@op("GroupedMatmulAdd")
def grouped_matmul_add(
    x: Tensor,
    weight: Tensor,
    group_list: Tensor,
    y: Tensor,
    transpose_x: bool,
    transpose_weight: bool,
    group_type: int,
) -> None:
    """y += x_g^T @ weight_g for each group of the inner dimension, one block of y each (op-plugin's test of
    npu_grouped_matmul_add_); group_list has the ends."""
    grouped_matmul_add_v2(x, weight, group_list, y, transpose_x, transpose_weight, group_type, 0)


@op("GroupedMatmulAddV2")
def grouped_matmul_add_v2(
    x: Tensor,
    weight: Tensor,
    group_list: Tensor,
    y: Tensor,
    transpose_x: bool,
    transpose_weight: bool,
    group_type: int,
    group_list_type: int,
) -> None:
    """GroupedMatmulAdd whose group_list may have the sizes."""
    only("transpose_x", transpose_x, True)
    only("transpose_weight", transpose_weight, False)
    check_choice("group_type", group_type, (INNER,))
    check_dims("x", x, 2, 2)
    groups = len(group_list)
    blocks = y.view(groups, x.shape[1], weight.shape[1])
    start = 0
    for block, end in zip(blocks, group_ends(group_list, group_list_type, x.shape[0], groups), strict=True):
        block += x[start:end].t().float() @ weight[start:end].float()
        start = end
