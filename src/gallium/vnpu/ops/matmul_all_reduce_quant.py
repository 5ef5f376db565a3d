"""The sum over the ranks of products with quantised operands."""

from __future__ import annotations

from torch import Tensor

from gallium.vnpu.checks import check_choice
from gallium.vnpu.ops._matmul_communication import ENGINES, UNUSED, all_reduce, plus, scaled_product
from gallium.vnpu.ops.weight_quant_matmul import restored_weight
from gallium.vnpu.quantisation import Matrix, given
from gallium.vnpu.refusals import only, refuse_given
from gallium.vnpu.registry import op


@op("QuantMatmulAllReduce", unused=UNUSED)
def quant_matmul_all_reduce(
    x1: Matrix,
    x2: Matrix,
    bias: Tensor | None,
    x3: Tensor | None,
    dequant_scale: Tensor,
    hcom: str,
    reduce_op: str,
    comm_turn: int,
    stream_mode: int,
    result: Tensor,
) -> None:
    """The sum over the ranks of a product of int8, turned to floats."""
    _reduce_integers(x1, x2, bias, x3, dequant_scale, None, hcom, reduce_op, comm_turn, result)


@op("QuantMatmulAllReduceV2", unused=UNUSED)
def quant_matmul_all_reduce_v2(
    x1: Matrix,
    x2: Matrix,
    bias: Tensor | None,
    x3: Tensor | None,
    dequant_scale: Tensor,
    pertoken_scale: Tensor | None,
    hcom: str,
    reduce_op: str,
    comm_turn: int,
    stream_mode: int,
    result: Tensor,
) -> None:
    """QuantMatmulAllReduce with a scale for each row too."""
    _reduce_integers(x1, x2, bias, x3, dequant_scale, pertoken_scale, hcom, reduce_op, comm_turn, result)


@op("QuantMatmulAllReduceV3", unused=UNUSED)
def quant_matmul_all_reduce_v3(
    x1: Matrix,
    x2: Matrix,
    bias: Tensor | None,
    x3: Tensor | None,
    dequant_scale: Tensor,
    pertoken_scale: Tensor | None,
    comm_quant_scale_1: Tensor | None,
    comm_quant_scale_2: Tensor | None,
    hcom: str,
    reduce_op: str,
    comm_turn: int,
    stream_mode: int,
    result: Tensor,
) -> None:
    """QuantMatmulAllReduceV2; quantised communication is not emulated."""
    refuse_given(comm_quant_scale_1=comm_quant_scale_1, comm_quant_scale_2=comm_quant_scale_2)
    _reduce_integers(x1, x2, bias, x3, dequant_scale, pertoken_scale, hcom, reduce_op, comm_turn, result)


@op("QuantMatmulAllReduceV5", unused=UNUSED)
def quant_matmul_all_reduce_v5(
    x1: Matrix,
    x2: Matrix,
    bias: Tensor | None,
    x3: Tensor | None,
    pertoken_scale: Tensor | None,
    dequant_scale: Tensor,
    comm_quant_scale_1: Tensor | None,
    comm_quant_scale_2: Tensor | None,
    hcom: str,
    reduce_op: str,
    comm_mode: str,
    comm_turn: int,
    stream_mode: int,
    group_size: int,
    comm_quant_mode: int,
    result: Tensor,
) -> None:
    """QuantMatmulAllReduceV3 with the scales the other way round, and a choice of the engine that communicates."""
    check_choice("comm_mode", comm_mode, ENGINES)
    refuse_given(comm_quant_scale_1=comm_quant_scale_1, comm_quant_scale_2=comm_quant_scale_2)
    only("group_sizes", group_size, 0)
    only("comm_quant_mode", comm_quant_mode, 0)
    _reduce_integers(x1, x2, bias, x3, dequant_scale, pertoken_scale, hcom, reduce_op, comm_turn, result)


@op("WeightQuantMatmulAllReduce", unused=UNUSED)
def weight_quant_matmul_all_reduce(
    x1: Tensor,
    x2: Matrix,
    bias: Tensor | None,
    antiquant_scale: Tensor,
    antiquant_offset: Tensor | None,
    x3: Tensor | None,
    hcom: str,
    reduce_op: str,
    comm_turn: int,
    stream_mode: int,
    antiquant_group_size: int,
    result: Tensor,
) -> None:
    """The sum over the ranks of `x1 @ ((x2 + offset) * scale) + bias + x3`."""
    weight = restored_weight(x2, antiquant_scale, given(antiquant_offset), antiquant_group_size, x1)
    all_reduce(plus(x1.float() @ weight, bias, x3), hcom, reduce_op, comm_turn, result)


@op("WeightQuantMatmulAllReduceV2", unused=UNUSED)
def weight_quant_matmul_all_reduce_v2(
    x1: Tensor,
    x2: Matrix,
    bias: Tensor | None,
    antiquant_scale: Tensor,
    antiquant_offset: Tensor | None,
    x3: Tensor | None,
    hcom: str,
    reduce_op: str,
    comm_mode: str,
    comm_turn: int,
    stream_mode: int,
    antiquant_group_size: int,
    result: Tensor,
) -> None:
    """WeightQuantMatmulAllReduce with a choice of the engine that communicates."""
    check_choice("comm_mode", comm_mode, ENGINES)
    weight = restored_weight(x2, antiquant_scale, given(antiquant_offset), antiquant_group_size, x1)
    all_reduce(plus(x1.float() @ weight, bias, x3), hcom, reduce_op, comm_turn, result)


def _reduce_integers(
    x1: Matrix,
    x2: Matrix,
    bias: Tensor | None,
    x3: Tensor | None,
    dequant_scale: Tensor | None,
    pertoken_scale: Tensor | None,
    hcom: str,
    reduce_op: str,
    comm_turn: int,
    result: Tensor,
) -> None:
    scaled = scaled_product(x1, x2, given(bias), given(pertoken_scale), dequant_scale)
    all_reduce(plus(scaled.view(result.shape), None, x3), hcom, reduce_op, comm_turn, result)
