"""Counting and placing values in bins: Histc, Bincount, Bucketize, SearchSorted; and IsClose."""

from __future__ import annotations

import torch
from torch import Tensor

from gallium.vnpu.registry import op
from gallium.vnpu.writing import into, write

Number = bool | int | float | complex


@op("Histc")
def histc(self: Tensor, bins: int, low: Number, high: Number, out: Tensor) -> None:
    """Counts in `bins` equal bins from low to high, without values outside. Takes integers, as PyTorch does not."""
    if self.dtype in (torch.float32, torch.float64):
        into(torch.histc, out, self, bins, low, high)
    else:
        write(out, torch.histc(self.double(), bins, low, high))


@op("Bincount")
def bincount(self: Tensor, weights: Tensor | None, minlength: int, out: Tensor) -> None:
    """How often each number occurs, or the sum of its weights."""
    write(out, torch.bincount(self, weights, minlength))


@op("Bucketize")
def bucketize(self: Tensor, boundaries: Tensor, out_int32: bool, right: bool, out: Tensor) -> None:
    """Between which boundaries each element lies."""
    into(torch.bucketize, out, self.contiguous(), boundaries.contiguous(), out_int32=out_int32, right=right)


@op("SearchSorted")
def search_sorted(
    sequence: Tensor, self: Tensor, out_int32: bool, right: bool, sorter: Tensor | None, out: Tensor
) -> None:
    """Where each element would be inserted into its sorted sequence."""
    _search(out, sequence, self.contiguous(), out_int32, right, sorter)


@op("SearchSorteds")
def search_sorted_scalar(
    sequence: Tensor, self: Number, out_int32: bool, right: bool, sorter: Tensor | None, out: Tensor
) -> None:
    """Where a number would be inserted into a sorted sequence."""
    _search(out, sequence, self, out_int32, right, sorter)


def _search(
    out: Tensor, sequence: Tensor, values: Tensor | Number, out_int32: bool, right: bool, sorter: Tensor | None
) -> None:
    order = None if sorter is None else sorter.contiguous()  # PyTorch warns of others; op-plugin has done so already
    into(torch.searchsorted, out, sequence.contiguous(), values, out_int32=out_int32, right=right, sorter=order)


@op("IsClose")
def is_close(self: Tensor, other: Tensor, rtol: float, atol: float, equal_nan: bool, out: Tensor) -> None:
    """Whether elements are equal up to a relative and an absolute tolerance."""
    write(out, torch.isclose(self, other, rtol, atol, equal_nan))
