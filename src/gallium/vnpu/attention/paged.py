"""Keys and values in pages: blocks of tokens in three layouts, found through a block table."""

from __future__ import annotations

import torch
from torch import Tensor

from gallium.vnpu.registry import Illegal

# Layouts by number of dimensions: [blocks, size, Nkv * D], [blocks, Nkv, size, D], NZ [blocks, Nkv, D / c, size, c].
BLOCK_DIM = {3: 1, 4: 2, 5: 3}


def block_size(cache: Tensor) -> int:
    """How many tokens a block holds."""
    if cache.dim() not in BLOCK_DIM:
        raise Illegal("a paged cache", cache, "[blocks, size, H], [blocks, N, size, D] or [blocks, N, D / c, size, c]")
    return cache.shape[BLOCK_DIM[cache.dim()]]


def head_size(cache: Tensor, heads: int) -> int:
    """The size of a head in a paged cache."""
    if cache.dim() == 3:
        if cache.shape[2] % heads:
            raise Illegal("a paged cache", cache, f"[blocks, size, H] with H a multiple of its {heads} heads")
        return cache.shape[2] // heads
    if cache.shape[1] != heads:
        raise Illegal("a paged cache's number of heads", cache.shape[1], f"{heads}")
    return cache.shape[3] if cache.dim() == 4 else cache.shape[2] * cache.shape[4]


def blocks_of(table: Tensor, sequence: int, tokens: int, size: int, count: int) -> Tensor:
    """The numbers of the blocks that hold the first tokens of a sequence. Raises Illegal for one out of range."""
    needed = -(-tokens // size)
    if needed > table.shape[1]:
        legal = f"wide enough for {tokens} tokens in blocks of {size}"
        raise Illegal("block_table", table, legal)
    blocks = table[sequence, :needed].to(torch.int64)
    if needed and not 0 <= int(blocks.min()) <= int(blocks.max()) < count:
        raise Illegal("block_table", blocks.tolist(), f"numbers of blocks from 0 to {count - 1}")
    return blocks


def gather(cache: Tensor, blocks: Tensor, heads: int, tokens: int) -> Tensor:
    """The first tokens of these blocks as [1, Nkv, tokens, D]."""
    found = cache[blocks]
    if cache.dim() == 3:
        rows = torch.unflatten(found, 2, (heads, -1)).permute(2, 0, 1, 3)
    elif cache.dim() == 4:
        rows = found.transpose(0, 1)
    else:
        rows = found.permute(1, 0, 3, 2, 4).flatten(3)
    return rows.flatten(1, 2)[None, :, :tokens]


def gather_scales(scales: Tensor, blocks: Tensor, tokens: int) -> Tensor:
    """Scales [blocks, size] or [blocks, Nkv, size] of these tokens as [1, 1 or Nkv, tokens, 1]."""
    found = scales[blocks]
    rows = found[None] if scales.dim() == 2 else found.transpose(0, 1)
    return rows.flatten(1, 2)[None, :, :tokens, None]
