"""Joining, repeating and rearranging: Cat, Stack, Repeat, RepeatInterleave and others."""

from __future__ import annotations

import torch
from torch import Tensor

from gallium.vnpu.registry import Illegal, op
from gallium.vnpu.writing import into


@op("Cat")
def cat(tensors: tuple[Tensor, ...], dim: int, out: Tensor) -> None:
    """One after the other along a dimension, in the output's type."""
    into(torch.cat, out, tensors, dim)


@op("Stack")
def stack(tensors: tuple[Tensor, ...], dim: int, out: Tensor) -> None:
    """Side by side along a new dimension, in the output's type."""
    into(torch.stack, out, tensors, dim)


@op("RepeatInterleaveIntWithDim")
def repeat_interleave_int(self: Tensor, repeats: int, dim: int, output_size: int, out: Tensor) -> None:
    """Each slice `repeats` times in a row."""
    dim %= max(self.dim(), 1)
    source = self.reshape(1) if self.dim() == 0 else self
    if output_size != source.shape[dim] * repeats:
        raise Illegal("output_size", output_size, f"the length of the result, {source.shape[dim] * repeats}")
    if output_size:
        out.unflatten(dim, (source.shape[dim], repeats)).copy_(source.unsqueeze(dim + 1))
