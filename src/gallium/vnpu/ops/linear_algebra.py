"""Decompositions, inverses and products of small matrices: Inverse, LinalgQr, Svd, TriangularSolve and others."""

from __future__ import annotations

import torch
from torch import Tensor

from gallium.vnpu.registry import Illegal, op
from gallium.vnpu.writing import into, into_all, write

_QR_MODES = ("reduced", "complete", "r")  # op-plugin numbers them in this order


@op("Inverse")
def inverse(self: Tensor, out: Tensor) -> None:
    """The inverse of each matrix."""
    into(torch.linalg.inv, out, self)


@op("LinalgCholesky")
def cholesky(self: Tensor, upper: bool, out: Tensor) -> None:
    """The Cholesky factor of each matrix, lower or upper."""
    into(torch.linalg.cholesky, out, self, upper=upper)


@op("LinalgCross")
def cross(self: Tensor, other: Tensor, dim: int, out: Tensor) -> None:
    """The cross product of vectors of three elements along a dimension."""
    into(torch.linalg.cross, out, self, other, dim=dim)


@op("LinalgQr")
def qr(self: Tensor, mode: int, q: Tensor, r: Tensor) -> None:
    """QR decomposition; mode 0 reduced, 1 complete, 2 only r."""
    if not 0 <= mode < len(_QR_MODES):
        raise Illegal("mode", mode, "0 reduced, 1 complete, 2 r")
    into_all(torch.linalg.qr, (q, r), self, _QR_MODES[mode])


@op("Svd")
def svd(self: Tensor, full_matrices: bool, compute_uv: bool, s: Tensor, u: Tensor, v: Tensor) -> None:
    """Singular values, and the matrices u and v (not transposed) if they are asked for."""
    if not compute_uv:
        into(torch.linalg.svdvals, s, self)
        return
    left, values, right = torch.linalg.svd(self, full_matrices)
    write(u, left)
    write(s, values)
    write(v, right.mH)


@op("Slogdet")
def slogdet(self: Tensor, sign: Tensor, logarithm: Tensor) -> None:
    """Sign and logarithm of the absolute value of the determinant."""
    into_all(torch.linalg.slogdet, (sign, logarithm), self)


@op("Trace")
def trace(self: Tensor, out: Tensor) -> None:
    """The sum of the diagonal."""
    write(out, torch.trace(self))


@op("TriangularSolve")
def triangular_solve(
    self: Tensor, a: Tensor, upper: bool, transpose: bool, unitriangular: bool, x: Tensor, m: Tensor
) -> None:
    """`x` with `a @ x = self`, where the upper or lower part of `a` counts; `m` is a copy of `a`."""
    matrix = a.mT if transpose else a
    write(x, torch.linalg.solve_triangular(matrix, self, upper=upper != transpose, unitriangular=unitriangular))
    write(m, a.expand(m.shape))
