"""Matrix products: Matmul, Mm, BatchMatMul, Addmm and their kin."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gallium.vnpu.registry import op
from gallium.vnpu.tensors import Blocked, dense
from gallium.vnpu.writing import into, write

Number = bool | int | float | complex
Matrix = Tensor | Blocked

_CUBE_MATH = {"cube_math_type": "chooses how precise the matrix unit may be, which is not emulated: results are exact"}


def product(out: Tensor, a: Tensor, b: Tensor) -> None:
    """`out = a @ b` as torch.matmul broadcasts it, written in place (torch.matmul's own `out=` may swap the storage)."""
    if a.dtype != out.dtype:
        a, b = a.to(out.dtype), b.to(out.dtype)
    if a.dim() == 2 and b.dim() == 2:
        into(torch.mm, out, a, b)
    elif a.dim() == 3 and b.dim() == 3 and a.shape[0] == b.shape[0]:
        into(torch.bmm, out, a, b)
    elif a.dim() == 1 or b.dim() == 1:
        _with_vector(out, a, b)
    elif b.dim() == 2 and out.is_contiguous() and out.shape == (*a.shape[:-1], b.shape[1]):
        torch.mm(a.reshape(-1, a.shape[-1]), b, out=out.view(-1, b.shape[1]))
    else:
        _batched(out, a, b)


def _with_vector(out: Tensor, a: Tensor, b: Tensor) -> None:
    """A product in which at least one side has one dimension, which the result lacks."""
    if a.dim() == 1 and b.dim() == 1:
        into(torch.dot, out, a, b)
    elif a.dim() == 2:
        into(torch.mv, out, a, b)
    elif a.dim() == 1:
        product(out.unsqueeze(-2), a.unsqueeze(0), b)
    else:
        product(out.unsqueeze(-1), a, b.unsqueeze(-1))


def _batched(out: Tensor, a: Tensor, b: Tensor) -> None:
    batch = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    if not out.is_contiguous() or out.shape != (*batch, a.shape[-2], b.shape[-1]):
        write(out, torch.matmul(a, b))
        return
    count = math.prod(batch)
    flat = [x.expand(*batch, *x.shape[-2:]).reshape(count, *x.shape[-2:]) for x in (a, b)]
    torch.bmm(flat[0], flat[1], out=out.view(count, *out.shape[-2:]))


@op("Matmul", "Mm", "BatchMatMul", "MatmulWeightNz", "BatchMatMulWeightNz", cube=True, unused=_CUBE_MATH)
def matmul(self: Matrix, mat2: Matrix, out: Tensor, cube_math_type: int) -> None:
    """The matrix product; batch dimensions broadcast."""
    product(out, dense(self), dense(mat2))


@op("Addmm", "AddmmWeightNz", cube=True, unused=_CUBE_MATH)
def addmm(
    self: Tensor, mat1: Matrix, mat2: Matrix, beta: Number, alpha: Number, out: Tensor, cube_math_type: int
) -> None:
    """`beta * self + alpha * (mat1 @ mat2)`."""
    into(torch.addmm, out, self, dense(mat1), dense(mat2), beta=beta, alpha=alpha)


@op("Dot")
def dot(self: Tensor, tensor: Tensor, out: Tensor) -> None:
    """The product of two vectors."""
    into(torch.dot, out, self, tensor)
