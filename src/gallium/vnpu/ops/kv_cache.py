"""Operators on KV caches: scatter and gather of pages, quantised updates, and vLLM's step to the next token."""

from __future__ import annotations

import torch
from torch import Tensor

from gallium.vnpu.attention import slots
from gallium.vnpu.registry import Illegal, Unsupported, only, op, refuse_given
from gallium.vnpu.tensors import Blocked

SCATTER_PAGE = "npu_scatter_pa_kv_cache page of op-plugin"


@op("ScatterPaKvCache")
def scatter_pa_kv_cache(
    key: Tensor,
    key_cache: Tensor,
    slot_mapping: Tensor,
    value: Tensor,
    value_cache: Tensor,
    compress_lens: Tensor | None,
    compress_seq_offsets: Tensor | None,
    seq_lens: Tensor | None,
    cache_mode: str | None,
    scatter_mode: str,
    strides: tuple[int, ...],
    offsets: tuple[int, ...],
) -> None:
    """Tokens [T, N, D] to slots of caches [blocks, size, N, D], or NZ [blocks, N * D / c, size, c]."""
    refuse_given(compress_lens=compress_lens, compress_seq_offsets=compress_seq_offsets, seq_lens=seq_lens)
    only("scatter_mode", scatter_mode, "None")
    only("strides and offsets", (strides, offsets), ((1, 1), (0, 0)))
    if value.shape[:2] != key.shape[:2] or value.dtype != key.dtype:
        raise Illegal("value", value, f"of the type and first two dimensions of the key ({SCATTER_PAGE})")
    for tokens, cache in ((key, key_cache), (value, value_cache)):
        _scatter(tokens, cache, slot_mapping, cache_mode or "Norm")


@op("ScatterPaCache")
def scatter_pa_cache(
    key: Tensor,
    key_cache: Tensor,
    slot_mapping: Tensor,
    compress_lens: Tensor | None,
    compress_seq_offsets: Tensor | None,
    seq_lens: Tensor | None,
    cache_mode: str,
) -> None:
    """The same for keys alone."""
    refuse_given(compress_lens=compress_lens, compress_seq_offsets=compress_seq_offsets, seq_lens=seq_lens)
    _scatter(key, key_cache, slot_mapping, cache_mode)


def _scatter(tokens: Tensor, cache: Tensor, slot_mapping: Tensor, mode: str) -> None:
    if mode not in ("Norm", "PA_NZ"):
        raise Illegal("cache_mode", mode, f"Norm or PA_NZ ({SCATTER_PAGE})")
    if slot_mapping.dtype not in (torch.int32, torch.int64) or slot_mapping.shape != tokens.shape[:1]:
        raise Illegal("slot_mapping", slot_mapping, f"int32 or int64, one per token ({SCATTER_PAGE})")
    if tokens.dim() != 3 or cache.dim() != 4 or tokens.dtype != cache.dtype:
        raise Illegal(
            "key or value", tokens, f"[T, N, D] of its cache's type; the cache has 4 dimensions ({SCATTER_PAGE})"
        )
    rows = tokens.flatten(1)
    if mode == "Norm":
        if cache.shape[2:] != tokens.shape[1:]:
            raise Illegal("a cache", cache, f"[blocks, size, N, D], N and D of the tokens ({SCATTER_PAGE})")
        slots.put(cache, slot_mapping, rows, cache.shape[1], nz=False)
        return
    if cache.shape[1] * cache.shape[3] != rows.shape[1] or cache.shape[3] != slots.nz_width(cache):
        raise Illegal("a cache", cache, f"[blocks, N * D / c, size, c], c of 32 bytes, in mode PA_NZ ({SCATTER_PAGE})")
    slots.put(cache, slot_mapping, rows, cache.shape[2], nz=True)


@op("GatherPaKvCache")
def gather_pa_kv_cache(
    key_cache: Tensor,
    value_cache: Tensor,
    block_tables: Tensor,
    seq_lens: Tensor,
    key: Tensor,
    value: Tensor,
    seq_offset: Tensor | None,
    cache_mode: str,
    is_seq_lens_cumsum: bool,
) -> None:
    """Tokens of all sequences, one after the other, from caches [blocks, size, N, D]; zeros where a block is missing.

    seq_offset: where each sequence begins, in tokens; it is a multiple of the block size.
    """
    only("cache_mode", cache_mode, "Norm")
    if isinstance(key_cache, Blocked) or key_cache.dim() != 4:
        raise Unsupported("key_cache", key_cache, "[blocks, size, N, D]")
    size, count = key_cache.shape[1], key_cache.shape[0]
    lengths = seq_lens.diff().tolist() if is_seq_lens_cumsum else seq_lens.tolist()
    starts = [0] * len(lengths) if seq_offset is None else seq_offset.tolist()
    first = 0
    for table, length, start in zip(block_tables, lengths, starts, strict=True):
        length = min(length, key.shape[0] - first)
        place = start // size + torch.arange(length) // size
        blocks = torch.where(place < len(table), table[place.clamp(max=len(table) - 1)].to(torch.int64), -1)
        there = (blocks >= 0) & (blocks < count)
        offset = torch.arange(length) % size
        for out, cache in ((key, key_cache), (value, value_cache)):
            rows = cache[blocks.clamp(0, count - 1), offset]
            rows[~there] = 0
            out[first : first + length] = rows
        first += length


@op("InplaceQuantScatter")
def inplace_quant_scatter(
    x: Tensor,
    indices: Tensor,
    updates: Tensor,
    quant_scales: Tensor,
    quant_zero_points: Tensor | None,
    axis: int,
    quant_axis: int,
    reduction: int,
) -> None:
    """round(updates / scales + zero points) to places of x along an axis."""
    _quant_scatter(x, indices, updates, quant_scales, quant_zero_points, axis, quant_axis, reduction)


@op("InplaceQuantScatterV2")
def inplace_quant_scatter_v2(
    x: Tensor,
    indices: Tensor,
    updates: Tensor,
    quant_scales: Tensor,
    quant_zero_points: Tensor | None,
    axis: int,
    quant_axis: int,
    reduction: int,
    round_mode: str,
) -> None:
    """With a word for the rounding; only half to even (rint) is emulated."""
    only("round_mode", round_mode, "rint")
    _quant_scatter(x, indices, updates, quant_scales, quant_zero_points, axis, quant_axis, reduction)


def _quant_scatter(
    x: Tensor,
    indices: Tensor,
    updates: Tensor,
    scales: Tensor,
    zero_points: Tensor | None,
    axis: int,
    quant_axis: int,
    reduction: int,
) -> None:
    page, dims = "npu_quant_scatter page of op-plugin", x.dim()
    only("reduction", reduction, 1)
    axis, quant_axis = axis % dims, quant_axis % dims
    if x.dtype != torch.int8:
        raise Unsupported("the type of the input", x.dtype, "int8")
    if not 3 <= dims <= 8 or updates.dim() != dims or axis in (0, dims - 1) or quant_axis != dims - 1:
        raise Illegal("axis and quant_axis", (axis, quant_axis), f"one in the middle, and the last, of 3 to 8 ({page})")
    if indices.dim() not in (1, 2) or (indices.dim() == 2 and indices.shape[1] != 2) or len(indices) != len(updates):
        raise Illegal("indices", indices, f"[n] or [n, 2], n the first dimension of the updates ({page})")
    if scales.numel() != updates.shape[-1]:
        raise Illegal("quant_scales", scales, f"of {updates.shape[-1]} numbers ({page})")
    scales = scales.reshape(-1)
    zeros = None if zero_points is None else zero_points.reshape(-1)
    values = slots.rounded(updates, scales, divide=True, offset=zeros).to(torch.int8)
    pairs = indices.tolist() if indices.dim() == 2 else list(enumerate(indices.tolist()))
    length = updates.shape[axis]
    for (row, start), update in zip(pairs, values, strict=True):
        if not 0 <= row < len(x) or not 0 <= start <= x.shape[axis] - length:
            raise Illegal("indices", (row, start), f"inside the input ({page})")
        x[row].narrow(axis - 1, start, length).copy_(update)


@op("AdvanceStep")
def advance_step(
    input_tokens: Tensor,
    sampled_token_ids: Tensor,
    input_positions: Tensor,
    seq_lens: Tensor,
    slot_mapping: Tensor,
    block_tables: Tensor,
    num_seqs: int,
    num_queries: int,
    block_size: int,
) -> None:
    """vLLM's advance_step: each query goes one token on. Sequences without a query are padding, with slot -1."""
    rows = slice(0, num_queries)
    _check_step(num_seqs, len(input_tokens), block_tables, block_size)
    input_tokens[rows] = sampled_token_ids.reshape(-1)[rows]
    input_positions[rows] = seq_lens[rows]
    seq_lens[rows] += 1
    slot_mapping[rows] = _slots(input_positions[rows], block_tables[rows], block_size)
    padding = slice(num_queries, num_seqs)
    input_tokens[padding] = 0
    input_positions[padding] = 0
    slot_mapping[padding] = -1


@op("AdvanceStepV2")
def advance_step_v2(
    input_tokens: Tensor,
    sampled_token_ids: Tensor,
    input_positions: Tensor,
    seq_lens: Tensor,
    slot_mapping: Tensor,
    block_tables: Tensor,
    spec_token: Tensor | None,
    accepted_num: Tensor | None,
    num_seqs: int,
    num_queries: int,
    block_size: int,
) -> None:
    """With drafted tokens: each request goes on by the accepted ones and one; its last token before -1 is next."""
    if spec_token is None or accepted_num is None:
        raise Illegal("spec_token and accepted_num", "one of them", "given together")
    if num_queries != num_seqs:
        raise Illegal("num_queries", num_queries, f"num_seqs, {num_seqs}, with drafted tokens")
    each = 1 + spec_token.shape[1]
    _check_step(num_seqs * each, len(input_tokens), block_tables, block_size)
    input_positions += accepted_num.repeat_interleave(each) + 1
    seq_lens.copy_(input_positions + 1)
    valid = torch.nn.functional.pad(sampled_token_ids, (0, 1), value=-1)
    last = valid.argmin(1) - 1
    grid = input_tokens.view(num_seqs, each)
    grid[:, 0] = sampled_token_ids[torch.arange(num_seqs), last]
    grid[:, 1:] = spec_token
    slot_mapping.copy_(_slots(input_positions, block_tables.repeat_interleave(each, 0), block_size))


def _check_step(rows: int, given: int, block_tables: Tensor, block_size: int) -> None:
    if given != rows or block_size <= 0:
        raise Illegal("input_tokens", given, f"of {rows} tokens (npu_advance_step_flashattn page of op-plugin)")
    if block_tables.dim() != 2:
        raise Illegal("block_tables", block_tables, "of two dimensions")


def _slots(positions: Tensor, tables: Tensor, block_size: int) -> Tensor:
    place = (positions // block_size).to(torch.int64)
    if place.numel() and int(place.max()) >= tables.shape[1]:
        raise Illegal("block_tables", tables, f"wide enough for position {int(positions.max())}")
    return tables.gather(1, place[:, None])[:, 0] * block_size + positions % block_size
