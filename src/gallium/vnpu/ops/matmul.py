"""Matrix products: Matmul, Mm, BatchMatMul, Addmm and their kin, also with weights in the blocked format."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gallium.vnpu.registry import op
from gallium.vnpu.tensors import Blocked, dense
from gallium.vnpu.writing import into, write

Number = bool | int | float | complex
Matrix = Tensor | Blocked

CUBE_MATH = {"cube_math_type": "chooses how precise the matrix unit may be, which is not emulated: results are exact"}


def product(out: Tensor, a: Tensor, b: Tensor) -> None:
    """`out = a @ b` as torch.matmul broadcasts it, computed in the output's type."""
    if a.dtype != out.dtype or b.dtype != out.dtype:
        a, b = a.to(out.dtype), b.to(out.dtype)
    if a.dim() == b.dim() == 2:
        into(torch.mm, out, a, b)
    elif a.dim() == 1 and b.dim() == 2:  # torch.matmul would make the output `[1, n]`
        into(torch.mv, out, b.t(), a)
    elif out.is_contiguous():
        into(torch.matmul, out, a, b)
    else:  # torch.matmul takes a strided `out` for two matrices only
        write(out, torch.matmul(a, b))


def _add_product(
    function: Callable[..., Any], out: Tensor, self: Tensor, a: Matrix, b: Matrix, beta: Number, alpha: Number
) -> None:
    """One of torch's functions `beta * self + alpha * (a @ b)`, computed in the output's type."""
    terms = [x if x.dtype == out.dtype else x.to(out.dtype) for x in (self, dense(a), dense(b))]
    into(function, out, *terms, beta=beta, alpha=alpha)


@op("Matmul", "Mm", "BatchMatMul", "Mv", "MatmulWeightNz", "BatchMatMulWeightNz", cube=True, unused=CUBE_MATH)
def matmul(self: Matrix, mat2: Matrix, out: Tensor, cube_math_type: int) -> None:
    """The matrix product; batch dimensions broadcast."""
    product(out, dense(self), dense(mat2))


@op("Dot")
def dot(self: Tensor, tensor: Tensor, out: Tensor) -> None:
    """The product of two vectors; complex ones are not conjugated."""
    into(torch.dot, out, self, tensor)


@op("Addmm", "AddmmWeightNz", cube=True, unused=CUBE_MATH)
def addmm(
    self: Tensor, mat1: Matrix, mat2: Matrix, beta: Number, alpha: Number, out: Tensor, cube_math_type: int
) -> None:
    """`beta * self + alpha * (mat1 @ mat2)`."""
    _add_product(torch.addmm, out, self, mat1, mat2, beta, alpha)


@op("Baddbmm", cube=True, unused=CUBE_MATH)
def baddbmm(
    self: Tensor, batch1: Matrix, batch2: Matrix, beta: Number, alpha: Number, out: Tensor, cube_math_type: int
) -> None:
    """`beta * self + alpha * (batch1 @ batch2)` for each matrix of the batch."""
    _add_product(torch.baddbmm, out, self, batch1, batch2, beta, alpha)


@op("Addbmm", cube=True, unused=CUBE_MATH)
def addbmm(
    self: Tensor, batch1: Matrix, batch2: Matrix, beta: Number, alpha: Number, out: Tensor, cube_math_type: int
) -> None:
    """`beta * self + alpha * sum(batch1 @ batch2)` over the batch."""
    _add_product(torch.addbmm, out, self, batch1, batch2, beta, alpha)


@op("Addmv", cube=True, unused=CUBE_MATH)
def addmv(
    self: Tensor, mat: Matrix, vec: Tensor, alpha: Number, beta: Number, out: Tensor, cube_math_type: int
) -> None:
    """`beta * self + alpha * (mat @ vec)`; alpha comes first, unlike in the others."""
    _add_product(torch.addmv, out, self, mat, vec, beta, alpha)


@op("Addr")
def addr(self: Tensor, vec1: Tensor, vec2: Tensor, beta: Number, alpha: Number, out: Tensor) -> None:
    """`beta * self + alpha * outer(vec1, vec2)`."""
    into(torch.addr, out, self, vec1, vec2, beta=beta, alpha=alpha)
