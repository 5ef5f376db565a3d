"""Rows given back by the experts' ranks, weighted and added for each token: MoeDistributeCombine."""

from __future__ import annotations

from torch import Tensor

from gallium.vnpu.expert_parallel import find_experts, refuse_reserved
from gallium.vnpu.ops._moe_combine import ASSIST, COMBINE_UNUSED, IDX, Special, combine, refuse_quantised_forms
from gallium.vnpu.registry import op
from gallium.vnpu.writing import write


@op("MoeDistributeCombine", unused=COMBINE_UNUSED | IDX)
def moe_distributecombine(
    expand_x: Tensor,
    expert_ids: Tensor,
    expand_idx: Tensor,
    ep_send_counts: Tensor,
    expert_scales: Tensor,
    tp_send_counts: Tensor | None,
    x_active_mask: Tensor | None,
    activation_scale: Tensor | None,
    weight_scale: Tensor | None,
    group_list: Tensor | None,
    expand_scales: Tensor | None,
    group_ep: str,
    ep_world_size: int,
    ep_rank_id: int,
    moe_expert_num: int,
    group_tp: str,
    tp_world_size: int,
    tp_rank_id: int,
    expert_shard_type: int,
    shared_expert_num: int,
    shared_expert_rank_num: int,
    global_bs: int,
    out_dtype: int,
    comm_quant_mode: int,
    group_list_type: int,
    output: Tensor,
) -> None:
    """Docs of op-plugin: torch_npu.npu_moe_distribute_combine."""
    refuse_quantised_forms(activation_scale, weight_scale, group_list, out_dtype, comm_quant_mode, group_list_type)
    experts = find_experts(
        group_ep, ep_world_size, ep_rank_id, moe_expert_num, tp_world_size, expert_shard_type, shared_expert_num,
        shared_expert_rank_num,
    )  # fmt: skip
    total = combine(
        experts, expand_x, expert_ids, ep_send_counts, expert_scales, x_active_mask, None, Special(), global_bs, ""
    )
    write(output, total)


@op("MoeDistributeCombineV2", unused=COMBINE_UNUSED | ASSIST)
def moe_distribute_combine_v2(
    expand_x: Tensor,
    expert_ids: Tensor,
    assist_info_for_combine: Tensor,
    ep_send_counts: Tensor,
    expert_scales: Tensor,
    tp_send_counts: Tensor | None,
    x_active_mask: Tensor | None,
    activation_scale: Tensor | None,
    weight_scale: Tensor | None,
    group_list: Tensor | None,
    expand_scales: Tensor | None,
    shared_expert_x: Tensor | None,
    group_ep: str,
    ep_world_size: int,
    ep_rank_id: int,
    moe_expert_num: int,
    group_tp: str,
    tp_world_size: int,
    tp_rank_id: int,
    expert_shard_type: int,
    shared_expert_num: int,
    shared_expert_rank_num: int,
    global_bs: int,
    out_dtype: int,
    comm_quant_mode: int,
    group_list_type: int,
    comm_alg: str,
    output: Tensor,
) -> None:
    """Docs of op-plugin: torch_npu.npu_moe_distribute_combine_v2."""
    refuse_quantised_forms(activation_scale, weight_scale, group_list, out_dtype, comm_quant_mode, group_list_type)
    experts = find_experts(
        group_ep, ep_world_size, ep_rank_id, moe_expert_num, tp_world_size, expert_shard_type, shared_expert_num,
        shared_expert_rank_num,
    )  # fmt: skip
    total = combine(
        experts, expand_x, expert_ids, ep_send_counts, expert_scales, x_active_mask, shared_expert_x, Special(),
        global_bs, comm_alg,
    )  # fmt: skip
    write(output, total)


@op("MoeDistributeCombineV3", unused=COMBINE_UNUSED | ASSIST)
def moe_distribute_combine_v3(
    expand_x: Tensor,
    expert_ids: Tensor,
    assist_info_for_combine: Tensor,
    ep_send_counts: Tensor,
    expert_scales: Tensor,
    tp_send_counts: Tensor | None,
    x_active_mask: Tensor | None,
    activation_scale: Tensor | None,
    weight_scale: Tensor | None,
    group_list: Tensor | None,
    expand_scales: Tensor | None,
    shared_expert_x: Tensor | None,
    elastic_info: Tensor | None,
    ori_x: Tensor | None,
    const_expert_alpha_1: Tensor | None,
    const_expert_alpha_2: Tensor | None,
    const_expert_v: Tensor | None,
    group_ep: str,
    ep_world_size: int,
    ep_rank_id: int,
    moe_expert_num: int,
    group_tp: str,
    tp_world_size: int,
    tp_rank_id: int,
    expert_shard_type: int,
    shared_expert_num: int,
    shared_expert_rank_num: int,
    global_bs: int,
    out_dtype: int,
    comm_quant_mode: int,
    group_list_type: int,
    comm_alg: str,
    zero_expert_num: int,
    copy_expert_num: int,
    const_expert_num: int,
    output: Tensor,
) -> None:
    """MoeDistributeCombineV2 with experts that need no rank."""
    refuse_reserved(elastic_info, None)
    refuse_quantised_forms(activation_scale, weight_scale, group_list, out_dtype, comm_quant_mode, group_list_type)
    experts = find_experts(
        group_ep, ep_world_size, ep_rank_id, moe_expert_num, tp_world_size, expert_shard_type, shared_expert_num,
        shared_expert_rank_num,
    )  # fmt: skip
    special = Special(
        zero_expert_num, copy_expert_num, const_expert_num, ori_x, const_expert_alpha_1, const_expert_alpha_2,
        const_expert_v,
    )  # fmt: skip
    total = combine(
        experts, expand_x, expert_ids, ep_send_counts, expert_scales, x_active_mask, shared_expert_x, special,
        global_bs, comm_alg,
    )  # fmt: skip
    write(output, total)


@op("MoeDistributeCombineV4", unused=COMBINE_UNUSED | ASSIST)
def moe_distribute_combine_v4(
    expand_x: Tensor,
    expert_ids: Tensor,
    assist_info_for_combine: Tensor,
    ep_send_counts: Tensor,
    expert_scales: Tensor,
    tp_send_counts: Tensor | None,
    x_active_mask: Tensor | None,
    activation_scale: Tensor | None,
    weight_scale: Tensor | None,
    group_list: Tensor | None,
    expand_scales: Tensor | None,
    shared_expert_x: Tensor | None,
    elastic_info: Tensor | None,
    ori_x: Tensor | None,
    const_expert_alpha_1: Tensor | None,
    const_expert_alpha_2: Tensor | None,
    const_expert_v: Tensor | None,
    performance_info: Tensor | None,
    group_ep: str,
    ep_world_size: int,
    ep_rank_id: int,
    moe_expert_num: int,
    group_tp: str,
    tp_world_size: int,
    tp_rank_id: int,
    expert_shard_type: int,
    shared_expert_num: int,
    shared_expert_rank_num: int,
    global_bs: int,
    out_dtype: int,
    comm_quant_mode: int,
    group_list_type: int,
    comm_alg: str,
    zero_expert_num: int,
    copy_expert_num: int,
    const_expert_num: int,
    output: Tensor,
) -> None:
    """MoeDistributeCombineV3 that could measure itself."""
    refuse_reserved(elastic_info, performance_info)
    refuse_quantised_forms(activation_scale, weight_scale, group_list, out_dtype, comm_quant_mode, group_list_type)
    experts = find_experts(
        group_ep, ep_world_size, ep_rank_id, moe_expert_num, tp_world_size, expert_shard_type, shared_expert_num,
        shared_expert_rank_num,
    )  # fmt: skip
    special = Special(
        zero_expert_num, copy_expert_num, const_expert_num, ori_x, const_expert_alpha_1, const_expert_alpha_2,
        const_expert_v,
    )  # fmt: skip
    total = combine(
        experts, expand_x, expert_ids, ep_send_counts, expert_scales, x_active_mask, shared_expert_x, special,
        global_bs, comm_alg,
    )  # fmt: skip
    write(output, total)
