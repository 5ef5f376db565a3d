"""Copies, fills and other changes of a tensor in place."""

from __future__ import annotations

from torch import Tensor

from gallium.vnpu.formats import convert
from gallium.vnpu.ops._factories import Number
from gallium.vnpu.registry import Illegal, Unsupported, op
from gallium.vnpu.tensors import DTYPES, Blocked
from gallium.vnpu.writing import write


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
