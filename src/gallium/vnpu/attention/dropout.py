"""Dropout masks of attention: one bit per probability, lowest bit first, 1 = keep (DropoutGenMask)."""

from __future__ import annotations

import torch
from torch import Tensor

from gallium.vnpu.registry import Illegal

_BITS = torch.tensor([1 << i for i in range(8)], dtype=torch.uint8)


def keep_bits(mask: Tensor, first: int, shape: tuple[int, ...]) -> Tensor:
    """The bool tensor of this shape whose bits begin at number `first` of a packed mask."""
    count = 1
    for size in shape:
        count *= size
    if mask.dtype != torch.uint8 or mask.numel() * 8 < first + count:
        raise Illegal("drop_mask", mask, f"uint8 with at least {first + count} bits, one per probability")
    part = mask.reshape(-1)[first // 8 : (first + count + 7) // 8]
    bits = (part[:, None] & _BITS).ne_(0).view(-1)[first % 8 :][:count]
    return bits.to(torch.bool).view(shape)


def keep_random(seed: int, offset: int, keep_prob: float, shape: tuple[int, ...]) -> Tensor:
    """A mask for the chips whose kernel draws it itself (950): torch's CPU generator, seeded by (seed, offset)."""
    generator = torch.Generator().manual_seed((seed ^ (offset * 0x9E3779B97F4A7C15)) & 0x7FFFFFFFFFFFFFFF)
    return torch.rand(shape, generator=generator) < keep_prob
