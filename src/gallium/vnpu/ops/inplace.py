"""Copies, fills, triangles and products in place."""

from __future__ import annotations

from torch import Tensor

from gallium.vnpu.formats import convert
from gallium.vnpu.ops._factories import Number
from gallium.vnpu.registry import op
from gallium.vnpu.tensors import Blocked, dense


@op("InplaceCopy")
def copy(dst: Tensor | Blocked, src: Tensor | Blocked) -> None:
    """dst = src, broadcast and cast."""
    if isinstance(dst, Tensor) and isinstance(src, Tensor):
        dst.copy_(src)
    else:
        convert(src, dst)


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


@op("InplaceFillDiagonal")
def fill_diagonal(self: Tensor, value: Number, wrap: bool) -> None:
    """self = value on the diagonal; wrap goes on below the square part of a tall matrix."""
    self.fill_diagonal_(value, wrap)


@op("InplaceTril")
def tril(self: Tensor, diagonal: int) -> None:
    """0 above a diagonal."""
    self.tril_(diagonal)


@op("InplaceTriu")
def triu(self: Tensor, diagonal: int) -> None:
    """0 below a diagonal."""
    self.triu_(diagonal)


@op("InplaceRenorm")
def renorm(self: Tensor, p: Number, dim: int, maxnorm: Number) -> None:
    """Scale down each slice along dim whose p-norm is above maxnorm."""
    self.renorm_(p, dim, maxnorm)


@op("InplaceAddr")
def addr(self: Tensor, vec1: Tensor, vec2: Tensor, beta: Number, alpha: Number) -> None:
    """beta * self + alpha * (the outer product)."""
    self.addr_(vec1, vec2, beta=beta, alpha=alpha)


@op("InplaceAddmm", cube=True, unused={"cube_math_type": "chooses the precision of the matrix unit: results are exact"})
def addmm(
    self: Tensor, mat1: Tensor | Blocked, mat2: Tensor | Blocked, beta: Number, alpha: Number, cube_math_type: int
) -> None:
    """beta * self + alpha * (mat1 @ mat2)."""
    self.addmm_(dense(mat1), dense(mat2), beta=beta, alpha=alpha)
