"""Writing by index in place."""

from __future__ import annotations

import torch
from torch import Tensor

from gallium.vnpu.checks import check_dims, check_dtype, check_not_empty
from gallium.vnpu.ops._factories import Number
from gallium.vnpu.registry import Illegal, Unsupported, op

# Codes of op-plugin, ScatterKernelNpuOpApi and ScatterReduceKernelNpuOpApi; 0 overwrites.
REDUCTIONS = {1: "sum", 2: "prod", 3: "amax", 4: "amin", 5: "mean"}
CACHED = (torch.int8, torch.float16, torch.float32, torch.bfloat16, torch.int32)


@op("InplaceScatter", "InplaceScatterValue")
def scatter(self: Tensor, dim: int, index: Tensor, src: Tensor | Number, reduction: int) -> None:
    """self = src at the indices along dim, or with src added (1) or multiplied (2); src may be a number."""
    if reduction not in (0, 1, 2):
        raise Unsupported("reduction", reduction, "0 none, 1 add, 2 multiply")
    if reduction == 0:
        self.scatter_(dim, index, src)
        return
    terms = src if isinstance(src, Tensor) else torch.full(index.shape, src, dtype=self.dtype, device="cpu")
    self.scatter_reduce_(dim, index, terms, REDUCTIONS[reduction])


@op("InplaceScatterReduce")
def scatter_reduce(self: Tensor, dim: int, index: Tensor, src: Tensor, reduction: int, include_self: bool) -> None:
    """The elements of src that go to one place are reduced, with what was there or without."""
    if reduction == 0:
        self.scatter_(dim, index, src)
    elif reduction in REDUCTIONS:
        self.scatter_reduce_(dim, index, src, REDUCTIONS[reduction], include_self=include_self)
    else:
        raise Unsupported("reduction", reduction, "0 to 5")


@op("InplaceIndexCopy")
def index_copy(self: Tensor, dim: int, index: Tensor, source: Tensor) -> None:
    """The slices of self at the indices are those of source."""
    self.index_copy_(dim, index, source)


@op("InplaceIndexFill", "InplaceIndexFillTensor")
def index_fill(self: Tensor, dim: int, index: Tensor | tuple[int, ...], value: Number) -> None:
    """The slices of self at the indices are value."""
    where = index if isinstance(index, Tensor) else torch.tensor(index, dtype=torch.int64, device="cpu")
    self.index_fill_(dim, where, value)


@op("InplaceMaskedScatter")
def masked_scatter(self: Tensor, mask: Tensor, source: Tensor) -> None:
    """The elements of self under the mask are the first ones of source."""
    self.masked_scatter_(mask, source)


@op("InplacePut")
def put(self: Tensor, index: Tensor, source: Tensor, accumulate: bool) -> None:
    """Elements of the flattened self are those of source, or grow by them."""
    if index.numel() > 0:  # empty tensors arrive as one, which PyTorch takes for an overlap
        self.put_(index, source, accumulate)


@op("InplaceScatterUpdate")
def scatter_update(self: Tensor, indices: Tensor, updates: Tensor, axis: int) -> None:
    """Row i of updates overwrites row i of self from position indices[i] along axis, as in a cache of keys.

    Limits: op-plugin's pages scatter_update and npu_quant_scatter.
    """
    for name, tensor in (("data", self), ("indices", indices), ("updates", updates)):
        check_not_empty(name, tensor)
    check_dims("data", self, 2, 8)
    check_dims("updates", updates, self.dim(), self.dim())
    check_dtype("data", self, CACHED)
    check_dtype("updates", updates, [self.dtype])
    if indices.dim() != 1:
        raise Unsupported("indices", indices, "one dimension")
    along = axis + self.dim() if axis < 0 else axis
    if not 0 < along < self.dim() - 1:
        raise Illegal("axis", axis, "neither the first nor the last dimension")
    if len(indices) != len(updates):
        raise Illegal("updates", updates, f"of {len(indices)} rows, one for each index")
    for row, start, update in zip(self, indices.tolist(), updates, strict=False):
        row.narrow(along - 1, start, update.shape[along - 1]).copy_(update)
