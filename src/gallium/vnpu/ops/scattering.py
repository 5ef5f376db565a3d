"""Writing by index into a copy: Scatter, ScatterAdd, ScatterReduce, IndexAdd and others; or in place."""

from __future__ import annotations

import torch
from torch import Tensor

from gallium.vnpu.registry import Illegal, Unsupported, only, op
from gallium.vnpu.writing import into

Number = bool | int | float | complex

_REDUCTIONS = {1: "sum", 2: "prod", 3: "amax", 4: "amin", 5: "mean"}  # 0 overwrites


@op("Scatter")
def scatter(self: Tensor, dim: int, index: Tensor, src: Tensor, reduction: int, out: Tensor) -> None:
    """`self` with elements of `src` written, added (1) or multiplied (2) at `index`."""
    only("reduction", reduction, 0, 1, 2)
    scatter_reduce(self, dim, index, src, reduction, True, out)


@op("ScatterValue")
def scatter_value(self: Tensor, dim: int, index: Tensor, value: Number, reduction: int, out: Tensor) -> None:
    """`self` with one number written, added (1) or multiplied (2) at `index`."""
    only("reduction", reduction, 0, 1, 2)
    if reduction == 0:
        into(torch.scatter, out, self, dim, index, value)
    else:
        source = torch.full((), value, dtype=self.dtype).expand(index.shape)
        scatter_reduce(self, dim, index, source, reduction, True, out)


@op("ScatterAdd")
def scatter_add(self: Tensor, dim: int, index: Tensor, src: Tensor, out: Tensor) -> None:
    """`self` with elements of `src` added at `index`."""
    into(torch.scatter_add, out, self, dim, index, src)


@op("ScatterReduce")
def scatter_reduce(
    self: Tensor, dim: int, index: Tensor, src: Tensor, reduction: int, include_self: bool, out: Tensor
) -> None:
    """`self` with elements of `src` at `index`: written (0), or what `_REDUCTIONS` says."""
    if reduction == 0:
        into(torch.scatter, out, self, dim, index, src)
    elif reduction in _REDUCTIONS:
        into(torch.scatter_reduce, out, self, dim, index, src, _REDUCTIONS[reduction], include_self=include_self)
    else:
        raise Unsupported("reduction", reduction, "0 to 5")


@op("IndexAdd")
def index_add(self: Tensor, dim: int, index: Tensor, source: Tensor, alpha: Number, out: Tensor) -> None:
    """`self` with slices of `source`, times alpha, added at `index` along a dimension."""
    into(torch.index_add, out, self, dim, index, source.to(self.dtype), alpha=alpha)


@op("IndexAddV2")
def index_add_v2(self: Tensor, dim: int, index: Tensor, source: Tensor, alpha: Number, mode: int, out: Tensor) -> None:
    """As IndexAdd. op-plugin passes the mode 0 always; what another one means is not known."""
    only("mode", mode, 0)
    index_add(self, dim, index, source, alpha, out)


@op("IndexCopy")
def index_copy(self: Tensor, dim: int, index: Tensor, source: Tensor, out: Tensor) -> None:
    """`self` with slices of `source` written at `index` along a dimension."""
    into(torch.index_copy, out, self, dim, index.long(), source)


@op("IndexFill")
def index_fill(self: Tensor, dim: int, index: Tensor, value: Number, out: Tensor) -> None:
    """`self` with one number at `index` along a dimension."""
    out.copy_(self)
    out.index_fill_(dim, index.long(), value)


@op("IndexFillTensor")
def index_fill_array(self: Tensor, dim: int, index: tuple[int, ...] | None, value: Number, out: Tensor) -> None:
    """As IndexFill, with the places in an array on the host."""
    index_fill(self, dim, torch.tensor(index or (), dtype=torch.int64), value, out)


@op("ScatterNdUpdate")
def scatter_nd_update(self: Tensor, indices: Tensor, updates: Tensor) -> None:
    """`self[indices[i]] = updates[i]` in place, the last dimension of `indices` being the place (docs)."""
    depth = indices.shape[-1]
    if indices.dim() < 2 or depth > self.dim():
        raise Illegal(
            "the shape of indices", list(indices.shape), "two or more dimensions, the last at most self's rank"
        )
    if updates.shape != (*indices.shape[:-1], *self.shape[depth:]):
        raise Illegal("the shape of updates", list(updates.shape), "that of indices without its last, then the rest")
    places = indices.reshape(-1, depth).long()
    limits = torch.tensor(self.shape[:depth])
    if bool(((places < 0) | (places >= limits)).any()):
        raise Illegal("indices", "out of range", f"from 0 and below {list(self.shape[:depth])}")
    self[tuple(places.unbind(-1))] = updates.reshape(len(places), *self.shape[depth:])


@op("ScatterList")
def scatter_list(
    self: tuple[Tensor, ...], indice: Tensor, updates: Tensor, mask: Tensor | None, reduce: str, axis: int
) -> None:
    """Each tensor of the list gets its update written at its place along an axis, where the mask is not 0, in place.

    The update of tensor i is `updates[i]`, of one or more slices along the axis from place `indice[i]` on.
    """
    if reduce != "update":
        raise Illegal("reduce", reduce, "'update' (op-plugin)")
    if indice.dim() != 1:
        raise Unsupported("indice", indice, "one place for each tensor")
    for i, target in enumerate(self):
        if mask is not None and not bool(mask[i]):
            continue
        update = updates[i]
        start = int(indice[i])
        if start < 0 or start + update.shape[axis] > target.shape[axis]:
            raise Illegal("indice", start, f"from 0 to {target.shape[axis] - update.shape[axis]}")
        target.narrow(axis, start, update.shape[axis]).copy_(update)


@op("CoalesceSparse", unused={"unique_len": "its length is that of the outputs; its numbers are the places, flattened"})
def coalesce_sparse(
    unique_len: Tensor, unique_indices: Tensor, indices: Tensor, values: Tensor, new_indices: Tensor, new_values: Tensor
) -> None:
    """Entries of a sparse tensor at the same place, summed; `unique_indices` says which result each one goes to."""
    places = unique_indices.long()
    new_values.zero_()
    new_values.index_add_(0, places, values)
    new_indices.index_copy_(0, places, indices)


@op("MaskedScale")
def masked_scale(self: Tensor, mask: Tensor, scale: float, out: Tensor) -> None:
    """`self * mask * scale`."""
    out.copy_(self * mask.to(self.dtype) * scale)
