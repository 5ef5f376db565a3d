"""Matrix products joined with collectives: all-reduce, all-gather, reduce-scatter and all-to-all."""

from __future__ import annotations

from torch import Tensor

from gallium.vnpu.checks import HALVES, SINCE_910B, check_choice, check_dtype, check_family, check_same_dtype
from gallium.vnpu.communication import Group
from gallium.vnpu.ops._matmul_communication import ENGINES, UNUSED, all_reduce, group_of, plus, scaled_product
from gallium.vnpu.quantisation import Matrix, given
from gallium.vnpu.refusals import Illegal, only, refuse_given
from gallium.vnpu.registry import op
from gallium.vnpu.tensors import Blocked, dense
from gallium.vnpu.writing import write

# Limits: docs of op-plugin, npu_mm_all_reduce_base, npu_all_gather_base_mm, npu_mm_reduce_scatter_base, and the two
# npu_..._all_to_all pages.
GATHER_RANKS = {"910B": (2, 4, 8), "910_93": (2, 4, 8, 16, 32)}
INNER = range(256, 65535)

Operand = Tensor | Blocked


@op("MatmulAllReduce", unused=UNUSED)
def matmul_all_reduce(
    x1: Tensor,
    x2: Operand,
    bias: Tensor | None,
    hcom: str,
    reduce_op: str,
    comm_turn: int,
    stream_mode: int,
    result: Tensor,
) -> None:
    """The sum over the ranks of `x1 @ x2 + bias`: docs of op-plugin, torch_npu.npu_mm_all_reduce_base."""
    _reduce_floats(x1, x2, bias, None, hcom, reduce_op, comm_turn, result)


@op("MatmulAllReduceV2", unused=UNUSED)
def matmul_all_reduce_v2(
    x1: Tensor,
    x2: Operand,
    bias: Tensor | None,
    x3: Tensor | None,
    hcom: str,
    reduce_op: str,
    comm_turn: int,
    stream_mode: int,
    result: Tensor,
) -> None:
    """The sum over the ranks of `x1 @ x2 + bias + x3`."""
    _reduce_floats(x1, x2, bias, x3, hcom, reduce_op, comm_turn, result)


@op("MatmulAllReduceV3", unused=UNUSED)
def matmul_all_reduce_v3(
    x1: Tensor,
    x2: Operand,
    bias: Tensor | None,
    x3: Tensor | None,
    hcom: str,
    reduce_op: str,
    comm_mode: str,
    comm_turn: int,
    stream_mode: int,
    result: Tensor,
) -> None:
    """MatmulAllReduceV2 with a choice of the engine that communicates."""
    check_choice("comm_mode", comm_mode, ENGINES)
    _reduce_floats(x1, x2, bias, x3, hcom, reduce_op, comm_turn, result)


@op("AllGatherMatmul", unused=UNUSED)
def all_gather_matmul(
    x1: Tensor,
    x2: Operand,
    bias: Tensor | None,
    hcom: str,
    gather_index: int,
    comm_turn: int,
    stream_mode: int,
    output: Tensor,
    gather_out: Tensor | None,
) -> None:
    """All ranks' rows of x1 times x2: docs of op-plugin, torch_npu.npu_all_gather_base_mm."""
    _gathered(x1, x2, bias, None, None, hcom, gather_index, comm_turn, output, gather_out)


@op("AllGatherMatmulV2", unused=UNUSED)
def all_gather_matmul_v2(
    x1: Matrix,
    x2: Matrix,
    bias: Tensor | None,
    x1_scale: Tensor | None,
    x2_scale: Tensor | None,
    quant_scale: Tensor | None,
    block_size: int,
    hcom: str,
    gather_index: int,
    comm_turn: int,
    stream_mode: int,
    group_size: int,
    comm_mode: str,
    output: Tensor,
    gather_out: Tensor | None,
    amax_out: Tensor | None,
) -> None:
    """AllGatherMatmul of floats, or of int8 with scales for the rows, which are gathered too, and the columns."""
    check_choice("comm_mode", comm_mode, ENGINES)
    refuse_given(quant_scale=quant_scale, amax_out=amax_out)
    only("block_size", block_size, 0)
    only("group_size", group_size, 0)
    _gathered(x1, x2, bias, x1_scale, x2_scale, hcom, gather_index, comm_turn, output, gather_out)


@op("MatmulReduceScatter", unused=UNUSED)
def matmul_reduce_scatter(
    x1: Tensor,
    x2: Operand,
    bias: Tensor | None,
    hcom: str,
    reduce_op: str,
    comm_turn: int,
    stream_mode: int,
    result: Tensor,
) -> None:
    """This rank's rows of the sum over the ranks of x1 @ x2 + bias: docs, torch_npu.npu_mm_reduce_scatter_base."""
    _scattered(x1, x2, bias, None, None, hcom, reduce_op, comm_turn, result)


@op("MatmulReduceScatterV2", unused=UNUSED)
def matmul_reduce_scatter_v2(
    x1: Matrix,
    x2: Matrix,
    bias: Tensor | None,
    x1_scale: Tensor | None,
    x2_scale: Tensor | None,
    quant_scale: Tensor | None,
    block_size: int,
    hcom: str,
    reduce_op: str,
    comm_turn: int,
    stream_mode: int,
    group_size: int,
    comm_mode: str,
    result: Tensor,
    amax_out: Tensor | None,
) -> None:
    """MatmulReduceScatter of floats, or of int8 with scales for the rows and the columns."""
    check_choice("comm_mode", comm_mode, ENGINES)
    refuse_given(quant_scale=quant_scale, amax_out=amax_out)
    only("block_size", block_size, 0)
    only("group_size", group_size, 0)
    _scattered(x1, x2, bias, x1_scale, x2_scale, hcom, reduce_op, comm_turn, result)


def _reduce_floats(
    x1: Tensor,
    x2: Operand,
    bias: Tensor | None,
    x3: Tensor | None,
    hcom: str,
    reduce_op: str,
    comm_turn: int,
    result: Tensor,
) -> None:
    check_dtype("x1", x1, HALVES)
    right = dense(x2)
    check_same_dtype("x2", right, "x1", x1)
    all_reduce(plus(x1.float() @ right.float(), bias, x3), hcom, reduce_op, comm_turn, result)


def _check_inner(x1: Matrix, group: Group) -> None:
    check_choice("the inner dimension", x1.shape[-1], INNER, f"{INNER.start} to {INNER.stop - 1}")
    ranks = {rank for allowed in GATHER_RANKS.values() for rank in allowed}
    check_choice("the world size", group.size, ranks)


def _gathered(
    x1: Matrix,
    x2: Matrix,
    bias: Tensor | None,
    x1_scale: Tensor | None,
    x2_scale: Tensor | None,
    hcom: str,
    gather_index: int,
    comm_turn: int,
    output: Tensor,
    gather_out: Tensor | None,
) -> None:
    check_family("npu_all_gather_base_mm", *SINCE_910B)
    check_choice("gather_index", gather_index, (0,))
    group = group_of(hcom, comm_turn)
    _check_inner(x1, group)
    rows = group.all_gather(dense(x1))
    if rows.is_floating_point():
        refuse_given(x1_scale=x1_scale, x2_scale=x2_scale)
        write(output, plus(rows.float() @ dense(x2).float(), bias))
    else:
        scales = None if x1_scale is None else group.all_gather(x1_scale)
        write(output, scaled_product(rows, x2, given(bias), scales, x2_scale))
    if gather_out is not None and gather_out.numel():
        write(gather_out, rows)


def _scattered(
    x1: Matrix,
    x2: Matrix,
    bias: Tensor | None,
    x1_scale: Tensor | None,
    x2_scale: Tensor | None,
    hcom: str,
    reduce_op: str,
    comm_turn: int,
    result: Tensor,
) -> None:
    check_family("npu_mm_reduce_scatter_base", *SINCE_910B)
    check_choice("reduce_op", reduce_op, ("sum",))
    group = group_of(hcom, comm_turn)
    _check_inner(x1, group)
    rows = dense(x1)
    if rows.shape[0] % group.size:
        raise Illegal("the rows of x1", rows.shape[0], f"a multiple of the world size, {group.size}")
    if rows.is_floating_point():
        refuse_given(x1_scale=x1_scale, x2_scale=x2_scale)
        product = plus(rows.float() @ dense(x2).float(), bias)
    else:
        product = scaled_product(rows, x2, given(bias), x1_scale, x2_scale)
    write(result, group.reduce_scatter(product))
