"""Native sparse attention for inference: one query per sequence, keys and values in pages."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from gallium.vnpu.attention import paged
from gallium.vnpu.attention.core import Attention, attend
from gallium.vnpu.attention.importance import importance
from gallium.vnpu.attention.limits import need_chip, need_float, need_groups
from gallium.vnpu.ops.sparse_attention import chosen
from gallium.vnpu.registry import Illegal, only, op, refuse_given

Ints = tuple[int, ...]


@dataclass(frozen=True)
class Pages:
    """Queries [B, N, 1, D], caches [blocks, size, Nkv * D] or [blocks, size, Nkv, D], lengths one by one."""

    page: str
    queries: Tensor
    key: Tensor
    value: Tensor
    kv_heads: int
    block_table: Tensor | None
    block: int
    lengths: Ints

    def check(self, group: int, blocks: Collection[int], batch: int) -> str:
        """Raise Illegal for what both pages exclude; the end of a sentence that names the page."""
        end = f"({self.page} page of op-plugin)"
        need_chip(self.page, "910B", "910_93")
        need_float(self.page, query=self.queries, key=self.key, value=self.value)
        need_groups(self.page, self.queries.shape[1], self.kv_heads)
        if self.queries.shape[1] // self.kv_heads > group:
            raise Illegal("query heads per key head", self.queries.shape[1] // self.kv_heads, f"at most {group} {end}")
        if self.block not in blocks or {self.key.shape[1], self.value.shape[1]} != {self.block}:
            raise Illegal("page_block_size", self.block, f"one of {sorted(blocks)}, as the caches have it {end}")
        if not 1 <= len(self.queries) == len(self.lengths) <= batch or self.block_table is None:
            raise Illegal("the batch", len(self.lengths), f"that of query and block_table, at most {batch} {end}")
        return end

    def heads(self, cache: Tensor) -> Tensor:
        """A cache as [blocks, size, Nkv * D]."""
        return cache.flatten(2) if cache.dim() == 4 else cache

    def sequences(self) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Length, keys and values [1, Nkv, length, D] of each sequence."""
        assert self.block_table is not None
        key, value = self.heads(self.key), self.heads(self.value)
        for b, length in enumerate(self.lengths):
            blocks = paged.blocks_of(self.block_table, b, length, self.block, key.shape[0])
            k, v = (paged.gather(x, blocks, self.kv_heads, length) for x in (key, value))
            yield length, k, v


def single(page: str, query: Tensor, layout: str, heads: int, layouts: Collection[str]) -> Tensor:
    """Queries [B, N, 1, D] from [B, N, D] (TND), [B, 1, N, D] or [B, 1, N * D]."""
    if layout not in layouts:
        raise Illegal("layout", layout, f"{' or '.join(layouts)} ({page} page of op-plugin)")
    one = layout == "TND" or query.shape[1] == 1
    if query.dim() != (4 if layout == "BSND" else 3) or not one or (layout != "BSH" and query.shape[-2] != heads):
        raise Illegal("query", query, f"one query of {heads} heads per sequence, for layout {layout} ({page} page)")
    return query.reshape(query.shape[0], heads, 1, -1)


@op("NsaCompressAttentionInfer", cube=True)
def nsa_compress_attention_infer(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    atten_mask: Tensor | None,
    block_table: Tensor | None,
    actual_seq_qlen: Ints,
    actual_cmp_seq_kvlen: Ints,
    actual_sel_seq_kvlen: Ints,
    topk_mask: Tensor | None,
    head_num: int,
    key_value_head_num: int,
    select_block_size: int,
    select_block_count: int,
    compress_block_size: int,
    compress_stride: int,
    scale: float,
    layout: str,
    page_block_size: int,
    sparse_mode: int,
    out: Tensor,
    topk_indices_out: Tensor,
) -> None:
    """One query per sequence on compressed keys in pages.

    The first block and the last two are always selected and come first, then the others in falling order.
    """
    refuse_given(atten_mask=atten_mask, topk_mask=topk_mask)
    refuse_given(actual_seq_qlen=actual_seq_qlen, actual_sel_seq_kvlen=actual_sel_seq_kvlen)
    only("sparse_mode", sparse_mode, 0)
    page = "npu_nsa_compress_attention_infer"
    queries = single(page, query, layout, head_num, ("TND", "BSND"))
    pages = Pages(page, queries, key, value, key_value_head_num, block_table, page_block_size, actual_cmp_seq_kvlen)
    end = pages.check(128, range(16, 129, 16), 20)
    _check_compressed(pages, (compress_block_size, compress_stride, select_block_size), end)
    per_selected, overlap = select_block_size // compress_stride, compress_block_size // compress_stride
    rows, numbers = [], []
    for b, (length, k, v) in enumerate(pages.sequences()):
        count = -(-((length - 1) * compress_stride + compress_block_size) // select_block_size)
        if not 3 <= select_block_count <= count or count > 4096:
            raise Illegal("select_block_count", select_block_count, f"from 3 to the number of blocks, {count} {end}")
        work = Attention(queries[b : b + 1], k, v, scale)
        row = torch.empty(1, head_num, 1, v.shape[3])
        top, total = torch.empty(1, head_num, 1, 1), torch.empty(1, head_num, 1, 1)
        attend(work, row, top, total)
        scores = importance(work, top, total, per_selected, overlap, count)[0, :, 0]
        others = (
            scores[:, 1 : count - 2].sort(dim=-1, descending=True, stable=True).indices[:, : select_block_count - 3]
        )
        always = torch.tensor([0, count - 2, count - 1]).expand(len(scores), 3)
        rows.append(row)
        numbers.append(torch.cat((always, others + 1), 1))
    out.copy_(torch.cat(rows).reshape(out.shape))
    topk_indices_out.copy_(torch.stack(numbers).reshape(topk_indices_out.shape))


@op("NsaSelectedAttentionInfer", cube=True)
def nsa_selected_attention_infer(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    topk_indices: Tensor,
    atten_mask: Tensor | None,
    block_table: Tensor | None,
    actual_seq_qlen: Ints,
    actual_seq_kvlen: Ints,
    layout: str,
    head_num: int,
    key_value_head_num: int,
    select_block_size: int,
    select_block_count: int,
    page_block_size: int,
    scale: float,
    sparse_mode: int,
    out: Tensor,
) -> None:
    """One query per sequence on selected blocks of keys in pages; the first -1 ends the list of blocks."""
    refuse_given(atten_mask=atten_mask, actual_seq_qlen=actual_seq_qlen)
    only("sparse_mode", sparse_mode, 0)
    page = "npu_nsa_select_attention_infer"
    queries = single(page, query, layout, head_num, ("BSH", "BSND", "TND"))
    pages = Pages(page, queries, key, value, key_value_head_num, block_table, page_block_size, actual_seq_kvlen)
    end = pages.check(16, (64, 128), 3072)
    size = pages.heads(value).shape[2] // key_value_head_num
    if (queries.shape[3], size) != (192, 128):
        raise Illegal("head sizes", (queries.shape[3], size), f"192 and 128 {end}")
    if select_block_size <= 0 or select_block_size % 16:
        raise Illegal("select_block_size", select_block_size, f"a multiple of 16 {end}")
    if tuple(topk_indices.shape) != (len(queries), key_value_head_num, select_block_count):
        legal = f"int32 [{len(queries)}, {key_value_head_num}, {select_block_count}] {end}"
        raise Illegal("topk_indices", topk_indices, legal)
    ended = (topk_indices < 0).cumsum(-1) > 0
    indices = topk_indices.masked_fill(ended, -1)
    group, rows = head_num // key_value_head_num, torch.empty(len(queries), head_num, 1, size)
    for b, (length, k, v) in enumerate(pages.sequences()):
        for n in range(key_value_head_num):
            used = chosen(indices[b, n : n + 1], select_block_size, length, False)[0].nonzero()[:, 0]
            heads = slice(n * group, (n + 1) * group)
            work = Attention(queries[b : b + 1, heads], k[:, n : n + 1, used], v[:, n : n + 1, used], scale)
            attend(work, rows[b : b + 1, heads])
    out.copy_(rows.reshape(out.shape))


def _check_compressed(pages: Pages, sizes: tuple[int, int, int], end: str) -> None:
    block, stride, selected = sizes
    group = pages.queries.shape[1] // pages.kv_heads
    if 128 % group:
        raise Illegal("query heads per key head", group, f"a divisor of 128 {end}")
    if not 128 <= min(pages.lengths) <= max(pages.lengths) <= 4096:
        raise Illegal("actual_cmp_seq_kvlen", pages.lengths, f"128 to 4096 {end}")
    good = all(n % 16 == 0 for n in sizes) and 0 < stride <= min(64, block)
    if not good or not block <= selected <= 128 or selected % stride:
        legal = f"multiples of 16, stride <= compressed <= selected <= 128, and selected one of the stride {end}"
        raise Illegal("compress_block_size, compress_stride and select_block_size", sizes, legal)
    if pages.queries.shape[3] > 192 or pages.heads(pages.value).shape[2] // pages.kv_heads > 128:
        raise Illegal("head sizes", pages.queries.shape[3], f"at most 192, of values 128 {end}")
