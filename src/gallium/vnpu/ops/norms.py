"""Norms of vectors: LinalgVectorNorm, Norm, Renorm, LogSumExp."""

from __future__ import annotations

import torch
from torch import Tensor

from gallium.vnpu.registry import op
from gallium.vnpu.tensors import DTYPES
from gallium.vnpu.writing import into, write

Number = bool | int | float | complex
Dims = tuple[int, ...] | None


@op("LinalgVectorNorm")
def vector_norm(self: Tensor, order: Number, dims: Dims, keepdim: bool, dtype: int, out: Tensor) -> None:
    """The norm of the given order of the elements as one vector, computed in the type `dtype`."""
    wanted = DTYPES[dtype]
    if wanted == out.dtype and not wanted.is_complex:
        into(torch.linalg.vector_norm, out, self, order, dims or None, keepdim, dtype=wanted)
    else:
        write(out, torch.linalg.vector_norm(self, order, dims or None, keepdim, dtype=wanted))


@op("Norm")
def norm(self: Tensor, order: Number, dims: Dims, keepdim: bool, out: Tensor) -> None:
    """The norm of the given order, in the output's type."""
    if out.dtype == self.dtype and not self.is_complex():
        into(torch.linalg.vector_norm, out, self, order, dims or None, keepdim)
    else:
        wide = self if self.is_complex() else self.to(torch.promote_types(self.dtype, out.dtype))
        write(out, torch.linalg.vector_norm(wide, order, dims or None, keepdim))


@op("Renorm")
def renorm(self: Tensor, order: Number, dim: int, maxnorm: Number, out: Tensor) -> None:
    """Each slice along a dimension scaled down to at most `maxnorm`."""
    into(torch.renorm, out, self, order, dim, maxnorm)


@op("LogSumExp")
def log_sum_exp(self: Tensor, dims: Dims, keepdim: bool, out: Tensor) -> None:
    """Logarithm of the sum of exponentials."""
    into(torch.logsumexp, out, self, dims or tuple(range(self.dim())), keepdim)
