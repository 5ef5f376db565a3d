"""Which experts a token goes to, and their products in three ways: by group, by gathered weights, all of them."""

from __future__ import annotations

import itertools

import torch

from gallium.backends.torch.rows import swiglu
from gallium.ops.handles import Experts, MoeSpec

NO_SYNC_TOKENS = 256  # up to here an accelerator is not asked how many tokens each expert has: a graph can hold it
GATHER_COST = 3  # copying an expert's weights reads, writes and reads again


def best_first(x: torch.Tensor) -> torch.Tensor:
    """Indices that sort the last axis downwards, ties to the lower index."""
    return torch.sort(x, dim=-1, descending=True, stable=True).indices


def allowed_experts(choice: torch.Tensor, spec: MoeSpec) -> torch.Tensor:
    """Boolean `[tokens, experts]`: members of the `top_groups` groups whose two best scores sum highest."""
    groups = choice.view(len(choice), spec.num_groups, spec.num_experts // spec.num_groups)
    score = groups.topk(min(2, groups.shape[-1]), dim=-1).values.sum(dim=-1)
    kept = torch.zeros_like(score, dtype=torch.bool)
    kept.scatter_(-1, best_first(score)[:, : spec.top_groups], True)
    return kept.repeat_interleave(groups.shape[-1], dim=-1)


def route(logits: torch.Tensor, bias: torch.Tensor, spec: MoeSpec) -> tuple[torch.Tensor, torch.Tensor]:
    """Top-k of scores + bias in the allowed groups, best first -> (float32 weights, int32 ids), `[tokens, top_k]`."""
    logits = logits.float()
    scores = torch.sigmoid(logits) if spec.scoring == "sigmoid" else torch.softmax(logits, dim=-1)
    choice = scores + bias
    if spec.num_groups > 1:
        choice = choice.masked_fill(~allowed_experts(choice, spec), -torch.inf)
    ids = best_first(choice)[:, : spec.top_k]
    weights = scores.gather(-1, ids)  # without the bias
    if spec.renormalize:
        weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-20)
    return weights * spec.routed_scale, ids.int()


def experts(x: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor, w: Experts) -> torch.Tensor:
    """Weighted sum of the chosen experts' outputs, in the order of `ids` -> `[tokens, hidden]`, in W's dtype."""
    return weighted_sum(products(x, ids, w), weights)


def weighted_sum(y: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """`[tokens, top_k, hidden]` with weights `[tokens, top_k]`, added up in float32 -> `[tokens, hidden]`."""
    return (y.float() * weights.float()[..., None]).sum(dim=1).to(y.dtype)


def may_wait(x: torch.Tensor) -> bool:
    """Whether the host may ask for counts: not while an accelerator decodes, which a graph should be able to hold."""
    return x.device.type == "cpu" or len(x) > NO_SYNC_TOKENS


def products(x: torch.Tensor, ids: torch.Tensor, w: Experts) -> torch.Tensor:
    """Every chosen expert's output -> `[tokens, top_k, hidden]`, in W's dtype."""
    gate_up, down = w.data
    x = x.to(gate_up.dtype)
    if ids.numel() == 0:
        return x.new_empty((*ids.shape, down.shape[1]))
    if may_wait(x):
        return by_group(x, ids, gate_up, down)
    if GATHER_COST * ids.numel() < len(gate_up):
        return by_gathering(x, ids, gate_up, down)
    return by_all(x, ids, gate_up, down)


def by_group(x: torch.Tensor, ids: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    """`[tokens, top_k, hidden]`: one product per expert that was chosen. Waits for the counts."""
    chosen = ids.long().flatten()
    order = torch.argsort(chosen, stable=True)
    counts = torch.bincount(chosen, minlength=len(gate_up)).tolist()
    rows = x.index_select(0, order // ids.shape[1])
    ends = list(itertools.accumulate(counts))
    parts = [
        swiglu(rows[end - count : end] @ gate_up[e].T) @ down[e].T
        for e, (count, end) in enumerate(zip(counts, ends, strict=True))
        if count
    ]
    y = x.new_empty((len(chosen), down.shape[1]))
    y[order] = torch.cat(parts)
    return y.view(*ids.shape, -1)


def by_gathering(x: torch.Tensor, ids: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    """The same without waiting: copies the chosen experts' weights, which pays off for few pairs."""
    chosen = ids.long().flatten()
    rows = x.repeat_interleave(ids.shape[1], dim=0)[:, :, None]
    hidden = swiglu(torch.bmm(gate_up.index_select(0, chosen), rows)[..., 0])
    return torch.bmm(down.index_select(0, chosen), hidden[:, :, None])[..., 0].view(*ids.shape, -1)


def by_all(x: torch.Tensor, ids: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    """The same without waiting: every expert sees every token. As fast as weights can be read while tokens are few."""
    all_rows = x.expand(len(gate_up), *x.shape)
    y = torch.bmm(swiglu(torch.bmm(all_rows, gate_up.transpose(1, 2))), down.transpose(1, 2))
    return y[ids.long(), torch.arange(len(x), device=x.device)[:, None]]
