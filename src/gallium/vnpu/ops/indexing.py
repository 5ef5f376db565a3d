"""Reading by index: Index, Gather, IndexSelect, Take, MaskedSelect, Nonzero, StridedSlice; and IndexPutImpl."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gallium.vnpu.registry import Illegal, Unsupported, op
from gallium.vnpu.tensors import DynamicOutput
from gallium.vnpu.writing import into, write

SMALL = 1 << 14  # elements

_index_out = torch.ops.aten.index.Tensor_out
_index_put = torch.ops.aten._index_put_impl_.default


def _given(self: Tensor, indices: Sequence[Tensor | None]) -> list[Tensor | None]:
    """The list with None for missing indices, which op-plugin passes as empty vectors of the type of `self`."""
    return [None if index is None or _stands_for_none(index, self) else index for index in indices]


def _stands_for_none(index: Tensor, self: Tensor) -> bool:
    return index.shape == (0,) and index.dtype == self.dtype


@op("Index")
def index(self: Tensor, indices: tuple[Tensor | None, ...], out: Tensor) -> None:
    """`self[indices]`; a missing index stands for the whole dimension. A really empty one leaves nothing to read."""
    elements = out.numel()
    if elements == 0:
        return
    for index in indices:
        if elements > SMALL or index is None or index.dim() == 0 or index.numel() == 0:
            into(_index_out, out, self, _given(self, indices))
            return
    write(out, self[indices])  # half the time of the other way, but for a copy of the result


@op("IndexPutImpl")
def index_put(self: Tensor, indices: tuple[Tensor | None, ...], values: Tensor, accumulate: bool, unsafe: bool) -> None:
    """`self[indices] = values`, or += if `accumulate`; `unsafe` leaves out the check of the indices' range.

    Where `self` holds integers, a really empty index looks like a missing one, to the device as well. If all look so,
    one is really empty (op-plugin passes no list of missing ones only) and nothing is written; next to another index it
    counts as missing.
    """
    given = _given(self, indices)
    if any(index is not None for index in given):
        _index_put(self, given, values, accumulate, unsafe)


@op("Gather")
def gather(self: Tensor, dim: int, index: Tensor, out: Tensor) -> None:
    """Elements at `index` along a dimension."""
    into(torch.gather, out, self, dim, index)


@op("GatherV3", unused={"mode": "op-plugin passes 1 always: a hint that many indices are equal"})
def gather_v3(self: Tensor, dim: int, index: Tensor, batch_dims: int, mode: int, out: Tensor) -> None:
    """Slices at `index`, of any shape, along the first dimension (docs: npu_gather_sparse_index)."""
    if dim or batch_dims:
        raise Unsupported("(dim, batch_dims)", (dim, batch_dims), "(0, 0)")
    if self.dim() == 0:
        write(out, self)
        return
    flat = index.reshape(-1)
    if flat.numel() and int(flat.min()) < 0:
        raise Illegal("index", int(flat.min()), f"from 0 to {self.shape[0] - 1} (docs: npu_gather_sparse_index)")
    write(out, self.index_select(0, flat).reshape(*index.shape, *self.shape[1:]))


@op("IndexSelect")
def index_select(self: Tensor, dim: int, index: Tensor, out: Tensor) -> None:
    """Slices along a dimension."""
    into(torch.index_select, out, self, dim, index.reshape(-1))


@op("Take")
def take(self: Tensor, index: Tensor, out: Tensor) -> None:
    """Elements by their place in the flattened tensor."""
    into(torch.take, out, self, index.long())


@op("MaskedSelect", dynamic=("out",))
def masked_select(self: Tensor, mask: Tensor, out: DynamicOutput) -> None:
    """The elements where the mask is true, one after the other."""
    out.settle(torch.masked_select(self, mask.bool()))


@op("Nonzero", dynamic=("out",))
def nonzero(self: Tensor, out: DynamicOutput) -> None:
    """The places that are not zero, one in each row."""
    out.settle(torch.nonzero(self))


@op("NonzeroV2", dynamic=("out",))
def nonzero_v2(self: Tensor, out: DynamicOutput) -> None:
    """The places that are not zero, one in each column."""
    out.settle(torch.nonzero(self).t())


@op("SWhere")
def where(condition: Tensor, self: Tensor, other: Tensor, out: Tensor) -> None:
    """`self` where the condition is true, else `other`."""
    into(torch.where, out, condition if condition.dtype == torch.bool else condition.bool(), self, other)


@op("StridedSlice")
def strided_slice(
    self: Tensor,
    begin: tuple[int, ...],
    end: tuple[int, ...],
    strides: tuple[int, ...],
    begin_mask: int,
    end_mask: int,
    ellipsis_mask: int,
    new_axis_mask: int,
    shrink_axis_mask: int,
    out: Tensor,
) -> None:
    """A slice as TensorFlow's strided_slice writes it: bit i of a mask is about the i-th entry (docs: npu_indexing).

    begin and end masks leave that end open; the others make the entry an ellipsis, a new dimension, or one place whose
    dimension goes.
    """
    view, dim = self, 0
    for i, (first, last, step) in enumerate(zip(begin, end, strides, strict=True)):
        bit = 1 << i
        if ellipsis_mask & bit:
            later = sum(1 for j in range(i + 1, len(begin)) if not new_axis_mask & (1 << j))
            dim = view.dim() - later
        elif new_axis_mask & bit:
            view, dim = view.unsqueeze(dim), dim + 1
        elif shrink_axis_mask & bit:
            view = view.select(dim, first)
        else:
            cut = slice(None if begin_mask & bit else first, None if end_mask & bit else last, step)
            view, dim = _cut(view, dim, cut), dim + 1
    write(out, view)


def _cut(view: Tensor, dim: int, cut: slice) -> Tensor:
    """As view[..., cut, ...] at a dimension; the step may be negative."""
    places = range(view.shape[dim])[cut]
    return view.index_select(dim, torch.tensor(list(places), dtype=torch.int64))
