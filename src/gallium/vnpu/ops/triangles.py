"""Triangular parts: Tril, Triu."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from gallium.vnpu.registry import op
from gallium.vnpu.writing import into, write

LARGE = 1 << 20  # elements of a matrix from which bands are faster, by measurement
BAND = 64  # rows


@op("Triu")
def triu(self: Tensor, diagonal: int, out: Tensor) -> None:
    """The part on and above a diagonal."""
    if out.dim() < 2 or out.shape[-2] * out.shape[-1] < LARGE:
        into(torch.triu, out, self, diagonal)
        return
    write(out, self)  # attention asks torch_npu for a mask of 2048 x 2048 at each call
    for band, corner, first, last in _bands(out, diagonal):
        band[..., :first] = 0
        if last > first:
            band[..., first:last].triu_(corner)


@op("Tril")
def tril(self: Tensor, diagonal: int, out: Tensor) -> None:
    """The part on and below a diagonal."""
    if out.dim() < 2 or out.shape[-2] * out.shape[-1] < LARGE:
        into(torch.tril, out, self, diagonal)
        return
    write(out, self)
    for band, corner, first, last in _bands(out, diagonal):
        band[..., last:] = 0
        if last > first:
            band[..., first:last].tril_(corner)


def _bands(out: Tensor, diagonal: int) -> Iterator[tuple[Tensor, int, int, int]]:
    """Each band of rows, the diagonal within the columns that it crosses, and the first and last of these."""
    rows, columns = out.shape[-2:]
    for row in range(0, rows, BAND):
        first = min(max(row + diagonal, 0), columns)
        last = min(max(row + BAND + diagonal, 0), columns)
        yield out[..., row : row + BAND, :], row + diagonal - first, first, last
