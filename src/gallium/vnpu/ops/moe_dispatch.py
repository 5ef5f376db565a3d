"""Tokens sent to the ranks of their experts: MoeDistributeDispatch; and the barrier that belongs to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from gallium.vnpu.checks import HALVES, check_choice, check_dtype, check_family, check_shape
from gallium.vnpu.communication import find_group
from gallium.vnpu.expert_parallel import (
    UNUSED,
    Experts,
    Placement,
    Routes,
    arrivals,
    check_tokens,
    deliver,
    routes,
)
from gallium.vnpu.named import register_named
from gallium.vnpu.quantisation import symmetric, write_quantised
from gallium.vnpu.refusals import Illegal, only, refuse_given
from gallium.vnpu.registry import op
from gallium.vnpu.writing import write

NO_QUANT, DYNAMIC = 0, 2
ENDS, COUNTS = 0, 1  # expert_token_nums_type

_UNUSED = UNUSED | {"tp_recv_counts": "is reserved: the docs say that it means nothing"}


class _Outputs(NamedTuple):
    expand_x: Tensor
    dynamic_scales: Tensor | None
    expert_token_nums: Tensor
    ep_recv_counts: Tensor
    expand_scales: Tensor | None


@dataclass(frozen=True, kw_only=True)
class Dispatch(Placement):
    """Docs of op-plugin: torch_npu.npu_moe_distribute_dispatch, npu_moe_distribute_dispatch_v2.

    expand_idx: for each choice, how many earlier ones of this rank name the same expert. assist_info_for_combine
    becomes zero: what it holds is the chip's own affair, and combining here needs the counts only.
    """

    x: Tensor
    expert_ids: Tensor
    scales: Tensor | None
    x_active_mask: Tensor | None
    expert_scales: Tensor | None
    quant_mode: int
    global_bs: int
    expert_token_nums_type: int
    comm_alg: str = ""
    expand_x: Tensor
    dynamic_scales: Tensor | None
    expand_idx: Tensor | None = None
    assist_info_for_combine: Tensor | None = None
    expert_token_nums: Tensor
    ep_recv_counts: Tensor
    tp_recv_counts: Tensor | None
    expand_scales: Tensor | None

    def run(self) -> None:
        """Send, and write all outputs."""
        outputs = _Outputs(
            self.expand_x, self.dynamic_scales, self.expert_token_nums, self.ep_recv_counts, self.expand_scales
        )
        _dispatch(
            self.experts(), self.x, self.expert_ids, self.scales, self.x_active_mask, self.expert_scales,
            self.quant_mode, self.global_bs, self.expert_token_nums_type, self.comm_alg, outputs,
        )  # fmt: skip
        if self.expand_idx is not None:
            write(self.expand_idx, _earlier_choices(self.expert_ids))
        if self.assist_info_for_combine is not None:
            self.assist_info_for_combine.zero_()


@dataclass(frozen=True, kw_only=True)
class DispatchWithSpecial(Dispatch):
    """With experts that need no rank: their choices are not sent."""

    zero_expert_num: int
    copy_expert_num: int
    const_expert_num: int

    def run(self) -> None:
        """Check their numbers, then as without them."""
        special = (self.zero_expert_num, self.copy_expert_num, self.const_expert_num)
        _check_ids(self.expert_ids, self.moe_expert_num, *special)
        self.refuse_reserved()
        super().run()


_SAME = {"assist_info_forcombine": "assist_info_for_combine"}
for _name in ("MoeDistributeDispatch", "MoeDistributeDispatchV2"):
    register_named(_name, Dispatch, same=_SAME, cube=False, unused=_UNUSED)
for _name in ("MoeDistributeDispatchV3", "MoeDistributeDispatchV4"):
    register_named(_name, DispatchWithSpecial, same=_SAME, cube=False, unused=_UNUSED)


@op("DistributeBarrier", unused={"x": "is passed through: the operator only waits for the other ranks"})
def distribute_barrier(x: Tensor, group: str, world_size: int) -> None:
    """Return when all ranks of the communicator are here."""
    check_family("_npu_distribute_barrier", "910_93", "950")
    find_group("group", group, world_size).barrier()


@op("DistributeBarrierV2", unused={"x": "is passed through: the operator only waits for the other ranks"})
def distribute_barrier_v2(
    x: Tensor, time_out: Tensor | None, elastic_info: Tensor | None, group: str, world_size: int
) -> None:
    """DistributeBarrier; a time limit of its own is not emulated."""
    check_family("_npu_distribute_barrier", "910_93", "950")
    refuse_given(time_out=time_out, elastic_info=elastic_info)
    find_group("group", group, world_size).barrier()


def _earlier_choices(expert_ids: Tensor) -> Tensor:
    flat = expert_ids.reshape(-1).long()
    order = flat.argsort(stable=True)
    counts = torch.bincount(flat)
    starts = (counts.cumsum(0) - counts)[flat[order]]
    return torch.empty_like(order).scatter_(0, order, torch.arange(len(flat)) - starts)


def _check_ids(expert_ids: Tensor, moe: int, zero: int, copied: int, const: int) -> None:
    """The numbers of experts that need no rank come after those of the others."""
    limit = moe + zero + copied + const
    if min(zero, copied, const) < 0:
        raise Illegal("the numbers of special experts", (zero, copied, const), "0 or more")
    if expert_ids.numel() and not 0 <= int(expert_ids.min()) <= int(expert_ids.max()) < limit:
        raise Illegal("expert_ids", expert_ids, f"0 to {limit - 1}")


def _dispatch(
    experts: Experts,
    x: Tensor,
    expert_ids: Tensor,
    scales: Tensor | None,
    active: Tensor | None,
    expert_scales: Tensor | None,
    quant_mode: int,
    global_bs: int,
    nums_type: int,
    comm_alg: str,
    out: _Outputs,
) -> None:
    check_dtype("x", x, (*HALVES, torch.int32))
    check_shape("expert_ids", expert_ids, (x.shape[0], expert_ids.shape[-1]))
    check_choice("expert_token_nums_type", nums_type, (ENDS, COUNTS))
    check_tokens(x.shape[0], x.shape[1], expert_ids.shape[1], comm_alg, global_bs, experts.group.size)
    mine = routes(experts, expert_ids, active)
    table = arrivals(experts, mine)
    received = int(table.sum())
    if received > out.expand_x.shape[0]:
        raise Illegal("the rows of expand_x", out.expand_x.shape[0], f"{received} or more: so many tokens arrive")
    sent, row_scales = _rows(x, scales, mine, quant_mode)
    arrived = deliver(experts, mine, sent, table)
    write(out.expand_x[:received], arrived)
    if row_scales is not None and out.dynamic_scales is not None:
        write(out.dynamic_scales[:received], deliver(experts, mine, row_scales, table))
    if expert_scales is not None and out.expand_scales is not None:
        weights = expert_scales.float()[mine.tokens, mine.choices.clamp(min=0)]
        write(out.expand_scales[:received], deliver(experts, mine, weights, table))
    per_expert = table.sum(1)
    write(out.expert_token_nums, per_expert if nums_type == COUNTS else per_expert.cumsum(0))
    ends = table.reshape(-1).cumsum(0)
    write(out.ep_recv_counts[: len(ends)], ends)


def _rows(x: Tensor, scales: Tensor | None, mine: Routes, quant_mode: int) -> tuple[Tensor, Tensor | None]:
    """The rows to send, and a scale for each if they have one: measured, or given with 4-bit integers in int32."""
    only("quant_mode", quant_mode, NO_QUANT, DYNAMIC)
    rows = x[mine.tokens]
    if quant_mode == NO_QUANT:
        if (x.dtype == torch.int32) != (scales is not None):
            raise Illegal("scales", scales, "given with an int32 x, and left out where nothing is quantised")
        return rows, None if scales is None else scales.float()[mine.tokens]
    wide = rows.float() if scales is None else rows.float() * scales[mine.weights]
    scaled, measured = symmetric(wide, 127)
    quantised = torch.empty(rows.shape, dtype=torch.int8)
    write_quantised(quantised, scaled)
    return quantised, measured.squeeze(-1)
