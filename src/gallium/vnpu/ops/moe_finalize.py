"""The experts' rows added up for each token, for inference: MoeFinalizeRouting."""

from __future__ import annotations

import torch
from torch import Tensor

from gallium.vnpu.checks import FLOATS, check_choice, check_dtype, check_same_dtype, check_shape
from gallium.vnpu.refusals import Illegal, only, refuse_given
from gallium.vnpu.registry import op
from gallium.vnpu.writing import write

BY_COLUMN, BY_ROW = (0, 1), (2, 3)  # drop_pad_mode: how expanded_src_to_dst_row is laid out


@op("MoeFinalizeRouting")
def moe_finalize_routing(
    expanded_permuted_rows: Tensor,
    skip1: Tensor | None,
    skip2: Tensor | None,
    bias: Tensor | None,
    scales: Tensor | None,
    expanded_src_to_dst_row: Tensor,
    expert_for_source_row: Tensor | None,
    out: Tensor,
) -> None:
    """The sum of a token's rows, times scales: docs of op-plugin, torch_npu.npu_moe_finalize_routing."""
    _finalize(
        expanded_permuted_rows, expanded_src_to_dst_row, skip1, skip2, bias, scales, expert_for_source_row, 0, 1, out
    )


@op("MoeFinalizeRoutingV2")
def moe_finalize_routing_v2(
    expanded_permuted_rows: Tensor,
    expanded_src_to_dst_row: Tensor,
    skip1: Tensor | None,
    skip2: Tensor | None,
    bias: Tensor | None,
    scales: Tensor | None,
    expert_for_source_row: Tensor | None,
    drop_pad_mode: int,
    out: Tensor,
) -> None:
    """MoeFinalizeRouting with indices by column (drop_pad_mode 0, 1) or by row (2, 3), and dropped tokens (1, 3)."""
    _finalize(
        expanded_permuted_rows,
        expanded_src_to_dst_row,
        skip1,
        skip2,
        bias,
        scales,
        expert_for_source_row,
        drop_pad_mode,
        1,
        out,
    )


@op("MoeFinalizeRoutingV4")
def moe_finalize_routing_v4(
    expanded_permuted_rows: Tensor,
    expanded_src_to_dst_row: Tensor,
    skip1: Tensor | None,
    skip2: Tensor | None,
    bias: Tensor | None,
    scales: Tensor | None,
    expert_for_source_row: Tensor | None,
    reserved_7: Tensor | None,
    reserved_8: Tensor | None,
    reserved_9: Tensor | None,
    reserved_10: Tensor | None,
    drop_pad_mode: int,
    reserved_12: tuple[int, ...] | None,
    reserved_13: tuple[int, ...] | None,
    reserved_14: tuple[int, ...] | None,
    k: int,
    out: Tensor,
) -> None:
    """MoeFinalizeRoutingV2, which takes from k how many rows a token has where there are no scales."""
    refuse_given(reserved_7=reserved_7, reserved_8=reserved_8, reserved_9=reserved_9, reserved_10=reserved_10)
    refuse_given(reserved_12=reserved_12, reserved_13=reserved_13, reserved_14=reserved_14)
    _finalize(
        expanded_permuted_rows,
        expanded_src_to_dst_row,
        skip1,
        skip2,
        bias,
        scales,
        expert_for_source_row,
        drop_pad_mode,
        k,
        out,
    )


def _finalize(
    rows: Tensor,
    index: Tensor,
    skip1: Tensor | None,
    skip2: Tensor | None,
    bias: Tensor | None,
    scales: Tensor | None,
    expert_for_source_row: Tensor | None,
    drop_pad_mode: int,
    k: int,
    out: Tensor,
) -> None:
    check_dtype("expanded_permuted_rows", rows, FLOATS)
    check_choice("drop_pad_mode", drop_pad_mode, (*BY_COLUMN, *BY_ROW))
    for name, given in (("skip1", skip1), ("skip2", skip2)):
        check_same_dtype(name, given, "expanded_permuted_rows", rows)
        check_shape(name, given, out.shape)
    if skip2 is not None and skip1 is None:
        raise Illegal("skip2", skip2, "left out where skip1 is")
    if bias is not None and expert_for_source_row is None:
        raise Illegal("expert_for_source_row", None, "given where bias is")
    top_k = k if scales is None else scales.shape[1]
    flat = rows.reshape(-1, rows.shape[-1])
    if index.numel() != top_k * out.shape[0] or (index.numel() and int(index.max()) >= len(flat)):
        raise Illegal("expanded_src_to_dst_row", index, f"{top_k * out.shape[0]} rows of the {len(flat)} there are")
    by_token = index.view(out.shape[0], top_k) if drop_pad_mode in BY_ROW else index.view(top_k, -1).t()
    total = torch.zeros(out.shape)
    for choice in range(top_k):
        source = by_token[:, choice].long()
        row = flat[source.clamp(min=0)].float().masked_fill_((source < 0).unsqueeze(-1), 0)
        if bias is not None and expert_for_source_row is not None:
            row += bias[expert_for_source_row[:, choice].long()].float()
        total += row if scales is None else row * scales[:, choice, None].float()
    for skip in (skip1, skip2):
        if skip is not None:
            total += skip.float()
    only("the output's type", out.dtype, rows.dtype)
    write(out, total)
