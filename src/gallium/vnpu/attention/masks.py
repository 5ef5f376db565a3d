"""Mask and position tensors of inference, cut to the sequences at hand; they may be larger than what is used."""

from __future__ import annotations

import torch
from torch import Tensor

from gallium.vnpu.attention.sparse_modes import as_bool
from gallium.vnpu.registry import Illegal


def full_mask(mask: Tensor, count: int, batch: slice, queries: int, keys: int, one_query: bool) -> Tensor:
    """A mask [b or 1, 1, Sq, Skv] of [B or 1, 1, Sq, Skv], [B or 1, Sq, Skv], [Sq, Skv] or, for one query, [B, Skv]."""
    mask = as_bool(mask)
    if mask.dim() == 2:
        mask = mask[:, None, None] if one_query else mask[None, None]
    elif mask.dim() == 3:
        mask = mask[:, None]
    fits = mask.dim() == 4 and mask.shape[1] == 1 and mask.shape[2] >= queries and mask.shape[3] >= keys
    if not fits or mask.shape[0] not in (1, count):
        raise Illegal("atten_mask", mask, f"[{count} or 1, 1, at least {queries}, at least {keys}]")
    return (mask if mask.shape[0] == 1 else mask[batch])[:, :, :queries, :keys]


def tree_mask(mask: Tensor, ends: tuple[int, ...] | None, count: int, batch: slice, queries: int, keys: int) -> Tensor:
    """A mask [B, Sq, Sq] of what queries see of the last Sq keys; they see all keys before those.

    ends: of a packed batch, the cumulative numbers of queries; then the squares follow each other in one dimension.
    """
    mask = as_bool(mask)
    if queries > keys:
        raise Illegal("the number of queries", queries, f"at most that of the keys, {keys}, in sparse_mode 9")
    if ends is None:
        if mask.shape != (count, queries, queries):
            raise Illegal("atten_mask", mask, f"[{count}, {queries}, {queries}] in sparse_mode 9")
        own = mask[batch, None]
    else:
        sizes = [b - a for a, b in zip((0, *ends), ends, strict=False)]
        first = sum(n * n for n in sizes[: batch.start])
        if mask.dim() != 1 or mask.numel() != sum(n * n for n in sizes):
            raise Illegal("atten_mask", mask, "the squares of all sequences in one dimension, in sparse_mode 9")
        own = mask[first : first + queries * queries].view(1, 1, queries, queries)
    return torch.nn.functional.pad(own, (keys - queries, 0), value=False)


def position_bias(pse: Tensor, count: int, batch: slice, shape: tuple[int, int, int, int]) -> Tensor:
    """A position encoding [B or 1, N, Sq, Skv] as [b or 1, N, Sq, Skv] in float32."""
    _, heads, queries, keys = shape
    fits = pse.dim() == 4 and pse.shape[1] == heads and pse.shape[2] >= queries and pse.shape[3] >= keys
    if not fits or pse.shape[0] not in (1, count):
        raise Illegal("pse_shift", pse, f"[{count} or 1, {heads}, at least {queries}, at least {keys}]")
    return (pse if pse.shape[0] == 1 else pse[batch])[:, :, :queries, :keys].to(torch.float32)
