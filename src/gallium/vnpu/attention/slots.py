"""Writing tokens into KV caches: by slot into blocks of two layouts, as numbers or rounded to int8."""

from __future__ import annotations

import torch
from torch import Tensor

from gallium.vnpu.registry import Illegal


def put(cache: Tensor, slots: Tensor, rows: Tensor, block: int, nz: bool) -> None:
    """Write rows [T, width] to these slots (block * size + offset) of a contiguous cache; negative slots are left out.

    nz: a block holds [width / c, size, c] instead of [size, width], c of 32 bytes.
    """
    if not cache.is_contiguous():
        raise Illegal("a cache", cache, "contiguous")
    kept = slots >= 0
    if not bool(kept.all()):
        slots, rows = slots[kept], rows[kept]
    slots = slots.to(torch.int64)
    width = rows.shape[1]
    count = cache.numel() // width if width else 0
    if slots.numel() and int(slots.max()) >= count:
        raise Illegal("slot_mapping", int(slots.max()), f"below the number of slots, {count}")
    if not nz:
        cache.view(count, width)[slots] = rows.to(cache.dtype)
        return
    inner = nz_width(cache)
    blocks = cache.view(-1, width // inner, block, inner)
    blocks[slots // block, :, slots % block] = torch.unflatten(rows.to(cache.dtype), 1, (-1, inner))


def nz_width(cache: Tensor) -> int:
    """The innermost dimension of an NZ cache: 32 bytes."""
    return 32 // cache.element_size()


def rounded(x: Tensor, scale: Tensor | None, divide: bool = False, offset: Tensor | None = None) -> Tensor:
    """x * scale (or x / scale) + offset, rounded to int8; x itself without a scale."""
    if scale is None:
        return x
    numbers = x.to(torch.float32)
    numbers = numbers / scale.to(torch.float32) if divide else numbers * scale.to(torch.float32)
    if offset is not None:
        numbers = numbers + offset.to(torch.float32)
    return numbers.round().clamp(-128, 127)


def normalised(x: Tensor, gamma: Tensor, epsilon: float) -> Tensor:
    """RMSNorm over the last dimension in float32."""
    x = x.to(torch.float32)
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + epsilon) * gamma.to(torch.float32)
