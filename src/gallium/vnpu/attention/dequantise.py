"""Quantised keys and values, and the rounding of outputs: x = (q + offset) * scale, q = round(x * scale + offset)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gallium.vnpu.attention.paged import gather_scales
from gallium.vnpu.registry import Illegal, Unsupported
from gallium.vnpu.tensors import unpack4

PER_CHANNEL, PER_TOKEN, PER_HEAD, PER_TOKEN_HEAD, PER_TOKEN_PAGED, PER_TOKEN_HEAD_PAGED = range(6)
MODES = range(6)


@dataclass(frozen=True)
class KvScale:
    """Scale and offset of keys or of values in one of the documented modes (key_antiquant_mode).

    0 per channel or tensor, 1 per token, 2 per head, 3 per token and head, 4 and 5 like 1 and 3 in pages.
    """

    name: str
    scale: Tensor
    offset: Tensor | None
    mode: int

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise Unsupported(f"{self.name}'s mode", self.mode, "0 to 5")
        if self.offset is not None and self.offset.shape != self.scale.shape:
            raise Illegal(f"{self.name}'s offset", self.offset, f"of the shape of the scale, {list(self.scale.shape)}")

    def apply(self, values: Tensor, batch: slice, tokens: slice, blocks: Tensor | None) -> Tensor:
        """The numbers [b, Nkv, S, D] that int8 values stand for, in float32."""
        shape = values.shape
        numbers = values.to(torch.float32)
        if self.offset is not None:
            numbers = numbers + self._seen(self.offset, shape, batch, tokens, blocks)
        return numbers * self._seen(self.scale, shape, batch, tokens, blocks)

    def _seen(self, x: Tensor, shape: torch.Size, batch: slice, tokens: slice, blocks: Tensor | None) -> Tensor:
        """Scale or offset, so that it broadcasts to values of this shape."""
        _, heads, _, size = shape
        x = x.to(torch.float32)
        if self.mode == PER_CHANNEL and x.numel() == 1:
            return x.reshape(())
        if self.mode == PER_CHANNEL and x.numel() == heads * size:
            return x.reshape(1, heads, 1, size)
        if self.mode == PER_TOKEN and x.dim() in (2, 3) and (x.dim() == 2 or x.shape[0] == 1):
            rows = x.reshape(x.shape[-2:])[batch, None, tokens, None]
            return self._checked(rows, shape)
        if self.mode == PER_HEAD and x.shape == (heads,):
            return x.view(1, heads, 1, 1)
        if self.mode == PER_TOKEN_HEAD and x.dim() == 3 and x.shape[1] == heads:
            return self._checked(x[batch, :, tokens, None], shape)
        paged_dims = {PER_TOKEN_PAGED: 2, PER_TOKEN_HEAD_PAGED: 3}.get(self.mode)
        if blocks is not None and x.dim() == paged_dims:
            return self._checked(gather_scales(x, blocks, shape[2]), shape)
        raise Illegal(self.name, x, f"of a shape that its mode {self.mode} has, for {heads} heads of size {size}")

    def _checked(self, rows: Tensor, shape: torch.Size) -> Tensor:
        if rows.shape[0] != shape[0] or rows.shape[2] != shape[2]:
            raise Illegal(self.name, rows, f"with one number for each of {shape[0]} x {shape[2]} tokens")
        return rows


def unpack_int32(x: Tensor) -> Tensor:
    """Eight 4-bit integers in each int32, the lowest first, as int8 with a last dimension eight times as long."""
    return unpack4(x.contiguous().view(torch.uint8).reshape(-1)).view(*x.shape[:-1], x.shape[-1] * 8)


def number(name: str, scale: Tensor) -> float:
    """A scale for a whole tensor. In uint64 its float32 lies in the low half (TransQuantParam)."""
    if scale.numel() != 1:
        raise Illegal(name, scale, "one number")
    if scale.dtype == torch.uint64:
        low = scale.reshape(1).view(torch.int32)[:1]
        return float(low.view(torch.float32))
    return float(scale.reshape(()))


def quantised(out: Tensor, scale: Tensor, offset: Tensor | None, name: str) -> Tensor:
    """An output [B, N, S, D] rounded to int8, with one scale or one per head and channel."""
    shape = (1, out.shape[1], 1, out.shape[3])
    if scale.numel() not in (1, out.shape[1] * out.shape[3]):
        raise Illegal(name, scale, f"one number, or {shape[1]} * {shape[3]} of them")
    if offset is not None and (offset.shape != scale.shape or offset.dtype != scale.dtype):
        raise Illegal(f"{name}'s offset", offset, "of the type and shape of the scale")
    target = shape if scale.numel() > 1 else (1,)
    rounded = out * scale.to(torch.float32).reshape(target)
    if offset is not None:
        rounded += offset.to(torch.float32).reshape(target)
    return rounded.round_().clamp_(-128, 127)
