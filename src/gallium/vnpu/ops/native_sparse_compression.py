"""Compression of keys and values in native sparse attention: weighted sums over windows of tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from gallium.vnpu.attention import layouts, paged
from gallium.vnpu.attention.limits import need_chip
from gallium.vnpu.registry import Illegal, only, op

Ints = tuple[int, ...]


@op("NsaCompress")
def nsa_compress(
    input: Tensor,
    weight: Tensor,
    actual_seq_len: Ints,
    layout: str,
    compress_block_size: int,
    compress_stride: int,
    actual_seq_len_type: int,
    out: Tensor,
) -> None:
    """out[c] = sum over w of input[c * stride + w] * weight[w], sequence by sequence. Lengths are cumulative."""
    _check(input, weight, layout, compress_block_size, compress_stride, 128)
    only("actual_seq_len_type", actual_seq_len_type, 0)
    first = 0
    for rows in _sequences(actual_seq_len, input, compress_block_size):
        windows = input[rows.start : rows.stop].to(torch.float32).unfold(0, compress_block_size, compress_stride)
        sums = torch.einsum("cndw,wn->cnd", windows, weight.to(torch.float32))
        out[first : first + len(sums)] = sums.to(out.dtype)
        first += len(sums)


@op("NsaCompressGrad")
def nsa_compress_grad(
    grad: Tensor,
    input: Tensor,
    weight: Tensor,
    actual_seq_len: Ints,
    compress_block_size: int,
    compress_stride: int,
    actual_seq_len_type: int,
    layout: str,
    input_grad: Tensor,
    weight_grad: Tensor,
) -> None:
    """Gradients of tokens and weights."""
    _check(input, weight, layout, compress_block_size, compress_stride, 128)
    only("actual_seq_len_type", actual_seq_len_type, 0)
    tokens, weights = torch.zeros(input.shape), torch.zeros(weight.shape)
    first = 0
    for rows in _sequences(actual_seq_len, input, compress_block_size):
        windows = input[rows.start : rows.stop].to(torch.float32).unfold(0, compress_block_size, compress_stride)
        own = grad[first : first + len(windows)].to(torch.float32)
        weights += torch.einsum("cnd,cndw->wn", own, windows)
        last = rows.start + (len(own) - 1) * compress_stride
        for w in range(compress_block_size):
            tokens[rows.start + w : last + w + 1 : compress_stride] += own * weight[w, :, None].to(torch.float32)
        first += len(own)
    input_grad.copy_(tokens)
    weight_grad.copy_(weights)


@op("NsaCompressWithCache")
def nsa_compress_with_cache(
    input: Tensor,
    weight: Tensor,
    slot_mapping: Tensor,
    actual_seq_len: Ints,
    block_table: Tensor | None,
    layout: str,
    compress_block_size: int,
    compress_stride: int,
    actual_seq_len_type: int,
    page_block_size: int,
    cache: Tensor,
) -> None:
    """Compress the last window of each sequence into its slot of the cache, if a window ends with the last token."""
    page = "npu_nsa_compress_infer"
    _check(input, weight, layout, compress_block_size, compress_stride, 64)
    only("actual_seq_len_type", actual_seq_len_type, 1)
    heads = input.shape[2]
    if heads > 64 or (heads > 50 and heads % 2):
        raise Illegal("the number of heads", heads, f"at most 64, above 50 an even number ({page} page of op-plugin)")
    if page_block_size not in (64, 128) or input.shape[1] != page_block_size:
        raise Illegal("page_block_size", page_block_size, f"64 or 128, as the cache has it ({page} page of op-plugin)")
    if block_table is None or len(actual_seq_len) != slot_mapping.numel() or len(block_table) != len(actual_seq_len):
        raise Illegal("block_table", block_table, f"given, like slot_mapping with a row per sequence ({page} page)")
    for b, (length, slot) in enumerate(zip(actual_seq_len, slot_mapping.tolist(), strict=True)):
        if length < compress_block_size or (length - compress_block_size) % compress_stride:
            continue
        if not 0 <= slot < len(cache):
            raise Illegal("slot_mapping", slot, f"from 0 to {len(cache) - 1}")
        blocks = paged.blocks_of(block_table, b, length, page_block_size, len(input))
        tokens = torch.arange(length - compress_block_size, length)
        rows = input[blocks[tokens // page_block_size], tokens % page_block_size].to(torch.float32)
        cache[slot] = (rows * weight[:, :, None].to(torch.float32)).sum(0).to(cache.dtype)


def _sequences(ends: Ints, input: Tensor, block: int) -> list[range]:
    """The sequences that have at least one window."""
    cut = layouts.ranges("actual_seq_len", ends, input.shape[0])
    if not ends or ends[-1] != input.shape[0]:
        raise Illegal("actual_seq_len", ends, f"cumulative lengths up to {input.shape[0]} (npu_nsa_compress page)")
    return [rows for rows in cut if len(rows) >= block]


def _check(input: Tensor, weight: Tensor, layout: str, block: int, stride: int, largest: int) -> None:
    page = "npu_nsa_compress"
    end = f"({page} page of op-plugin)"
    need_chip(page, "910B", "910_93")
    only("layout", layout, "TND")
    heads, size = input.shape[-2:]
    if input.dtype != weight.dtype or input.dtype not in (torch.float16, torch.bfloat16):
        raise Illegal("input", input, f"float16 or bfloat16, like the weight {end}")
    if block % 16 or stride % 16 or not 0 < stride <= block <= largest:
        legal = f"multiples of 16, the block at most {largest} and not below the stride {end}"
        raise Illegal("compress_block_size and compress_stride", (block, stride), legal)
    if tuple(weight.shape) != (block, heads):
        raise Illegal("weight", weight, f"[{block}, {heads}] {end}")
    if heads > 128 or size % 16 or size > 256:
        raise Illegal("heads and their size", (heads, size), f"at most 128 and 256, the size a multiple of 16 {end}")
