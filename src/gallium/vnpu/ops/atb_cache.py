"""ATB's operators on a paged cache: tokens into their slots, and sequences out of their blocks.

Meaning of the arguments: Ascend/op-plugin 517f2e7, op_plugin/python/atb/_atb_api_docs.py (npu_paged_cache_load), the
calls in op_plugin/ops/atb/ReshapeAndCach*.cpp and PagedCacheLoadAtb.cpp, and the tests test_atb_reshape_and_cache*.py
and test_atb_paged_cache_load.py.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from gallium.vnpu.checks import check_family
from gallium.vnpu.ops.atb_attention import A2_AND_A3, ND, NZ, gather, lengths, ranges, unblock
from gallium.vnpu.registry import Illegal, Unsupported, only, op
from gallium.vnpu.writing import write

BOTH, KEY_ONLY, BOTH_NZ = 0, 1, 2  # kv_cache_cfg
CACHED = (torch.float16, torch.bfloat16, torch.int8)


@op("atb.ReshapeAndCache")
def reshape_and_cache(
    key: Tensor,
    value: Tensor | None,
    key_cache: Tensor,
    key_format: int,
    value_cache: Tensor | None,
    value_format: int,
    slots: Tensor,
    compress_type: int,
    kv_cache_cfg: int,
    key_out: Tensor,
    value_out: Tensor | None = None,
) -> None:
    """Write token i into slot `slots[i]` (block * block_size + place) of the caches; a negative slot is left out."""
    only("compress_type", compress_type, 0)
    only("kv_cache_cfg", kv_cache_cfg, BOTH, KEY_ONLY, BOTH_NZ)
    if kv_cache_cfg == KEY_ONLY:
        check_family("a cache of keys only", *A2_AND_A3)
    form = NZ if kv_cache_cfg == BOTH_NZ else ND
    _store("key", key, key_cache, (key_format, form), slots, key_out)
    if value is not None and value_cache is not None and value_out is not None:
        _store("value", value, value_cache, (value_format, form), slots, value_out)


def _store(name: str, tokens: Tensor, cache: Tensor, forms: tuple[int, int], slots: Tensor, out: Tensor) -> None:
    if cache.data_ptr() != out.data_ptr():
        raise Illegal(f"{name}_cache", cache, "contiguous: it is updated in place")
    if forms[0] != forms[1]:
        raise Illegal(f"{name}_cache's format", forms[0], f"{forms[1]}, as the other cache's")
    if tokens.dtype not in CACHED or cache.dtype != tokens.dtype:
        raise Illegal(name, tokens, "float16, bfloat16 or int8, as its cache")
    if tokens.dim() != 3 or cache.dim() != 4:
        raise Illegal(name, tokens, f"[tokens, heads, size], and its cache of 4 dimensions (it has {cache.dim()})")
    if slots.dtype != torch.int32 or slots.shape != tokens.shape[:1]:
        raise Illegal("slot_indices", slots, f"int32 [{tokens.shape[0]}]")
    nz = forms[1] == NZ
    places = unblock(out) if nz else out  # [blocks, block_size, ...]
    held = places.shape[2:]
    if held.numel() != tokens.shape[1:].numel() or (not nz and held != tokens.shape[1:]):
        raise Illegal(name, tokens, f"[tokens, heads, size] that fits {list(held)}, a token in the cache")
    chosen = slots >= 0
    slot = slots[chosen].long()
    block_size = places.shape[1]
    if slot.numel() and int(slot.max()) >= places.shape[0] * block_size:
        raise Illegal("slot_indices", int(slot.max()), f"below {places.shape[0] * block_size}, the slots of the cache")
    places.index_put_((slot // block_size, slot % block_size), tokens[chosen].reshape(slot.shape[0], *held))


@op("atb.PagedCacheLoad")
def paged_cache_load(
    key_cache: Tensor,
    key_cache_format: int,
    value_cache: Tensor,
    value_cache_format: int,
    block_table: Tensor,
    context_lens: Tensor,
    key: Tensor,
    key_format: int,
    value: Tensor,
    value_format: int,
    seq_starts: Tensor | None,
    kv_cache_cfg: int,
    cumsum: bool,
    has_seq_starts: bool,
) -> None:
    """Copy the tokens of each sequence out of its blocks, one sequence after another.

    cumsum: the lengths are given as `[0, n0, n0 + n1, ...]`. seq_starts: the token at which each sequence begins; it
    names a block, `seq_starts // block_size`.
    """
    formats = {key_cache_format, value_cache_format, key_format, value_format}
    if kv_cache_cfg != 1 or formats != {ND}:
        raise Unsupported("kv_cache_cfg", kv_cache_cfg, "1: caches in ND format")
    counts = lengths("context_lens", context_lens)
    if cumsum:
        if not counts or counts[0] != 0 or sorted(counts) != counts:
            raise Illegal("context_lens", counts, "sums that begin with 0 and do not fall, with cumsum")
        counts = [after - before for before, after in pairwise(counts)]
    starts = lengths("seq_starts", seq_starts) if has_seq_starts else [0] * len(counts)
    if block_table.dim() != 2 or block_table.shape[0] != len(counts) or len(starts) != len(counts):
        raise Illegal("block_table", block_table, f"[{len(counts)}, blocks], with as many seq_starts")
    for name, cache, out in (("key", key_cache, key), ("value", value_cache, value)):
        if cache.dim() != 4 or cache.dtype not in CACHED or cache.shape[2:].numel() * cache.itemsize % 32:
            raise Illegal(
                f"{name}_cache", cache, "[blocks, block_size, heads, size], a token being a multiple of 32 bytes"
            )
        if out.shape != (sum(counts), *cache.shape[2:]) or out.dtype != cache.dtype:
            raise Illegal(name, out, f"{[sum(counts), *cache.shape[2:]]} of {cache.dtype}")
        for rows, count, start, table in zip(ranges(counts), counts, starts, block_table, strict=True):
            write(out[rows], gather(cache, table[start // cache.shape[1] :], count))
