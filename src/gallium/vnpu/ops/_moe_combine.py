"""What all forms of MoeDistributeCombine share: the rows' way back, their weights, and experts that need no rank."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from gallium.vnpu.checks import HALVES, check_dtype, check_shape
from gallium.vnpu.expert_parallel import Experts, check_tokens, give_back, routes
from gallium.vnpu.refusals import Illegal


class Special(NamedTuple):
    """Experts that need no rank: zero, copy and constant ones, numbered in this order after the others."""

    zero: int = 0
    copied: int = 0
    const: int = 0
    ori_x: Tensor | None = None
    alpha_1: Tensor | None = None
    alpha_2: Tensor | None = None
    v: Tensor | None = None


def combine(
    experts: Experts,
    expand_x: Tensor,
    expert_ids: Tensor,
    ep_send_counts: Tensor,
    expert_scales: Tensor,
    active: Tensor | None,
    shared_expert_x: Tensor | None,
    special: Special,
    global_bs: int,
    comm_alg: str,
) -> Tensor:
    """What each token gets, [tokens, hidden], in float32. A token that takes no part gets nothing."""
    check_dtype("expand_x", expand_x, HALVES)
    tokens, k = expert_ids.shape
    check_shape("expert_scales", expert_scales, expert_ids.shape)
    check_tokens(tokens, expand_x.shape[1], k, comm_alg, global_bs, experts.group.size)
    ranks, here = experts.group.size, experts.on(experts.group.rank)
    ends = ep_send_counts[: here * ranks].long()
    table = ends.diff(prepend=torch.zeros(1, dtype=torch.int64)).view(here, ranks)
    if int(table.min()) < 0 or int(ends[-1]) > expand_x.shape[0]:
        raise Illegal("ep_send_counts", ends, f"rising sums of at most {expand_x.shape[0]} rows")
    mine = routes(experts, expert_ids, active)
    rows = give_back(experts, mine, expand_x[: int(ends[-1])], table).float()
    weights = expert_scales.float()[mine.tokens, mine.choices.clamp(min=0)]
    weights = torch.where(mine.choices < 0, 1.0, weights)  # shared experts count in full
    total = torch.zeros(tokens, expand_x.shape[1]).index_add_(0, mine.tokens, rows * weights.unsqueeze(-1))
    total += _from_special(experts.moe, expert_ids, expert_scales, active, special)
    return total if shared_expert_x is None else total + shared_expert_x.float().view(total.shape)


def _from_special(
    first: int, expert_ids: Tensor, expert_scales: Tensor, active: Tensor | None, special: Special
) -> Tensor | float:
    """What the experts without a rank give: nothing, the token itself, or alpha_1 * token + alpha_2 * v."""
    if not special.copied and not special.const:
        return 0.0
    if special.ori_x is None:
        raise Illegal("ori_x", None, "given where there are copy or constant experts")
    token = special.ori_x.float()
    taken = torch.ones_like(expert_ids, dtype=torch.bool) if active is None else active.bool()
    weights = expert_scales.float() * (taken if taken.dim() == 2 else taken.unsqueeze(1))
    number = expert_ids.long() - first - special.zero
    copied = (number >= 0) & (number < special.copied)
    total = token * (weights * copied).sum(1, keepdim=True)
    if not special.const:
        return total
    if special.alpha_1 is None or special.alpha_2 is None or special.v is None:
        raise Illegal("const_expert_alpha_1, const_expert_alpha_2, const_expert_v", None, "given")
    for const in range(special.const):
        share = (weights * (number == special.copied + const)).sum(1, keepdim=True)
        value = special.alpha_1[const].float() * token + special.alpha_2[const].float() * special.v[const].float()
        total += share * value
    return total
