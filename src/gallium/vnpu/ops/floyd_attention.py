"""Attention over pivots: each query (i, k) weighs nodes j by keys (i, j) and (j, k), and its gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from gallium.vnpu.attention.limits import need_chip
from gallium.vnpu.registry import Illegal, op

PAGE = "npu_fused_floyd_attention"


@op("FusedFloydAttention", cube=True)
def fused_floyd_attention(
    query_ik: Tensor,
    key_ij: Tensor,
    value_ij: Tensor,
    key_jk: Tensor,
    value_jk: Tensor,
    atten_mask: Tensor | None,
    scale: float,
    softmax_max: Tensor,
    softmax_sum: Tensor,
    attention_out: Tensor,
) -> None:
    """query [B, H, N, M, D], first keys [B, H, N, K, D], second keys [B, H, K, M, D]."""
    _check(query_ik, key_ij, value_ij, key_jk, value_jk, atten_mask)
    for head in _heads(query_ik):
        scores = _scores(query_ik, key_ij, key_jk, atten_mask, scale, head)
        top = scores.amax(-1, keepdim=True).clamp_(min=torch.finfo(torch.float32).min)
        scores.sub_(top).exp_()
        total = scores.sum(-1, keepdim=True)
        weights = scores.div_(total + (total == 0))
        first, second = (x[head].to(torch.float32) for x in (value_ij, value_jk))
        attention_out[head] = (weights @ first + torch.einsum("nmk,kmd->nmd", weights, second)).to(attention_out.dtype)
        softmax_max[head] = top.expand(*top.shape[:-1], 8)
        softmax_sum[head] = total.expand(*total.shape[:-1], 8)


@op("FusedFloydAttentionGrad", cube=True)
def fused_floyd_attention_grad(
    query_ik: Tensor,
    key_ij: Tensor,
    value_ij: Tensor,
    key_jk: Tensor,
    value_jk: Tensor,
    grad_output: Tensor,
    atten_mask: Tensor | None,
    softmax_max: Tensor,
    softmax_sum: Tensor,
    attention_out: Tensor,
    scale: float,
    d_query_ik: Tensor,
    d_key_ij: Tensor,
    d_value_ij: Tensor,
    d_key_jk: Tensor,
    d_value_jk: Tensor,
) -> None:
    """Gradients from the maximum and sum of the softmax."""
    _check(query_ik, key_ij, value_ij, key_jk, value_jk, atten_mask)
    for head in _heads(query_ik):
        query, key1, value1, key2, value2, grad, out = (
            x[head].to(torch.float32)
            for x in (query_ik, key_ij, value_ij, key_jk, value_jk, grad_output, attention_out)
        )
        scores = _scores(query_ik, key_ij, key_jk, atten_mask, scale, head)
        total = softmax_sum[head][..., :1]
        weights = scores.sub_(softmax_max[head][..., :1]).exp_().div_(total + (total == 0))
        d_value_ij[head] = (weights.transpose(-1, -2) @ grad).to(d_value_ij.dtype)
        d_value_jk[head] = torch.einsum("nmk,nmd->kmd", weights, grad).to(d_value_jk.dtype)
        inner = grad @ value1.transpose(-1, -2) + torch.einsum("nmd,kmd->nmk", grad, value2)
        inner = (inner - (grad * out).sum(-1, keepdim=True)) * weights * scale
        d_query_ik[head] = (inner @ key1 + torch.einsum("nmk,kmd->nmd", inner, key2)).to(d_query_ik.dtype)
        d_key_ij[head] = (inner.transpose(-1, -2) @ query).to(d_key_ij.dtype)
        d_key_jk[head] = torch.einsum("nmk,nmd->kmd", inner, query).to(d_key_jk.dtype)


def _heads(query: Tensor) -> list[tuple[int, int]]:
    return [(b, h) for b in range(query.shape[0]) for h in range(query.shape[1])]


def _scores(
    query: Tensor, key_ij: Tensor, key_jk: Tensor, mask: Tensor | None, scale: float, head: tuple[int, int]
) -> Tensor:
    """[N, M, K] of one head."""
    q, first, second = (x[head].to(torch.float32) for x in (query, key_ij, key_jk))
    scores = (q @ first.transpose(-1, -2) + torch.einsum("nmd,kmd->nmk", q, second)).mul_(scale)
    if mask is not None:
        scores.masked_fill_(mask[head[0], 0] != 0, -torch.inf)
    return scores


def _check(
    query: Tensor, key_ij: Tensor, value_ij: Tensor, key_jk: Tensor, value_jk: Tensor, mask: Tensor | None
) -> None:
    need_chip(PAGE, "910_93", "910B")
    batch, heads, rows, columns, size = query.shape
    nodes, end = key_ij.shape[3], f"({PAGE} page of op-plugin)"
    if rows % 16 or columns % 128 or nodes % 128 or size not in (32, 64, 128):
        raise Illegal("query_ik", query, f"[B, H, N, M, D], N a multiple of 16, M and K of 128, D 32, 64 or 128 {end}")
    for name, x, shape in (
        ("key_ij", key_ij, (batch, heads, rows, nodes, size)),
        ("value_ij", value_ij, (batch, heads, rows, nodes, size)),
        ("key_jk", key_jk, (batch, heads, nodes, columns, size)),
        ("value_jk", value_jk, (batch, heads, nodes, columns, size)),
    ):
        if x.shape != shape or x.dtype != query.dtype:
            raise Illegal(name, x, f"{list(shape)} of the query's type {end}")
    if mask is not None and (mask.shape != (batch, 1, rows, 1, nodes) or mask.dtype not in (torch.bool, torch.uint8)):
        raise Illegal("atten_mask", mask, f"bool or uint8 {[batch, 1, rows, 1, nodes]} {end}")
