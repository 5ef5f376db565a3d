"""Rotation of heads by position, in the four arrangements that Ascend has."""

from __future__ import annotations

import torch
from torch import Tensor

from gallium.vnpu.registry import Illegal

HALF, INTERLEAVED, QUARTER, INTERLEAVED_TO_HALF = range(4)
MODE_WORDS = {"half": HALF, "interleave": INTERLEAVED, "quarter": QUARTER, "interleave-half": INTERLEAVED_TO_HALF}


def arranged(x: Tensor, mode: int) -> Tensor:
    """What is rotated: in mode 3 the even elements come first, then the odd ones."""
    if mode != INTERLEAVED_TO_HALF:
        return x
    return torch.unflatten(x, -1, (-1, 2)).transpose(-1, -2).flatten(-2)


def arranged_back(x: Tensor, mode: int) -> Tensor:
    """The inverse of `arranged`."""
    if mode != INTERLEAVED_TO_HALF:
        return x
    return torch.unflatten(x, -1, (2, -1)).transpose(-1, -2).flatten(-2)


def turned(x: Tensor, mode: int) -> Tensor:
    """Each pair (a, b) as (-b, a): halves, neighbours, or the halves of each half (quarters)."""
    if mode == INTERLEAVED:
        pairs = torch.unflatten(x, -1, (-1, 2))
        return torch.stack((-pairs[..., 1], pairs[..., 0]), -1).flatten(-2)
    if mode == QUARTER:
        a, b, c, d = x.chunk(4, -1)
        return torch.cat((-b, a, -d, c), -1)
    first, second = x.chunk(2, -1)
    return torch.cat((-second, first), -1)


def rotated(x: Tensor, cos: Tensor, sin: Tensor, mode: int) -> Tensor:
    """x * cos + turned(x) * sin in float32; cos and sin broadcast."""
    x = arranged(x.to(torch.float32), mode)
    return x * cos.to(torch.float32) + turned(x, mode) * sin.to(torch.float32)


def check_mode(mode: int, size: int) -> None:
    """Raise Illegal for an unknown mode or a size that it cannot split."""
    if mode not in range(4):
        raise Illegal("rotary mode", mode, "0 half, 1 interleave, 2 quarter or 3 interleave-half")
    step = 4 if mode == QUARTER else 2
    if size % step:
        raise Illegal("the size of a head", size, f"a multiple of {step}")
