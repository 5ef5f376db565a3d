"""Arithmetic, sums and products of matrices through CANN's older interface.

torch_npu takes it for tensors in an internal format, such as the output of a convolution of float16 on 910A and 310P.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gallium.vnpu.aclop import aclop
from gallium.vnpu.precision import wide
from gallium.vnpu.refusals import Illegal, only
from gallium.vnpu.registry import Body
from gallium.vnpu.writing import into, write

Ints = tuple[int, ...]
BINARY: dict[str, Callable[..., Any]] = {
    "Add": torch.add,
    "Sub": torch.sub,
    "Mul": torch.mul,
    "RealDiv": torch.div,
    "Maximum": torch.maximum,
    "Minimum": torch.minimum,
    "Pow": torch.pow,
    "Greater": torch.gt,
    "GreaterEqual": torch.ge,
    "Less": torch.lt,
    "LessEqual": torch.le,
    "Equal": torch.eq,
    "NotEqual": torch.ne,
}
UNARY: dict[str, Callable[..., Any]] = {
    "Abs": torch.abs,
    "Exp": torch.exp,
    "Neg": torch.neg,
    "Reciprocal": torch.reciprocal,
    "Rsqrt": torch.rsqrt,
    "Sigmoid": torch.sigmoid,
    "Sign": torch.sign,
    "Sqrt": torch.sqrt,
    "Square": torch.square,
    "Tanh": torch.tanh,
}


def _unary(function: Callable[..., Any]) -> Body:
    def body(out: Tensor, /, x: Tensor) -> None:
        into(function, out, x)

    return body


def _binary(function: Callable[..., Any]) -> Body:
    # A number comes as a tensor without dimensions, of the type of the other.
    def body(out: Tensor, /, x1: Tensor, x2: Tensor) -> None:
        into(function, out, x1, x2)

    return body


for _name, _function in BINARY.items():
    aclop(_name)(_binary(_function))
for _name, _function in UNARY.items():
    aclop(_name)(_unary(_function))


@aclop("AxpyV2")
def axpy(out: Tensor, /, x1: Tensor, x2: Tensor, alpha: Tensor) -> None:
    """x1 + alpha * x2."""
    into(torch.add, out, x1, x2, alpha=alpha.item())


@aclop("ReduceSum")
def reduce_sum(out: Tensor, /, x: Tensor, axes: Tensor, *, keep_dims: bool) -> None:
    """torch.sum."""
    write(out, wide(x).sum(_axes(axes, x), keep_dims))


@aclop("ReduceMean")
def reduce_mean(out: Tensor, /, x: Tensor, axes: Tensor, *, keep_dims: bool) -> None:
    """torch.mean."""
    write(out, wide(x).mean(_axes(axes, x), keep_dims))


@aclop("ArgMaxWithValue")
def max_with_index(indices: Tensor, values: Tensor, /, x: Tensor, *, dimension: int, keep_dims: bool) -> None:
    """torch.max along a dimension."""
    _extreme(torch.max, indices, values, x, dimension, keep_dims)


@aclop("ArgMinWithValue")
def min_with_index(indices: Tensor, values: Tensor, /, x: Tensor, *, dimension: int, keep_dims: bool) -> None:
    """torch.min along a dimension."""
    _extreme(torch.min, indices, values, x, dimension, keep_dims)


def _extreme(function: Callable[..., Any], indices: Tensor, values: Tensor, x: Tensor, dim: int, keep: bool) -> None:
    found, places = function(x, dim, keep)
    write(values, found)
    write(indices, places)


@aclop("ConcatD")
def concat(out: Tensor, /, *x: Tensor, concat_dim: int, N: int) -> None:  # noqa: N803
    """torch.cat."""
    if len(x) != N:
        raise Illegal("N", N, f"the number of inputs, {len(x)}")
    into(torch.cat, out, x, concat_dim)


@aclop("Fill")
def fill(out: Tensor, /, dims: Tensor, value: Tensor) -> None:
    """torch.full of the output's shape; a tensor without dimensions comes with the dims [1]."""
    if tuple(dims.tolist()) != (tuple(out.shape) or (1,)):
        raise Illegal("dims", dims.tolist(), f"the output's shape, {list(out.shape)}")
    out.copy_(value.reshape(()))


@aclop("BroadcastTo")
def broadcast_to(out: Tensor, /, x: Tensor, shape: Tensor) -> None:
    """torch.broadcast_to."""
    write(out, x.broadcast_to(shape.tolist()))


@aclop("GatherV2")
def gather(out: Tensor, /, x: Tensor, indices: Tensor, axis: Tensor, *, batch_dims: int) -> None:
    """The slices of x at the indices along the axis: torch.embedding and torch.index_select."""
    only("batch_dims", batch_dims, 0)
    along = int(axis) % x.dim()
    found = x.index_select(along, indices.flatten())
    write(out, found.view(*x.shape[:along], *indices.shape, *x.shape[along + 1 :]))


@aclop("MatMul", cube=True)
def matmul(
    out: Tensor, /, x1: Tensor, x2: Tensor, bias: Tensor | None = None, *, transpose_x1: bool, transpose_x2: bool
) -> None:
    """torch.mm, or torch.addmm with a bias."""
    _product(out, x1, x2, bias, transpose_x1, transpose_x2)


@aclop("BatchMatMul", cube=True)
def batch_matmul(
    out: Tensor, /, x1: Tensor, x2: Tensor, bias: Tensor | None = None, *, adj_x1: bool, adj_x2: bool
) -> None:
    """torch.bmm, or torch.baddbmm with a bias."""
    _product(out, x1, x2, bias, adj_x1, adj_x2)


def _product(out: Tensor, x1: Tensor, x2: Tensor, bias: Tensor | None, flip1: bool, flip2: bool) -> None:
    result = torch.matmul(wide(x1.mT if flip1 else x1), wide(x2.mT if flip2 else x2))
    write(out, result if bias is None else result + wide(bias))


def _axes(axes: Tensor, x: Tensor) -> Ints:
    """No axes at all stand for all of them."""
    return tuple(axes.flatten().tolist()) or tuple(range(x.dim()))
