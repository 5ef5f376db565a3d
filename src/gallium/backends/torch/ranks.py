"""Ops over several ranks: rows of the vocabulary and whole experts that other ranks hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch

from gallium.backends.torch import routing
from gallium.backends.torch.collectives import Collectives
from gallium.ops.handles import Experts, Linear

Products: TypeAlias = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(x `[tokens, hidden]`, ids `[tokens, k]` of this rank's experts, counted from its first) -> `[tokens, k, hidden]`."""


def embed(token_ids: torch.Tensor, table: Linear, collectives: Collectives) -> torch.Tensor:
    """`table[token_ids]` from a table whose rows are cut over the tensor-parallel group."""
    data: torch.Tensor = table.data
    if collectives.placement.tp == 1:
        return data.index_select(0, token_ids)
    rows = token_ids - collectives.placement.tp_rank * table.out_features
    elsewhere = (rows < 0) | (rows >= table.out_features)
    found = data.index_select(0, rows.clamp(0, table.out_features - 1))
    return collectives.all_reduce(found.masked_fill(elsewhere[:, None], 0))


def experts(
    x: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor, w: Experts, collectives: Collectives
) -> torch.Tensor:
    """Weighted sum of the chosen experts, or this rank's summand of it -> `[tokens, hidden]`, in W's dtype.

    `ids` count the experts of the whole model. Ranks of a tensor-parallel group have the same tokens, and their
    results are to be added up (`Ops.moe` does).
    """
    if collectives.placement.ep == 1:
        return routing.experts(x, weights, ids, w)
    x = x.to(w.data[0].dtype)

    def products(rows: torch.Tensor, local: torch.Tensor) -> torch.Tensor:
        return routing.products(rows, local, w)

    if collectives.placement.dp == 1:
        return own_experts(x, weights, ids, w.num_experts, collectives, products)
    return exchanged_experts(x, weights, ids, w.num_experts, collectives, products)


def own_experts(
    x: torch.Tensor,
    weights: torch.Tensor,
    ids: torch.Tensor,
    held: int,
    collectives: Collectives,
    products: Products,
) -> torch.Tensor:
    """The summand of the `held` experts of this rank; all ranks have the same tokens (`ep > 1`, `dp = 1`)."""
    local = ids - collectives.placement.ep_rank * held
    elsewhere = (local < 0) | (local >= held)
    if not routing.may_wait(x):
        y = products(x, torch.remainder(ids, held)).masked_fill(elsewhere[..., None], 0)
        return routing.weighted_sum(y, weights)
    here = (~elsewhere).flatten().nonzero()[:, 0]
    y = x.new_zeros((ids.numel(), x.shape[1]))
    y[here] = products(x.index_select(0, here // ids.shape[1]), local.flatten()[here][:, None])[:, 0]
    return routing.weighted_sum(y.view(*ids.shape, x.shape[1]), weights)


def exchanged_experts(
    x: torch.Tensor,
    weights: torch.Tensor,
    ids: torch.Tensor,
    held: int,
    collectives: Collectives,
    products: Products,
) -> torch.Tensor:
    """Every (token, slot) goes to the rank of its expert, `held` to a rank, and its product comes back (`dp > 1`).

    The slots are dealt over the ranks of a tensor-parallel group, which have the same tokens: each brings the summand
    of its slots. A rank without tokens takes part. Waits for the counts.
    """
    placement = collectives.placement
    dealt = slice(placement.tp_rank, None, placement.tp)
    weights, ids = weights[:, dealt], ids[:, dealt]
    tokens = torch.arange(len(x), device=x.device)[:, None].expand(ids.shape).flatten()
    chosen = ids.flatten().long()
    order = torch.argsort(chosen, stable=True)  # ranks hold consecutive experts
    ranks = torch.arange(placement.world, device=x.device)
    leaving = (chosen[:, None] // held == ranks).sum(dim=0)
    send, receive = torch.stack([leaving, collectives.exchange_counts(leaving)]).tolist()
    rows = collectives.exchange(x.index_select(0, tokens[order]), send, receive)
    local = collectives.exchange((chosen % held)[order], send, receive)
    back = collectives.exchange(products(rows, local[:, None])[:, 0], receive, send)
    y = torch.empty_like(back)
    y[order] = back
    return routing.weighted_sum(y.view(*ids.shape, x.shape[1]), weights)
