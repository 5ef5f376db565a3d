"""Copies, fills and other changes of a tensor in place."""

from __future__ import annotations

from torch import Tensor

from gallium.vnpu.formats import convert
from gallium.vnpu.ops._factories import Number
from gallium.vnpu.registry import Illegal, Unsupported, op
from gallium.vnpu.tensors import DTYPES, Blocked
from gallium.vnpu.writing import write

REDUCTIONS = {0: None, 1: "add", 2: "multiply"}


@op("InplaceCopy")
def copy(dst: Tensor | Blocked, src: Tensor | Blocked) -> None:
    """dst = src, broadcast and cast."""
    if isinstance(dst, Tensor) and isinstance(src, Tensor):
        dst.copy_(src)
    else:
        convert(src, dst)


@op("Cast")
def cast(self: Tensor, dtype: int, out: Tensor) -> None:
    """A copy in another type; dtype is the code of the output's type."""
    if not isinstance(out, Tensor):
        raise Unsupported("dtype", dtype, "types that torch has")
    if DTYPES.get(dtype) != out.dtype:
        raise Illegal("dtype", dtype, f"the code of the output's type, {out.dtype}")
    write(out, self)


@op("InplaceZero")
def zero(self: Tensor) -> None:
    """self = 0."""
    self.zero_()


@op("InplaceOne")
def one(self: Tensor) -> None:
    """self = 1."""
    self.fill_(1)


@op("InplaceFillScalar", "InplaceFillTensor")
def fill(self: Tensor, value: Tensor | Number) -> None:
    """self = value, a number or a tensor of one number."""
    self.fill_(value)


@op("InplaceMaskedFillScalar", "InplaceMaskedFillTensor")
def masked_fill(self: Tensor, mask: Tensor, value: Tensor | Number) -> None:
    """self = value where mask."""
    self.masked_fill_(mask, value)


@op("InplaceScatterValue")
def scatter_value(self: Tensor, dim: int, index: Tensor, value: Number, reduction: int) -> None:
    """self = value at the indices along dim, or combined with it by reduction."""
    name = reduction_name(reduction)
    if name is None:
        self.scatter_(dim, index, value)
    else:
        self.scatter_(dim, index, value, reduce=name)


@op("InplaceScatter")
def scatter(self: Tensor, dim: int, index: Tensor, src: Tensor, reduction: int) -> None:
    """self = src at the indices along dim, or combined with it by reduction."""
    name = reduction_name(reduction)
    if name is None:
        self.scatter_(dim, index, src)
    else:
        self.scatter_(dim, index, src, reduce=name)


def reduction_name(reduction: int) -> str | None:
    """PyTorch's word for a reduction of scatter: 0 none, 1 add, 2 multiply (op-plugin, ScatterKernelNpuOpApi)."""
    if reduction not in REDUCTIONS:
        raise Unsupported("reduction", reduction, "0 to 2")
    return REDUCTIONS[reduction]
