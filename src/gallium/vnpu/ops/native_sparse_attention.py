"""Native sparse attention for training: on compressed keys, which also selects blocks, and on the selected blocks."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from gallium.vnpu.attention import layouts, sparse_modes
from gallium.vnpu.attention.core import Attention, attend
from gallium.vnpu.attention.gradient import Forward, Gradients, attend_backward
from gallium.vnpu.attention.importance import importance
from gallium.vnpu.attention.limits import need_chip, need_float, need_groups
from gallium.vnpu.attention.visibility import Visible
from gallium.vnpu.ops.sparse_attention import chosen
from gallium.vnpu.registry import Illegal, Unsupported, only, op, refuse_given

Ints = tuple[int, ...]
ALWAYS = 23333.0  # the importance of a block that topk_mask marks, from op-plugin's test


@op("NsaCompressAttention", cube=True)
def nsa_compress_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    atten_mask: Tensor | None,
    topk_mask: Tensor | None,
    actual_seq_qlen: Ints,
    actual_cmp_seq_kvlen: Ints,
    actual_sel_seq_kvlen: Ints,
    scale: float,
    head_num: int,
    layout: str,
    sparse_mode: int,
    compress_block_size: int,
    compress_stride: int,
    select_block_size: int,
    select_block_count: int,
    softmax_max_out: Tensor,
    softmax_sum_out: Tensor,
    attention_out: Tensor,
    topk_indices_out: Tensor,
) -> None:
    """Attention on compressed keys, and the numbers of the most important blocks, those of topk_mask first."""
    end = _check("npu_nsa_compress_attention", query, key, value, head_num, layout)
    only("sparse_mode", sparse_mode, sparse_modes.ALL)
    sizes = (compress_block_size, compress_stride, select_block_size, select_block_count)
    if sizes != (32, 16, 64, 16):
        raise Illegal("sizes and strides of blocks", sizes, f"(32, 16, 64, 16) {end}")
    group = head_num // key.shape[1]
    if group >= 128 or 128 % group:
        raise Illegal("query heads per key head", group, f"below 128 and a divisor of it {end}")
    per_selected, overlap = select_block_size // compress_stride, compress_block_size // compress_stride
    blocks = layouts.ranges("actual_sel_seq_kvlen", actual_sel_seq_kvlen, max(actual_sel_seq_kvlen))
    if len(blocks) != len(actual_seq_qlen):
        raise Illegal("actual_sel_seq_kvlen", actual_sel_seq_kvlen, f"as long as actual_seq_qlen {end}")
    for cut in layouts.sequences(actual_seq_qlen, actual_cmp_seq_kvlen, query.shape[0], key.shape[0]):
        q, k, count = cut.queries, cut.keys, len(blocks[cut.index])
        if len(k) > 14000 or count != -(-len(k) // per_selected) or count < select_block_count:
            legal = f"a {per_selected}th of actual_cmp_seq_kvlen, rounded up, at least {select_block_count} {end}"
            raise Illegal("actual_sel_seq_kvlen", actual_sel_seq_kvlen, legal)
        views = [_heads(x, part) for x, part in ((query, q), (key, k), (value, k))]
        visible = Visible()
        if atten_mask is not None:
            visible = Visible(hidden=_corner("atten_mask", atten_mask, len(q), len(k), end)[None, None])
        work = Attention(views[0], views[1], views[2], scale, visible)
        stats = [layouts.per_sequence(s, cut, head_num, False)[None] for s in (softmax_max_out, softmax_sum_out)]
        attend(work, _heads(attention_out, q), *stats)
        scores = importance(work, stats[0][..., :1], stats[1][..., :1], per_selected, overlap, count)[0]
        if topk_mask is not None:
            scores.masked_fill_(_corner("topk_mask", topk_mask, len(q), count, end), ALWAYS)
        best = scores.sort(dim=-1, descending=True, stable=True).indices[..., :select_block_count]
        topk_indices_out[q.start : q.stop] = best.transpose(0, 1).to(torch.int32)


@op("NsaSelectedAttention", cube=True)
def nsa_selected_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    topk_indices: Tensor,
    atten_mask: Tensor | None,
    actual_seq_qlen: Ints,
    actual_seq_kvlen: Ints,
    scale: float,
    head_num: int,
    layout: str,
    sparse_mode: int,
    select_block_size: int,
    select_block_count: int,
    softmax_max_out: Tensor,
    softmax_sum_out: Tensor,
    attention_out: Tensor,
) -> None:
    """Attention of each query on its own selected blocks. Without a mask tensor all of their keys are seen."""
    refuse_given(atten_mask=atten_mask)
    only("sparse_mode", sparse_mode, sparse_modes.LEFT_UP)
    _check_selected(query, key, value, topk_indices, head_num, layout, select_block_size, select_block_count)
    for cut in layouts.sequences(actual_seq_qlen, actual_seq_kvlen, query.shape[0], key.shape[0]):
        outs = [_heads(x, cut.queries) for x in (attention_out, softmax_max_out, softmax_sum_out)]
        for heads, _, work in _selected(query, key, value, topk_indices, scale, select_block_size, cut):
            attend(work, *(x[:, heads] for x in outs))


@op("NsaSelectedAttentionGrad", cube=True)
def nsa_selected_attention_grad(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_out: Tensor,
    grad: Tensor,
    softmax_max: Tensor,
    softmax_sum: Tensor,
    topk_indices: Tensor,
    actual_seq_qlen: Ints,
    actual_seq_kvlen: Ints,
    atten_mask: Tensor | None,
    scale: float,
    select_block_size: int,
    select_block_count: int,
    head_num: int,
    layout: str,
    sparse_mode: int,
    query_grad: Tensor,
    key_grad: Tensor,
    value_grad: Tensor,
) -> None:
    """Gradients from the statistics of the forward pass."""
    refuse_given(atten_mask=atten_mask)
    only("sparse_mode", sparse_mode, sparse_modes.LEFT_UP)
    _check_selected(query, key, value, topk_indices, head_num, layout, select_block_size, select_block_count)
    targets = (query_grad, key_grad, value_grad)
    for target in targets:
        target.zero_()
    for cut in layouts.sequences(actual_seq_qlen, actual_seq_kvlen, query.shape[0], key.shape[0]):
        q = cut.queries
        out, maximum, total, dout = (_heads(x, q) for x in (attention_out, softmax_max, softmax_sum, grad))
        into = [_heads(x, part) for x, part in zip(targets, (q, cut.keys, cut.keys), strict=True)]
        for heads, kv, work in _selected(query, key, value, topk_indices, scale, select_block_size, cut):
            grads = Gradients(*(torch.zeros(x.shape) for x in (work.query, work.key, work.value)))
            forward = Forward(out[:, heads], maximum[:, heads, :, :1], total[:, heads, :, :1])
            attend_backward(work, forward, dout[:, heads], grads)
            into[0][:, heads] = grads.query.to(query_grad.dtype)
            into[1][:, kv] = grads.key.to(key_grad.dtype)
            into[2][:, kv] = grads.value.to(value_grad.dtype)


def _check(page: str, query: Tensor, key: Tensor, value: Tensor, heads: int, layout: str) -> str:
    """The end of a sentence that names the page."""
    end = f"({page} page of op-plugin)"
    need_chip(page, "910B", "910_93")
    need_float(page, query=query, key=key, value=value)
    only("layout", layout, "TND")
    if any(x.dim() != 3 for x in (query, key, value)) or query.dtype == torch.float32:
        raise Illegal("query", query, f"float16 or bfloat16 [T, N, D], like key and value {end}")
    if query.shape[1] != heads or key.shape[:2] != value.shape[:2]:
        raise Illegal("head_num", heads, f"that of the query, with as many keys as values {end}")
    need_groups(page, heads, key.shape[1])
    if query.shape[2] != key.shape[2] or key.shape[2] < value.shape[2]:
        raise Illegal("head sizes", (query.shape[2], key.shape[2], value.shape[2]), f"query = key >= value {end}")
    return end


def _check_selected(
    query: Tensor, key: Tensor, value: Tensor, indices: Tensor, heads: int, layout: str, size: int, count: int
) -> None:
    end = _check("npu_nsa_select_attention", query, key, value, heads, layout)
    if (size, count) != (64, 16) or (query.shape[2], value.shape[2]) != (192, 128):
        sizes = (size, count, query.shape[2], value.shape[2])
        raise Illegal("sizes of blocks, their count and head sizes", sizes, f"(64, 16, 192, 128) {end}")
    if heads > 128 or heads // key.shape[1] > 32:
        raise Illegal("head_num", heads, f"at most 128, and 32 per head of the key {end}")
    if tuple(indices.shape) != (query.shape[0], key.shape[1], count) or indices.dtype != torch.int32:
        raise Illegal("topk_indices", indices, f"int32 {[query.shape[0], key.shape[1], count]} {end}")
    ordered = indices.sort(-1).values
    if (ordered[..., 1:] == ordered[..., :-1]).any():
        raise Unsupported("topk_indices", "a block more than once", "different blocks for each query")


def _selected(
    query: Tensor, key: Tensor, value: Tensor, indices: Tensor, scale: float, size: int, cut: layouts.Packed
) -> Iterator[tuple[slice, slice, Attention]]:
    """For each head of the key: the heads of the query, those of the key, and the computation."""
    if not len(cut.queries):
        return
    rows, blocks = slice(cut.queries.start, cut.queries.stop), len(cut.keys) // size
    group = query.shape[1] // key.shape[1]
    if len(cut.keys) % size or not 0 <= int(indices[rows].min()) <= int(indices[rows].max()) < blocks:
        legal = (
            f"numbers of blocks of {size} tokens, from 0 to {blocks - 1} (npu_nsa_select_attention page of op-plugin)"
        )
        raise Illegal("topk_indices", indices, legal)
    views = [_heads(x, part) for x, part in ((query, cut.queries), (key, cut.keys), (value, cut.keys))]
    for n in range(key.shape[1]):
        heads, kv = slice(n * group, (n + 1) * group), slice(n, n + 1)
        seen = chosen(indices[rows, n], size, len(cut.keys), False)
        work = Attention(views[0][:, heads], views[1][:, kv], views[2][:, kv], scale, Visible(hidden=~seen[None, None]))
        yield heads, kv, work


def _heads(x: Tensor, rows: range) -> Tensor:
    """[1, N, S, D] of some tokens of [T, N, D]."""
    return x[rows.start : rows.stop].transpose(0, 1)[None]


def _corner(name: str, mask: Tensor, rows: int, columns: int, end: str) -> Tensor:
    """The part of a mask [largest S, largest S] for one sequence, as bool."""
    if mask.dim() != 2 or mask.shape[0] < rows or mask.shape[1] < columns:
        raise Illegal(name, mask, f"of the longest sequence, at least [{rows}, {columns}] {end}")
    return sparse_modes.as_bool(mask[:rows, :columns])
