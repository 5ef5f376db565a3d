"""Experts spread over the ranks of a communicator: which choice of a router goes where, and the ways there and back."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gallium.vnpu import soc
from gallium.vnpu.checks import SINCE_910B, check_choice, check_family, check_shape
from gallium.vnpu.communication import Group, find_group
from gallium.vnpu.refusals import Illegal, refuse_given

# Limits: docs of op-plugin, npu_moe_distribute_dispatch_v2 and npu_moe_distribute_combine_v2.
RANKS = {"910B": (*range(2, 9), 16, 32, 64, 128, 256), "910_93": range(2, 769), "950": range(2, 769)}
MOST_TOKENS = {"910B": 512, "910_93": 512, "950": 512}
HIDDEN = {"910B": range(32, 10 * 1024 + 1, 32), "910_93": range(1024, 8192 + 1), "950": range(1, 1 << 31)}
ALGORITHMS = {
    "910B": ("", "fullmesh", "hierarchy"),
    "910_93": ("", "fullmesh_v1", "fullmesh_v2", "hierarchy"),
    "950": ("", "fullmesh_v1", "fullmesh_v2", "hierarchy"),
}
MOST_EXPERTS, MOST_CHOICES, MOST_SHARED = 1024, 16, 4
UNUSED = {
    "group_tp": "is reserved: the docs say that other values than the default do nothing",
    "tp_rank_id": "is reserved: there is no communication over a second group",
}


@dataclass(frozen=True)
class Experts:
    """How experts lie on ranks: those of shared experts come first, several with the same one, then the others."""

    group: Group
    moe: int  # experts in all
    shared: int
    shared_ranks: int

    @property
    def local(self) -> int:
        """How many of the experts a rank has that has no shared one."""
        return self.moe // (self.group.size - self.shared_ranks)

    def on(self, rank: int) -> int:
        """How many experts this rank has."""
        return 1 if rank < self.shared_ranks else self.local


@dataclass(frozen=True)
class Routes:
    """What this rank sends: a row for each choice, by rank, then expert there, then token.

    tokens, choices: of each row, choices -1 for a shared expert; weights: which row of a table of scales belongs to it;
    counts: [ranks, experts there at most].
    """

    tokens: Tensor
    choices: Tensor
    weights: Tensor
    counts: Tensor

    @property
    def by_rank(self) -> list[int]:
        """How many rows go to each rank."""
        return [int(count) for count in self.counts.sum(1).tolist()]


@dataclass(frozen=True, kw_only=True)
class Placement:
    """The parameters, common to all operators here, that say which expert is where; the base of their calls."""

    group_ep: str
    ep_world_size: int
    ep_rank_id: int
    moe_expert_num: int
    group_tp: str
    tp_world_size: int
    tp_rank_id: int
    expert_shard_type: int
    shared_expert_num: int
    shared_expert_rank_num: int
    elastic_info: Tensor | None = None
    performance_info: Tensor | None = None

    def refuse_reserved(self) -> None:
        """Arguments for hardware that changes while it runs, and for measuring it."""
        refuse_given(elastic_info=self.elastic_info, performance_info=self.performance_info)

    def experts(self) -> Experts:
        """The placement, after the documented checks."""
        check_family("npu_moe_distribute_dispatch", *SINCE_910B)
        family = soc.current().family
        check_choice("ep_world_size", self.ep_world_size, RANKS[family])
        check_choice("tp_world_size", self.tp_world_size, (0, 1))
        check_choice("expert_shard_type", self.expert_shard_type, (0,))
        check_choice("moe_expert_num", self.moe_expert_num, range(1, MOST_EXPERTS + 1), f"1 to {MOST_EXPERTS}")
        check_choice("shared_expert_num", self.shared_expert_num, range(MOST_SHARED + 1), f"0 to {MOST_SHARED}")
        self._check_shared_ranks(family)
        if self.moe_expert_num % (self.ep_world_size - self.shared_expert_rank_num):
            legal = "a multiple of the number of ranks without shared experts"
            raise Illegal("moe_expert_num", self.moe_expert_num, legal)
        group = find_group("group_ep", self.group_ep, self.ep_world_size, self.ep_rank_id)
        shared = self.shared_expert_num if self.shared_expert_rank_num else 0
        return Experts(group, self.moe_expert_num, shared, self.shared_expert_rank_num)

    def _check_shared_ranks(self, family: str) -> None:
        ranks, shared = self.shared_expert_rank_num, self.shared_expert_num
        if family == "910B" and ranks:
            raise Illegal("shared_expert_rank_num", ranks, "0 on 910B, which has no shared experts")
        if not 0 <= ranks < self.ep_world_size:
            raise Illegal("shared_expert_rank_num", ranks, "below ep_world_size")
        if ranks and (not shared or ranks % shared):
            raise Illegal("shared_expert_rank_num", ranks, "a multiple of shared_expert_num")


def check_tokens(tokens: int, hidden: int, choices: int, comm_alg: str, global_bs: int, ranks: int) -> None:
    """The documented limits of a batch of tokens."""
    family = soc.current().family
    check_choice("comm_alg", comm_alg, ALGORITHMS[family])
    if not 0 < tokens <= MOST_TOKENS[family]:
        raise Illegal("the number of tokens", tokens, f"1 to {MOST_TOKENS[family]} on {family}")
    if hidden not in HIDDEN[family]:
        legal = HIDDEN[family]
        raise Illegal("the hidden size", hidden, f"{legal.start} to {legal.stop - 1} by {legal.step} on {family}")
    if not 0 < choices <= MOST_CHOICES:
        raise Illegal("the experts of a token", choices, f"1 to {MOST_CHOICES}")
    if global_bs and (global_bs % ranks or tokens > global_bs // ranks):
        raise Illegal("global_bs", global_bs, f"the largest batch times ep_world_size, {ranks}")


def routes(experts: Experts, expert_ids: Tensor, active: Tensor | None) -> Routes:
    """Where the choices of this rank's tokens go. active: of tokens, or of single choices."""
    tokens, k = expert_ids.shape
    ids = expert_ids.long()
    sent = (ids >= 0) & (ids < experts.moe)
    awake = torch.ones(tokens, dtype=torch.bool)
    if active is not None:
        check_shape("x_active_mask", active, (tokens, k)[: active.dim()])
        mask = active.bool() if active.dim() == 2 else active.bool().unsqueeze(1).expand(tokens, k)
        sent, awake = sent & mask, mask.any(1)
    token, choice = sent.nonzero().unbind(1)
    chosen = ids[token, choice]
    rank = experts.shared_ranks + torch.div(chosen, experts.local, rounding_mode="floor")
    parts = [(token, choice, experts.shared + chosen, rank, chosen % experts.local)]
    for shared in range(experts.shared):
        copies = experts.shared_ranks // experts.shared
        mine = awake.nonzero().squeeze(1)
        there = torch.full_like(mine, shared * copies + experts.group.rank % copies)
        parts.append((mine, torch.full_like(mine, -1), torch.full_like(mine, shared), there, torch.zeros_like(mine)))
    token, choice, weight, rank, place = (torch.cat(each) for each in zip(*parts, strict=True))
    width = max(experts.local, 1)
    key = rank * width + place
    order = key.argsort(stable=True)
    counts = torch.bincount(key, minlength=experts.group.size * width).view(experts.group.size, width)
    return Routes(token[order], choice[order], weight[order], counts)


def arrivals(experts: Experts, mine: Routes) -> Tensor:
    """[experts here, ranks]: how many rows each rank sends to each expert of this one."""
    table = experts.group.all_to_all(mine.counts)
    return table[:, : experts.on(experts.group.rank)].t().contiguous()


def deliver(experts: Experts, mine: Routes, rows: Tensor, table: Tensor) -> Tensor:
    """Send the rows to their experts; the result is by expert, then rank, then token."""
    theirs = experts.group.all_to_all_v(rows, mine.by_rank, [int(n) for n in table.sum(0).tolist()])
    return theirs[_by_expert(table)]


def give_back(experts: Experts, mine: Routes, rows: Tensor, table: Tensor) -> Tensor:
    """The way back: rows by expert, then rank; the result has a row for each of `mine`."""
    outgoing = torch.empty_like(rows)
    outgoing[_by_expert(table)] = rows
    return experts.group.all_to_all_v(outgoing, [int(n) for n in table.sum(0).tolist()], mine.by_rank)


def _by_expert(table: Tensor) -> Tensor:
    """Where the rows, which arrive by rank and then expert, come from when they are put by expert and then rank."""
    places = torch.arange(table.shape[0]).repeat(table.shape[1]).repeat_interleave(table.t().reshape(-1))
    return places.argsort(stable=True)
