"""LightningIndexer, its gradient and its quantised form: the keys that matter most to each query."""

from __future__ import annotations

import torch
from torch import Tensor

from gallium.vnpu import soc
from gallium.vnpu.attention.batches import Batches, causal
from gallium.vnpu.attention.indexer import index_scores, index_terms
from gallium.vnpu.attention.limits import need_chip
from gallium.vnpu.registry import Illegal, only, op

PAGE = "npu_lightning_indexer"
EVERY = (1 << 63) - 1
COUNTS = (*range(1, 2049), 3072, 4096, 5120, 6144, 7168, 8192)


@op("LightningIndexer", cube=True)
def lightning_indexer(
    query: Tensor,
    key: Tensor,
    weights: Tensor,
    actual_seq_lengths_query: Tensor | None,
    actual_seq_lengths_key: Tensor | None,
    block_table: Tensor | None,
    layout_query: str,
    layout_key: str,
    sparse_count: int,
    sparse_mode: int,
    pre_tokens: int,
    next_tokens: int,
    return_value: bool,
    sparse_indices: Tensor,
    sparse_values: Tensor | None,
) -> None:
    """The best keys of each query in falling order, equal ones by position; -1 where there are no more."""
    _check(query, key, weights, sparse_count, PAGE)
    _check_limits(sparse_mode, pre_tokens, next_tokens)
    if query.dtype != key.dtype:
        raise Illegal("key", key, f"of the query's type ({PAGE} page of op-plugin)")
    lengths = (actual_seq_lengths_query, actual_seq_lengths_key)
    batches = Batches(query, key, layout_query, layout_key, *lengths, block_table)
    sparse_indices.fill_(-1)
    if return_value and sparse_values is not None:
        sparse_values.fill_(-torch.inf)
    for b in range(len(batches)):
        rows = [batches.of_queries(x, b) for x in (query, weights)]
        scores = index_scores(rows[0], batches.of_keys(key, b)[:, 0], rows[1])
        best, values = _best(scores, sparse_count, sparse_mode == 3)
        target = batches.of_queries(sparse_indices, b)[:, 0]
        target[:, : best.shape[1]] = best
        if return_value and sparse_values is not None:
            batches.of_queries(sparse_values, b)[:, 0, : best.shape[1]] = values.to(sparse_values.dtype)


@op("QuantLightningIndexer", cube=True)
def quant_lightning_indexer(
    query: Tensor,
    key: Tensor,
    weights: Tensor,
    query_dequant_scale: Tensor,
    key_dequant_scale: Tensor,
    actual_seq_lengths_query: Tensor | None,
    actual_seq_lengths_key: Tensor | None,
    block_table: Tensor | None,
    query_quant_mode: int,
    key_quant_mode: int,
    layout_query: str,
    layout_key: str,
    sparse_count: int,
    sparse_mode: int,
    pre_tokens: int,
    next_tokens: int,
    out: Tensor,
) -> None:
    """Queries and keys in 8 bits with one scale per token and head."""
    page = "npu_quant_lightning_indexer"
    _check(query, key, weights, sparse_count, page)
    _check_limits(sparse_mode, pre_tokens, next_tokens)
    only("query_quant_mode and key_quant_mode", (query_quant_mode, key_quant_mode), (0, 0))
    if sparse_count > 2048 or query.dtype not in (torch.int8, torch.float8_e4m3fn):
        raise Illegal("query and sparse_count", query, f"int8 or float8_e4m3fn, with at most 2048 keys ({page} page)")
    lengths = (actual_seq_lengths_query, actual_seq_lengths_key)
    batches = Batches(query, key, layout_query, layout_key, *lengths, block_table)
    out.fill_(-1)
    for b in range(len(batches)):
        rows, scale, weight = (batches.of_queries(x, b) for x in (query, query_dequant_scale, weights))
        numbers = rows.to(torch.float32) * scale.to(torch.float32)[..., None]
        keys = batches.of_keys(key, b)[:, 0].to(torch.float32)
        keys = keys * batches.of_keys(key_dequant_scale, b).to(torch.float32)
        best, _ = _best(index_scores(numbers, keys, weight), sparse_count, sparse_mode == 3)
        batches.of_queries(out, b)[:, 0, : best.shape[1]] = best


@op(
    "LightningIndexerGrad",
    cube=True,
    unused={
        "head_num": "torch_npu passes 0; the query's shape tells the number of heads",
        "deterministic": "every emulated operator is deterministic",
    },
)
def lightning_indexer_grad(
    query: Tensor,
    key: Tensor,
    dy: Tensor,
    sparse_indices: Tensor,
    weights: Tensor,
    actual_seq_lengths_query: Tensor | None,
    actual_seq_lengths_key: Tensor | None,
    head_num: int,
    layout: str,
    sparse_mode: int,
    pre_tokens: int,
    next_tokens: int,
    deterministic: bool,
    d_query: Tensor,
    d_key: Tensor,
    d_weights: Tensor,
) -> None:
    """Gradients of the chosen values (dy, one per index) by query, key and weights; indices below 0 are none."""
    _check_limits(sparse_mode, pre_tokens, next_tokens)
    batches = Batches(query, key, layout, layout, actual_seq_lengths_query, actual_seq_lengths_key)
    for target in (d_query, d_key, d_weights):
        target.zero_()
    for b in range(len(batches)):
        q, w, index, grad = (batches.of_queries(x, b) for x in (query, weights, sparse_indices, dy))
        k = batches.of_keys(key, b)[:, 0]
        index, grad = index.reshape(len(q), -1), grad.reshape(len(q), -1)
        dense = torch.zeros(len(q), len(k) + 1)
        place = torch.where((index >= 0) & (index < len(k)), index, len(k)).to(torch.int64)
        dense.scatter_add_(1, place, grad.to(torch.float32))
        score_grad = dense[:, : len(k)]
        if sparse_mode == 3:
            score_grad.masked_fill_(causal(len(q), len(k)), 0)
        grads = index_terms(q, k, w).backward(score_grad)
        for target, values in zip((d_query, d_weights), (grads[0], grads[2]), strict=True):
            batches.of_queries(target, b).copy_(values)
        batches.of_keys(d_key, b)[:, 0] = grads[1].to(d_key.dtype)


def _best(scores: Tensor, count: int, causal_too: bool) -> tuple[Tensor, Tensor]:
    if causal_too:
        scores = scores.masked_fill(causal(*scores.shape), -torch.inf)
    values, order = scores.sort(dim=1, descending=True, stable=True)
    values, order = values[:, :count], order[:, :count]
    return torch.where(values == -torch.inf, -1, order).to(torch.int32), values


def _check(query: Tensor, key: Tensor, weights: Tensor, count: int, page: str) -> None:
    need_chip(page, "910B", "910_93", "950")
    heads = query.shape[-2]
    legal = (8, 16, 24, 32, 64) if soc.current().family == "950" else range(1, 65)
    if heads not in legal or key.shape[-2] != 1 or query.shape[-1] != 128 or key.shape[-1] != 128:
        raise Illegal("query", query, f"of at most 64 heads of size 128 (8, 16, 24, 32, 64 on 950) ({page} page)")
    if weights.shape != query.shape[:-1]:
        raise Illegal("weights", weights, f"{list(query.shape[:-1])} ({page} page of op-plugin)")
    if count not in COUNTS:
        raise Illegal("sparse_count", count, f"1 to 2048, or a multiple of 1024 up to 8192 ({page} page of op-plugin)")


def _check_limits(sparse_mode: int, pre_tokens: int, next_tokens: int) -> None:
    only("sparse_mode", sparse_mode, 0, 3)
    only("pre_tokens and next_tokens", (pre_tokens, next_tokens), (EVERY, EVERY))
