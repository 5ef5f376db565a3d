"""The documented sparse modes of attention: what mask tensor and token limits mean in each of them."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from gallium.vnpu.attention.visibility import Visible, band
from gallium.vnpu.registry import Illegal

FULL, ALL, LEFT_UP, RIGHT_DOWN, BAND, PREFIX, PREFIX_COMPRESSED, RIGHT_DOWN_CUT, LEFT_UP_CUT, TREE = range(10)
COMPRESSED = frozenset({LEFT_UP, RIGHT_DOWN, BAND, RIGHT_DOWN_CUT, LEFT_UP_CUT})
SIDE = 2048


def as_bool(mask: Tensor) -> Tensor:
    """The mask with True where a key is hidden. Raises Illegal for another type than bool, int8 and uint8."""
    if mask.dtype == torch.bool:
        return mask
    if mask.dtype not in (torch.int8, torch.uint8):
        raise Illegal("atten_mask", mask, "of type bool, uint8 or int8")
    return mask != 0


def check_triangle(mask: Tensor, mode: int, page: str) -> None:
    """Raise Illegal unless the mask is the documented compressed triangle (1 above the diagonal)."""
    rows = 3072 if mode == PREFIX_COMPRESSED else SIDE
    square = mask.reshape(mask.shape[-2:]) if mask.dim() >= 2 and mask.numel() == rows * SIDE else mask
    if square.shape != (rows, SIDE) or not _same(square, _compressed(mode == PREFIX_COMPRESSED)):
        what = "the lower triangle and the half rectangle of" if mode == PREFIX_COMPRESSED else "the lower triangle of"
        legal = f"{what} {rows} x {SIDE}: 0 is seen, 1 is hidden, for sparse_mode {mode} ({page} page of op-plugin)"
        raise Illegal("atten_mask", mask, legal)


def _same(mask: Tensor, expected: Tensor) -> bool:
    """Whether the masks are equal. It is asked at every call: eight elements at once are eight times as fast."""
    if mask.dtype.itemsize == 1 and mask.is_contiguous() and mask.storage_offset() % 8 == 0:
        words = mask.view(torch.int64)
        if torch.equal(words, expected.view(torch.int64)):
            return True
    return torch.equal(as_bool(mask), expected)


@cache
def _compressed(with_prefix: bool) -> Tensor:
    triangle = torch.ones(SIDE, SIDE, dtype=torch.bool).triu(1)
    if not with_prefix:
        return triangle
    rectangle = torch.zeros(1024, SIDE, dtype=torch.bool)
    rectangle[:, SIDE // 2 :] = True
    return torch.cat((triangle, rectangle))


def limited(mode: int, queries: int, keys: int, pre: int, after: int) -> Visible:
    """What is seen in a mode without its mask tensor, by a sequence of this size.

    Mode 0 counts pre_tokens and next_tokens from the upper left corner, mode 4 from the lower right one.
    """
    shift = keys - queries
    if mode == FULL:
        return band(-pre, after)
    if mode == LEFT_UP:
        return Visible(high=0)
    if mode in (RIGHT_DOWN, PREFIX_COMPRESSED):
        return Visible(high=shift)
    if mode == BAND:
        return band(shift - pre, shift + after)
    return Visible()
