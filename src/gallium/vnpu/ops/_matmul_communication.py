"""What products joined with collectives share: their limits, the sum over the ranks, and products of int8."""

from __future__ import annotations

import torch
from torch import Tensor

from gallium.vnpu.checks import SINCE_910B, check_choice, check_dtype, check_family
from gallium.vnpu.communication import Group, find_group
from gallium.vnpu.quantisation import Matrix, dequantised, given, integer_product, integers
from gallium.vnpu.refusals import Illegal, Unsupported
from gallium.vnpu.writing import write

ALL_REDUCE_RANKS = (1, 2, 4, 8)  # docs of op-plugin: torch_npu.npu_mm_all_reduce_base
ENGINES = ("ai_cpu", "aiv", "")
UNUSED = {"stream_mode": "says what a stream does after a failure; here the operator raises"}


def plus(product: Tensor, bias: Tensor | None, x3: Tensor | None = None) -> Tensor:
    """The product and what is added to it, in float32."""
    for more in (given(bias), given(x3)):
        if more is not None:
            product = product + more.float()
    return product


def group_of(hcom: str, comm_turn: int) -> Group:
    """The communicator of this name."""
    check_choice("comm_turn", comm_turn, (0,))
    return find_group("hcom", hcom)


def all_reduce(mine: Tensor, hcom: str, reduce_op: str, comm_turn: int, result: Tensor) -> None:
    """Write the sum of what the ranks have."""
    check_family("npu_mm_all_reduce_base", *SINCE_910B, "310P")
    check_choice("reduce_op", reduce_op, ("sum",))
    group = group_of(hcom, comm_turn)
    check_choice("the world size", group.size, ALL_REDUCE_RANKS)
    write(result, group.all_reduce(mine))


def scaled_product(x1: Matrix, x2: Matrix, bias: Tensor | None, rows: Tensor | None, columns: Tensor | None) -> Tensor:
    """The product of int8 matrices, [rows, columns], in float32."""
    left, right = integers(x1), integers(x2)
    if left.dtype != torch.int8 or right.dtype != torch.int8:
        raise Unsupported("the dtypes of x1 and x2", (left.dtype, right.dtype), "int8")
    if columns is None:
        raise Illegal("the scale of x2", None, "given where x1 and x2 are int8")
    check_dtype("bias", bias, (torch.int32,))
    flat = left.reshape(-1, left.shape[-1])
    return dequantised(integer_product(flat, right), columns.reshape(-1), rows, bias)[0]
