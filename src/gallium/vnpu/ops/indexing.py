"""Reading by index: Index, Gather, IndexSelect, Take, MaskedSelect, Nonzero; and writing with IndexPutImpl."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gallium.vnpu.registry import op
from gallium.vnpu.writing import into


def _given(self: Tensor, indices: Sequence[Tensor | None]) -> list[Tensor | None]:
    """The list with None for missing indices, which op-plugin passes as empty vectors of the type of `self`."""
    return [None if index is None or _stands_for_none(index, self) else index for index in indices]


def _stands_for_none(index: Tensor, self: Tensor) -> bool:
    return index.shape == (0,) and index.dtype == self.dtype


@op("Index")
def index(self: Tensor, indices: tuple[Tensor | None, ...], out: Tensor) -> None:
    """`self[indices]`; a missing index stands for the whole dimension. A really empty one leaves nothing to read."""
    if out.numel():
        into(torch.ops.aten.index.Tensor_out, out, self, _given(self, indices))


@op("IndexPutImpl")
def index_put(self: Tensor, indices: tuple[Tensor | None, ...], values: Tensor, accumulate: bool, unsafe: bool) -> None:
    """`self[indices] = values`, or += if `accumulate`; `unsafe` leaves out the check of the indices' range.

    Where `self` holds integers, a really empty index looks like a missing one, to the device as well. If all look so,
    one is really empty (op-plugin passes no list of missing ones only) and nothing is written; next to another index it
    counts as missing.
    """
    given = _given(self, indices)
    if any(index is not None for index in given):
        torch.ops.aten._index_put_impl_(self, given, values, accumulate, unsafe)


@op("Gather")
def gather(self: Tensor, dim: int, index: Tensor, out: Tensor) -> None:
    """Elements at `index` along a dimension."""
    into(torch.gather, out, self, dim, index)
