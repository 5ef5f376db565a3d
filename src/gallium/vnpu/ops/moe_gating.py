"""Which experts a token goes to: scores, groups of experts, the best k, and their weights."""

from __future__ import annotations

import torch
from torch import Tensor

from gallium.vnpu.checks import FLOATS, SINCE_910B, check_choice, check_dims, check_dtype, check_family, check_shape
from gallium.vnpu.refusals import Illegal, Unsupported
from gallium.vnpu.registry import op
from gallium.vnpu.writing import write

SOFTMAX, SIGMOID = 0, 1
GROUP_BY_MAXIMUM, GROUP_BY_BEST_TWO = 0, 1
MOST_EXPERTS = 2048
SMALLEST_GROUP, GROUP_ALIGNMENT = 3, 32
MOST_CHOSEN_SOFTMAX = 1024


@op("MoeGatingTopK")
def moe_gating_top_k(
    x: Tensor,
    bias: Tensor | None,
    k: int,
    k_group: int,
    group_count: int,
    group_select_mode: int,
    renorm: int,
    norm_type: int,
    out_flag: bool,
    routed_scaling_factor: float,
    eps: float,
    y: Tensor,
    expert_idx: Tensor,
    out: Tensor,
) -> None:
    """Docs of op-plugin: torch_npu.npu_moe_gating_top_k. Among equal scores the lower index wins, as in the docs' own
    calculation (a stable sort). Without out_flag, `out` keeps what it held, as on the chip.
    """
    _check_gating(x, bias, k, k_group, group_count, renorm)
    scores = _scores(x, norm_type, out if out_flag else None)
    ranked = scores if bias is None else scores + bias.float()
    if group_count > 1:
        ranked = _without_weak_groups(ranked, group_count, k_group, group_select_mode)
    best = torch.sort(ranked, dim=-1, descending=True, stable=True).indices[:, :k]
    write(expert_idx, best)
    write(y, _weights(scores, best, norm_type, routed_scaling_factor, eps))


@op("MoeGatingTopKV2")
def moe_gating_top_k_by_table(
    x: Tensor,
    bias: Tensor | None,
    input_ids: Tensor,
    tid2eid: Tensor,
    k: int,
    k_group: int,
    group_count: int,
    group_select_mode: int,
    renorm: int,
    norm_type: int,
    out_flag: bool,
    routed_scaling_factor: float,
    eps: float,
    y: Tensor,
    expert_idx: Tensor,
    out: Tensor,
) -> None:
    """MoeGatingTopK whose experts are not ranked but looked up by token: row `input_ids[i]` of tid2eid."""
    _check_gating(x, bias, k, k_group, group_count, renorm)
    if bias is not None:
        raise Unsupported("bias", "given", "None where tid2eid names the experts")
    if (k_group, group_count, group_select_mode) != (1, 1, GROUP_BY_MAXIMUM):
        given = (k_group, group_count, group_select_mode)
        raise Unsupported("k_group, group_count, group_select_mode", given, "1, 1, 0 where tid2eid names the experts")
    check_shape("input_ids", input_ids, x.shape[:1])
    scores = _scores(x, norm_type, out if out_flag else None)
    named = tid2eid[input_ids.long()].long()
    write(expert_idx, named)
    write(y, _weights(scores, named, norm_type, routed_scaling_factor, eps))


@op("MoeGatingTopKBackward")
def moe_gating_top_k_backward(
    x_norm: Tensor,
    grad_y: Tensor,
    expert_idx: Tensor,
    renorm: int,
    norm_type: int,
    routed_scaling_factor: float,
    eps: float,
    grad_x: Tensor,
) -> None:
    """The gradient with respect to x; x_norm are the scores before the bias, MoeGatingTopK's third output."""
    check_choice("renorm", renorm, (0,))
    check_choice("norm_type", norm_type, (SOFTMAX, SIGMOID))
    scores, grad, chosen = x_norm.float(), grad_y.float() * routed_scaling_factor, expert_idx.long()
    if norm_type == SIGMOID:
        weights = scores.gather(-1, chosen)
        total = weights.sum(-1, keepdim=True) + eps
        grad = grad / total - (grad * weights).sum(-1, keepdim=True) / total**2
    spread = torch.zeros_like(scores).scatter_add_(-1, chosen, grad)
    if norm_type == SIGMOID:
        write(grad_x, spread * scores * (1 - scores))
    else:
        write(grad_x, scores * (spread - (spread * scores).sum(-1, keepdim=True)))


@op("MoeGatingTopKSoftmax")
def moe_gating_top_k_softmax(
    x: Tensor, finished: Tensor | None, k: int, y: Tensor, expert_idx: Tensor, row_idx: Tensor
) -> None:
    """Docs of op-plugin: torch_npu.npu_moe_gating_top_k_softmax. A finished row names an expert that there is not."""
    _check_softmax(x, k)
    weights, chosen = _best(torch.softmax(x.float(), -1), k)
    write(y, weights)
    write(expert_idx, _unless_finished(chosen, finished, x.shape[-1]))
    rows = x.shape[:-1].numel()
    write(row_idx, torch.arange(rows * k, dtype=torch.int32).view(k, rows).t().reshape(row_idx.shape))


@op("MoeGatingTopKSoftmaxV2")
def moe_gating_top_k_softmax_v2(
    x: Tensor,
    finished: Tensor | None,
    k: int,
    renorm: int,
    softmax_flag: bool,
    y: Tensor,
    expert_idx: Tensor,
    softmax_result: Tensor,
) -> None:
    """With renorm 1 the best k are chosen first and the softmax is over them (op-plugin's test of the same name)."""
    _check_softmax(x, k)
    check_choice("renorm", renorm, (0, 1))
    if renorm:
        best, chosen = _best(x.float(), k)
        write(y, torch.softmax(best, -1))
    else:
        scores = torch.softmax(x.float(), -1)
        best, chosen = _best(scores, k)
        write(y, best)
        if softmax_flag:
            write(softmax_result, scores)
    write(expert_idx, _unless_finished(chosen, finished, x.shape[-1]))


def _check_gating(x: Tensor, bias: Tensor | None, k: int, k_group: int, group_count: int, renorm: int) -> None:
    check_family("npu_moe_gating_top_k", *SINCE_910B)
    check_dtype("x", x, FLOATS)
    check_dims("x", x, 2, 2)
    experts = x.shape[1]
    check_shape("bias", bias, (experts,))
    check_choice("renorm", renorm, (0,))
    if experts > MOST_EXPERTS:
        raise Illegal("the number of experts", experts, f"at most {MOST_EXPERTS}")
    if group_count < 1 or experts % group_count:
        raise Illegal("group_count", group_count, f"a divisor of the number of experts, {experts}")
    group = experts // group_count
    aligned = -(-group // GROUP_ALIGNMENT) * GROUP_ALIGNMENT
    if group < SMALLEST_GROUP or aligned * group_count > MOST_EXPERTS:
        legal = f"so that groups have more than 2 experts and, filled up to 32, at most {MOST_EXPERTS} in all"
        raise Illegal("group_count", group_count, legal)
    if not 1 <= k_group <= group_count:
        raise Illegal("k_group", k_group, f"1 to group_count, {group_count}")
    if not 1 <= k <= group * k_group:
        raise Illegal("k", k, f"1 to {group * k_group}, the experts of k_group groups")


def _scores(x: Tensor, norm_type: int, out: Tensor | None) -> Tensor:
    check_choice("norm_type", norm_type, (SOFTMAX, SIGMOID))
    scores = torch.sigmoid(x.float()) if norm_type == SIGMOID else torch.softmax(x.float(), -1)
    if out is not None:
        write(out, scores)
    return scores


def _without_weak_groups(ranked: Tensor, groups: int, kept: int, mode: int) -> Tensor:
    """The scores, with minus infinity for the experts outside the `kept` best groups."""
    check_choice("group_select_mode", mode, (GROUP_BY_MAXIMUM, GROUP_BY_BEST_TWO))
    grouped = ranked.view(ranked.shape[0], groups, -1)
    worth = grouped.amax(-1) if mode == GROUP_BY_MAXIMUM else grouped.topk(2, -1).values.sum(-1)
    order = torch.sort(worth, dim=-1, descending=True, stable=True).indices
    weak = torch.zeros_like(worth, dtype=torch.bool).scatter_(1, order[:, kept:], True)
    return grouped.masked_fill(weak.unsqueeze(-1), -torch.inf).view(ranked.shape)


def _weights(scores: Tensor, chosen: Tensor, norm_type: int, factor: float, eps: float) -> Tensor:
    weights = scores.gather(-1, chosen)
    if norm_type == SIGMOID:
        weights = weights / (weights.sum(-1, keepdim=True) + eps)
    return weights * factor


def _check_softmax(x: Tensor, k: int) -> None:
    check_family("npu_moe_gating_top_k_softmax", *SINCE_910B)
    check_dtype("x", x, FLOATS)
    check_dims("x", x, 2, 3)
    if not 0 < k <= min(x.shape[-1], MOST_CHOSEN_SOFTMAX):
        raise Illegal("k", k, f"1 to the number of experts, at most {MOST_CHOSEN_SOFTMAX}")


def _best(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    values, indices = torch.sort(scores, dim=-1, descending=True, stable=True)
    return values[..., :k], indices[..., :k]


def _unless_finished(chosen: Tensor, finished: Tensor | None, experts: int) -> Tensor:
    if finished is None:
        return chosen
    check_shape("finished", finished, chosen.shape[:-1])
    return chosen.masked_fill(finished.unsqueeze(-1), experts)
