"""Tokens brought into the experts' order, for inference: InitRouting and ReRouting."""

from __future__ import annotations

import torch
from torch import Tensor

from gallium.vnpu.checks import (
    FLOATS,
    SINCE_910B,
    check_choice,
    check_dims,
    check_dtype,
    check_family,
    check_shape,
)
from gallium.vnpu.microscaling import FLOOR, quantise_mx
from gallium.vnpu.ops._moe_placement import COUNT, CUMSUM, Placement, expert_counts
from gallium.vnpu.quantisation import INT4_RANGE, Quantised, packed_int4, symmetric, write_quantised
from gallium.vnpu.refusals import Illegal, Unsupported, refuse_given
from gallium.vnpu.registry import op
from gallium.vnpu.tensors import Packed4
from gallium.vnpu.writing import write

NO_QUANT, STATIC, DYNAMIC, MICROSCALING, DYNAMIC_INT4 = -1, 0, 1, (2, 3), 13
MOST_EXPERTS_TO_COUNT = 2048


@op("MoeInitRouting")
def moe_init_routing(
    x: Tensor,
    row_idx: Tensor,
    expert_idx: Tensor,
    active_num: int,
    expanded_x: Tensor,
    expanded_row_idx: Tensor,
    expanded_expert_idx: Tensor,
) -> None:
    """Docs of op-plugin: torch_npu.npu_moe_init_routing, whose choices are numbered by row_idx."""
    check_dtype("x", x, FLOATS)
    check_shape("row_idx", row_idx, expert_idx.shape)
    experts, order = expert_idx.reshape(-1).sort(stable=True)
    source = row_idx.reshape(-1)[order].long()
    write(expanded_expert_idx, experts)
    write(expanded_row_idx, torch.empty_like(order).scatter_(0, source, torch.arange(len(order))))
    rows = min(active_num, x.shape[0]) * expert_idx.shape[1]
    write(expanded_x, x[source[:rows] % x.shape[0]])


@op("MoeInitRoutingV2")
def moe_init_routing_v2(
    x: Tensor,
    expert_idx: Tensor,
    active_num: int,
    expert_capacity: int,
    expert_num: int,
    drop_pad_mode: int,
    expert_tokens_count_or_cumsum_flag: int,
    expert_tokens_before_capacity_flag: bool,
    expanded_x: Tensor,
    expanded_row_idx: Tensor,
    expert_tokens_count_or_cumsum: Tensor | None,
    expert_tokens_before_capacity: Tensor | None,
) -> None:
    """The function of torch_npu.npu_moe_init_routing_v2 on 310P. Token counts by flag: 0 none, 1 sums, 2 counts."""
    placement = Placement(expert_idx, (0, expert_num), drop_pad_mode, expert_capacity, active_num)
    placement.place(x, expanded_x)
    write(expanded_row_idx, placement.destinations())
    _write_counts(
        placement,
        expert_tokens_count_or_cumsum_flag,
        expert_tokens_before_capacity_flag,
        expert_tokens_count_or_cumsum,
        expert_tokens_before_capacity,
    )


@op("MoeInitRoutingQuantV2")
def moe_init_routing_quant(
    x: Tensor,
    expert_idx: Tensor,
    scale: Tensor | None,
    offset: Tensor | None,
    active_num: int,
    expert_capacity: int,
    expert_num: int,
    drop_pad_mode: int,
    expert_tokens_num_mode: int,
    expert_tokens_before_capacity_flag: bool,
    quant_mode: int,
    expanded_x: Quantised,
    expanded_row_idx: Tensor,
    expert_token_cumsum_or_count: Tensor | None,
    expert_tokens_before_capacity: Tensor | None,
    expanded_scale: Tensor | None,
) -> None:
    """MoeInitRoutingV2 that quantises the rows (op-plugin's test test_npu_moe_init_routing_quant)."""
    check_choice("quant_mode", quant_mode, (STATIC, DYNAMIC))
    placement = Placement(expert_idx, (0, expert_num), drop_pad_mode, expert_capacity, active_num)
    _place_quantised(placement, x, scale, offset, quant_mode, expanded_x, expanded_scale)
    write(expanded_row_idx, placement.destinations())
    _write_counts(
        placement,
        expert_tokens_num_mode,
        expert_tokens_before_capacity_flag,
        expert_token_cumsum_or_count,
        expert_tokens_before_capacity,
    )


@op("MoeInitRoutingV3")
def moe_init_routing_v3(
    x: Tensor,
    expert_idx: Tensor,
    scale: Tensor | None,
    offset: Tensor | None,
    active_num: int,
    expert_capacity: int,
    expert_num: int,
    drop_pad_mode: int,
    expert_tokens_num_type: int,
    expert_tokens_num_flag: bool,
    quant_mode: int,
    active_expert_range: tuple[int, ...] | None,
    row_idx_type: int,
    expanded_x: Quantised,
    expanded_row_idx: Tensor,
    expert_tokens_count_or_cumsum: Tensor | None,
    expanded_scale: Tensor | None,
) -> None:
    """Docs of op-plugin: torch_npu.npu_moe_init_routing_v2. Rows and counts that the docs call meaningless keep what
    they held, as on the chip.
    """
    check_family("npu_moe_init_routing_v2", *SINCE_910B)
    check_dims("x", x, 2, 2)
    check_shape("expert_idx", expert_idx, (x.shape[0], expert_idx.shape[-1]))
    check_choice("row_idx_type", row_idx_type, (0, 1))
    if quant_mode not in (NO_QUANT, STATIC, DYNAMIC, *MICROSCALING, DYNAMIC_INT4):
        raise Unsupported("quant_mode", quant_mode, "-1, 0, 1, 2, 3, 13")
    placement = Placement(
        expert_idx, _range(active_expert_range, expert_num), drop_pad_mode, expert_capacity, active_num
    )
    if quant_mode == NO_QUANT:
        refuse_given(offset=offset)
        placement.place(x, expanded_x)
        if scale is not None and expanded_scale is not None:
            check_shape("scale", scale, x.shape[:1])
            placement.place(scale, expanded_scale)
    else:
        _place_quantised(placement, x, scale, offset, quant_mode, expanded_x, expanded_scale)
    if row_idx_type == 1 and drop_pad_mode:
        raise Illegal("row_idx_type", row_idx_type, "0 where tokens are dropped")
    write(expanded_row_idx, placement.order if row_idx_type else placement.destinations())
    if expert_tokens_num_flag and expert_tokens_count_or_cumsum is not None:
        kind = COUNT if drop_pad_mode else expert_tokens_num_type
        write(expert_tokens_count_or_cumsum, expert_counts(placement, kind, expert_num))


@op("MoeReRouting")
def moe_re_routing(
    tokens: Tensor,
    expert_token_num_per_rank: Tensor,
    per_token_scales: Tensor | None,
    expert_token_num_type: int,
    idx_type: int,
    permute_tokens: Tensor,
    permute_per_token_scales: Tensor | None,
    permute_token_idx: Tensor,
    expert_token_num: Tensor,
) -> None:
    """From the order (rank, expert) to (expert, rank): docs of op-plugin, torch_npu.npu_moe_re_routing."""
    check_family("npu_moe_re_routing", *SINCE_910B)
    check_choice("expert_token_num_type", expert_token_num_type, (1,))
    check_choice("idx_type", idx_type, (0,))
    counts = expert_token_num_per_rank.long()
    if int(counts.sum()) != tokens.shape[0]:
        raise Illegal("the sum of expert_token_num_per_rank", int(counts.sum()), f"{tokens.shape[0]}, the tokens")
    experts = torch.arange(counts.shape[1]).repeat(counts.shape[0]).repeat_interleave(counts.reshape(-1))
    order = experts.argsort(stable=True)
    write(permute_tokens, tokens[order])
    write(permute_token_idx, order)
    write(expert_token_num, counts.sum(0))
    if per_token_scales is not None and permute_per_token_scales is not None:
        write(permute_per_token_scales, per_token_scales[order])


@op("MoeComputeExpertTokens")
def moe_compute_expert_tokens(sorted_expert_for_source_row: Tensor, num_expert: int, out: Tensor) -> None:
    """Where the rows of each expert end: docs of op-plugin, torch_npu.npu_moe_compute_expert_tokens."""
    check_dims("sorted_expert_for_source_row", sorted_expert_for_source_row, 1, 1)
    if not 0 < num_expert <= MOST_EXPERTS_TO_COUNT:
        raise Illegal("num_expert", num_expert, f"1 to {MOST_EXPERTS_TO_COUNT}")
    experts = torch.arange(num_expert, dtype=sorted_expert_for_source_row.dtype)
    write(out, torch.searchsorted(sorted_expert_for_source_row.contiguous(), experts, right=True))


@op("MoeUpdateExpert")
def moe_update_expert(
    expert_ids: Tensor,
    eplb_table: Tensor,
    expert_scales: Tensor | None,
    pruning_threshold: Tensor | None,
    active_mask: Tensor | None,
    local_rank_id: int,
    world_size: int,
    balance_mode: int,
    balanced_expert_ids: Tensor,
    balanced_active_mask: Tensor,
) -> None:
    """Which copy of an expert a token goes to, and which choices are pruned: docs, torch_npu.npu_moe_update_expert.

    Without expert_scales the mask keeps what it held, as on the chip.
    """
    check_family("npu_moe_update_expert", "910_93", "950")
    check_choice("balance_mode", balance_mode, (0, 1))
    rows = eplb_table[expert_ids.long()].long()
    copies = rows[..., 0]
    if balance_mode == 0:
        if not 0 <= local_rank_id < world_size:
            raise Illegal("local_rank_id", local_rank_id, f"0 to world_size - 1, {world_size - 1}")
        place = local_rank_id // -(-world_size // copies)
    else:
        place = torch.arange(len(expert_ids)).unsqueeze(1) % copies
    write(balanced_expert_ids, rows.gather(-1, place.unsqueeze(-1) + 1).squeeze(-1))
    if (expert_scales is None) != (pruning_threshold is None):
        raise Illegal("pruning_threshold", pruning_threshold, "given together with expert_scales")
    if expert_scales is None or pruning_threshold is None:
        refuse_given(active_mask=active_mask)
        return
    scales = expert_scales.float()
    kept = scales.sum(-1, keepdim=True) * pruning_threshold.float().reshape(1, -1) < scales
    write(balanced_active_mask, kept if active_mask is None else kept & active_mask.unsqueeze(-1))


def _range(active: tuple[int, ...] | None, expert_num: int) -> tuple[int, int]:
    if not active:
        return 0, expert_num
    if len(active) != 2 or not 0 <= active[0] < active[1] <= expert_num:
        raise Illegal("active_expert_range", active, f"[start, end) inside 0 to expert_num, {expert_num}")
    return active[0], active[1]


def _place_quantised(
    placement: Placement,
    x: Tensor,
    scale: Tensor | None,
    offset: Tensor | None,
    quant_mode: int,
    expanded_x: Quantised,
    expanded_scale: Tensor | None,
) -> None:
    check_dtype("x", x, FLOATS)
    rows = x[placement.tokens]
    if quant_mode == STATIC:
        if scale is None or offset is None:
            raise Illegal("scale and offset", None, "given where quant_mode is 0")
        # In float16, as in the docs' own calculation.
        quantised = rows.half() * scale.reshape(-1)[0].half() + offset.reshape(-1)[0].half()
        placement.place_rows(quantised, expanded_x, write_quantised)
        return
    refuse_given(offset=offset)
    if quant_mode in MICROSCALING:
        check_family("quant_mode 2 or 3", "950")
        refuse_given(scale=scale, drop_pad_mode=placement.dropping or None)
        if not isinstance(expanded_x, Tensor) or expanded_scale is None:
            raise Illegal("expanded_scale", None, "given, and expanded_x of an 8-bit float")
        scales = expanded_scale[: len(rows)].view(len(rows), -1, 2)
        quantise_mx(expanded_x[: len(rows)], scales, rows.float(), -1, FLOOR)
        return
    wide = rows.float()
    if scale is not None:
        wide = wide * (scale if scale.shape[0] == 1 else scale[placement.experts - placement.first])
    if quant_mode == DYNAMIC_INT4:
        _place_int4(wide, expanded_x, expanded_scale)
        return
    quantised, measured = symmetric(wide, 127)
    placement.place_rows(quantised, expanded_x, write_quantised)
    if expanded_scale is not None:
        placement.place_rows(measured.squeeze(-1), expanded_scale, write)


def _place_int4(rows: Tensor, expanded_x: Quantised, expanded_scale: Tensor | None) -> None:
    """Two values to a byte, one row after the other from the start of the output."""
    if not isinstance(expanded_x, Packed4) or expanded_scale is None:
        raise Illegal("expanded_x", expanded_x, "of int4 where quant_mode is 13")
    quantised, measured = symmetric(rows, INT4_RANGE[1])
    pairs = packed_int4(quantised.round()).reshape(-1)
    expanded_x.storage[: len(pairs)].copy_(pairs)
    write(expanded_scale[: len(rows)], measured.squeeze(-1))


def _write_counts(
    placement: Placement, mode: int, before_capacity: bool, counts: Tensor | None, before: Tensor | None
) -> None:
    """The older functions' outputs: 0 no counts, 1 sums, 2 counts; and the counts before tokens were dropped."""
    check_choice("expert_tokens_num_mode", mode, (0, 1, 2))
    if mode and counts is not None and not placement.dropping:
        write(counts, expert_counts(placement, CUMSUM if mode == 1 else COUNT, placement.groups))
    if before_capacity and before is not None and placement.dropping:
        write(before, expert_counts(placement, COUNT, placement.groups))
