"""Matrix products joined with an exchange between all ranks: of rows for columns, or of tokens for experts."""

from __future__ import annotations

import torch
from torch import Tensor

from gallium.vnpu.checks import HALVES, check_choice, check_dtype, check_family, check_same_dtype
from gallium.vnpu.communication import Group, find_group
from gallium.vnpu.quantisation import given
from gallium.vnpu.refusals import Illegal, refuse_given
from gallium.vnpu.registry import op
from gallium.vnpu.writing import write

# Limits: docs of op-plugin, npu_all_to_all_matmul, npu_matmul_all_to_all, npu_alltoallv_gmm, npu_gmm_alltoallv.
SINCE_910_93 = ("910_93", "950")
EXCHANGE_RANKS = (2, 4, 8, 16)
EXPERT_RANKS = (8, 16, 32, 64, 128)
MOST_LOCAL_EXPERTS, MOST_COUNTS = 32, 256
ENGINES = ("ai_cpu", "aiv", "ccu", "")


@op("AlltoAllMatmul")
def all_to_all_matmul(
    x1: Tensor,
    x2: Tensor,
    bias: Tensor | None,
    all2all_axes: tuple[int, ...] | None,
    group: str,
    transpose_x1: bool,
    transpose_x2: bool,
    output: Tensor,
    all_to_all_out: Tensor | None,
) -> None:
    """Rows for columns, then the product: docs of op-plugin, torch_npu.npu_all_to_all_matmul."""
    _exchange_then_product(x1, x2, bias, all2all_axes, group, transpose_x1, transpose_x2, output, all_to_all_out)


@op("AlltoAllMatmulV2")
def all_to_all_matmul_v2(
    x1: Tensor,
    x2: Tensor,
    bias: Tensor | None,
    all2all_axes: tuple[int, ...] | None,
    group: str,
    comm_mode: str,
    transpose_x1: bool,
    transpose_x2: bool,
    output: Tensor,
    all_to_all_out: Tensor | None,
) -> None:
    """AlltoAllMatmul with a choice of the engine that communicates."""
    check_choice("comm_mode", comm_mode, ENGINES)
    _exchange_then_product(x1, x2, bias, all2all_axes, group, transpose_x1, transpose_x2, output, all_to_all_out)


@op("MatmulAlltoAll")
def matmul_all_to_all(
    x1: Tensor,
    x2: Tensor,
    bias: Tensor | None,
    all2all_axes: tuple[int, ...] | None,
    group: str,
    transpose_x1: bool,
    transpose_x2: bool,
    output: Tensor,
) -> None:
    """The product, then columns for rows: docs of op-plugin, torch_npu.npu_matmul_all_to_all."""
    _product_then_exchange(x1, x2, bias, all2all_axes, group, transpose_x1, transpose_x2, output)


@op("MatmulAlltoAllV2")
def matmul_all_to_all_v2(
    x1: Tensor,
    x2: Tensor,
    bias: Tensor | None,
    all2all_axes: tuple[int, ...] | None,
    group: str,
    comm_mode: str,
    transpose_x1: bool,
    transpose_x2: bool,
    output: Tensor,
) -> None:
    """MatmulAlltoAll with a choice of the engine that communicates."""
    check_choice("comm_mode", comm_mode, ENGINES)
    _product_then_exchange(x1, x2, bias, all2all_axes, group, transpose_x1, transpose_x2, output)


@op("AlltoAllvGroupedMatMul")
def all_to_all_v_grouped_matmul(
    gmm_x: Tensor,
    gmm_weight: Tensor,
    send_counts_tensor: Tensor | None,
    recv_counts_tensor: Tensor | None,
    mm_x: Tensor | None,
    mm_weight: Tensor | None,
    hcom: str,
    ep_world_size: int,
    send_counts: tuple[int, ...],
    recv_counts: tuple[int, ...],
    trans_gmm_weight: bool,
    trans_mm_weight: bool,
    permute_out_flag: bool,
    gmm_y: Tensor,
    mm_y: Tensor | None,
    permute_out: Tensor | None,
) -> None:
    """Tokens to the ranks of their experts, then each expert's product: docs of op-plugin, torch_npu.npu_alltoallv_gmm.

    Counts: entry `rank * experts + expert`; the rows come and go in that order.
    """
    refuse_given(send_counts_tensor=given(send_counts_tensor), recv_counts_tensor=given(recv_counts_tensor))
    weight = gmm_weight.transpose(1, 2) if trans_gmm_weight else gmm_weight
    group, experts = _expert_group(gmm_x, weight, hcom, ep_world_size, send_counts, recv_counts)
    arrived = group.all_to_all_v(gmm_x, _by_rank(send_counts, experts), _by_rank(recv_counts, experts))
    order, sizes = _expert_order(recv_counts, experts)
    permuted = arrived[order]
    write(gmm_y, _grouped(permuted, weight, sizes))
    if permute_out_flag and permute_out is not None:
        write(permute_out, permuted)
    _shared_expert(mm_x, mm_weight, trans_mm_weight, mm_y)


@op("AlltoAllvGroupedMatMulV2")
def all_to_all_v_grouped_matmul_v2(
    gmm_x: Tensor,
    gmm_weight: Tensor,
    send_counts_tensor: Tensor | None,
    recv_counts_tensor: Tensor | None,
    mm_x: Tensor | None,
    mm_weight: Tensor | None,
    hcom: str,
    comm_mode: str,
    ep_world_size: int,
    send_counts: tuple[int, ...],
    recv_counts: tuple[int, ...],
    trans_gmm_weight: bool,
    trans_mm_weight: bool,
    permute_out_flag: bool,
    gmm_y: Tensor,
    mm_y: Tensor | None,
    permute_out: Tensor | None,
) -> None:
    """AlltoAllvGroupedMatMul with a choice of the engine that communicates."""
    check_choice("comm_mode", comm_mode, ENGINES)
    all_to_all_v_grouped_matmul(
        gmm_x,
        gmm_weight,
        send_counts_tensor,
        recv_counts_tensor,
        mm_x,
        mm_weight,
        hcom,
        ep_world_size,
        send_counts,
        recv_counts,
        trans_gmm_weight,
        trans_mm_weight,
        permute_out_flag,
        gmm_y,
        mm_y,
        permute_out,
    )


@op("GroupedMatMulAlltoAllv")
def grouped_matmul_all_to_all_v(
    gmm_x: Tensor,
    gmm_weight: Tensor,
    send_counts_tensor: Tensor | None,
    recv_counts_tensor: Tensor | None,
    mm_x: Tensor | None,
    mm_weight: Tensor | None,
    hcom: str,
    ep_world_size: int,
    send_counts: tuple[int, ...],
    recv_counts: tuple[int, ...],
    trans_gmm_weight: bool,
    trans_mm_weight: bool,
    y: Tensor,
    mm_y: Tensor | None,
) -> None:
    """Each expert's product, then the tokens back to their ranks: docs of op-plugin, torch_npu.npu_gmm_alltoallv.

    recv_counts: entry `rank * experts + expert`, the order of the result. send_counts: entry `expert * ranks + rank`,
    the order of gmm_x (op-plugin's test of the same name); the ranks compare them, and refuse another order.
    """
    refuse_given(send_counts_tensor=given(send_counts_tensor), recv_counts_tensor=given(recv_counts_tensor))
    weight = gmm_weight.transpose(1, 2) if trans_gmm_weight else gmm_weight
    group, experts = _expert_group(gmm_x, weight, hcom, ep_world_size, send_counts, recv_counts)
    by_rank = torch.tensor(send_counts).view(experts, group.size).t().reshape(-1)
    told = group.all_to_all(by_rank.contiguous())
    if tuple(told.tolist()) != tuple(recv_counts):
        raise Illegal("send_counts", list(send_counts), "by expert, then rank, and what the other ranks expect")
    order, sizes = _expert_order(tuple(by_rank.tolist()), experts)
    product = _grouped(gmm_x, weight, sizes)
    back = torch.empty_like(product)
    back[order] = product
    write(y, group.all_to_all_v(back, _by_rank(tuple(by_rank.tolist()), experts), _by_rank(recv_counts, experts)))
    _shared_expert(mm_x, mm_weight, trans_mm_weight, mm_y)


@op("GroupedMatMulAlltoAllvV2")
def grouped_matmul_all_to_all_v_v2(
    gmm_x: Tensor,
    gmm_weight: Tensor,
    send_counts_tensor: Tensor | None,
    recv_counts_tensor: Tensor | None,
    mm_x: Tensor | None,
    mm_weight: Tensor | None,
    hcom: str,
    comm_mode: str,
    ep_world_size: int,
    send_counts: tuple[int, ...],
    recv_counts: tuple[int, ...],
    trans_gmm_weight: bool,
    trans_mm_weight: bool,
    y: Tensor,
    mm_y: Tensor | None,
) -> None:
    """GroupedMatMulAlltoAllv with a choice of the engine that communicates."""
    check_choice("comm_mode", comm_mode, ENGINES)
    grouped_matmul_all_to_all_v(
        gmm_x,
        gmm_weight,
        send_counts_tensor,
        recv_counts_tensor,
        mm_x,
        mm_weight,
        hcom,
        ep_world_size,
        send_counts,
        recv_counts,
        trans_gmm_weight,
        trans_mm_weight,
        y,
        mm_y,
    )


def _exchange_group(hcom: str, operator: str) -> Group:
    check_family(operator, *SINCE_910_93)
    group = find_group("group", hcom)
    check_choice("the world size", group.size, EXCHANGE_RANKS)
    return group


def _product(x1: Tensor, x2: Tensor, bias: Tensor | None) -> Tensor:
    check_dtype("x1", x1, HALVES)
    check_same_dtype("x2", x2, "x1", x1)
    check_dtype("bias", bias, (torch.float16 if x1.dtype == torch.float16 else torch.float32,))
    product = x1.float() @ x2.float()
    return product if bias is None else product + bias.float()


def _exchange_then_product(
    x1: Tensor,
    x2: Tensor,
    bias: Tensor | None,
    axes: tuple[int, ...] | None,
    hcom: str,
    transpose_x1: bool,
    transpose_x2: bool,
    output: Tensor,
    all_to_all_out: Tensor | None,
) -> None:
    check_choice("all2all_axes", tuple(axes or ()), ((), (-2, -1)))
    group = _exchange_group(hcom, "npu_all_to_all_matmul")
    rows = x1.t() if transpose_x1 else x1
    if rows.shape[0] % group.size:
        raise Illegal("the rows of x1", rows.shape[0], f"a multiple of the world size, {group.size}")
    share = rows.shape[0] // group.size
    arrived = group.all_to_all(rows).view(group.size, share, -1)
    joined = arrived.permute(1, 0, 2).reshape(share, -1)
    write(output, _product(joined, x2.t() if transpose_x2 else x2, given(bias)))
    if all_to_all_out is not None and all_to_all_out.numel():
        write(all_to_all_out, joined)


def _product_then_exchange(
    x1: Tensor,
    x2: Tensor,
    bias: Tensor | None,
    axes: tuple[int, ...] | None,
    hcom: str,
    transpose_x1: bool,
    transpose_x2: bool,
    output: Tensor,
) -> None:
    check_choice("all2all_axes", tuple(axes or ()), ((), (-1, -2)))
    group = _exchange_group(hcom, "npu_matmul_all_to_all")
    product = _product(x1.t() if transpose_x1 else x1, x2.t() if transpose_x2 else x2, given(bias)).to(output.dtype)
    if product.shape[1] % group.size:
        raise Illegal("the columns of x2", product.shape[1], f"a multiple of the world size, {group.size}")
    parts = product.view(product.shape[0], group.size, -1).permute(1, 0, 2)
    write(output, group.all_to_all(parts.reshape(group.size * product.shape[0], -1)))


def _expert_group(
    x: Tensor, weight: Tensor, hcom: str, size: int, sends: tuple[int, ...], receives: tuple[int, ...]
) -> tuple[Group, int]:
    """The communicator, and how many experts each rank has."""
    check_family("npu_alltoallv_gmm", *SINCE_910_93)
    check_dtype("gmm_x", x, HALVES)
    check_same_dtype("gmm_weight", weight, "gmm_x", x)
    check_choice("ep_world_size", size, EXPERT_RANKS)
    group, experts = find_group("hcom", hcom, size), weight.shape[0]
    if experts > MOST_LOCAL_EXPERTS or experts * size > MOST_COUNTS:
        raise Illegal("the experts of a rank", experts, f"at most {MOST_LOCAL_EXPERTS}, {MOST_COUNTS} on all ranks")
    for name, counts in (("send_counts", sends), ("recv_counts", receives)):
        if len(counts) != experts * size:
            raise Illegal(f"the length of {name}", len(counts), f"experts times ranks, {experts * size}")
    return group, experts


def _by_rank(counts: tuple[int, ...], experts: int) -> list[int]:
    return [sum(counts[i : i + experts]) for i in range(0, len(counts), experts)]


def _expert_order(counts: tuple[int, ...], experts: int) -> tuple[Tensor, list[int]]:
    """From rows by (rank, expert) to rows by (expert, rank): where each comes from, and each expert's number."""
    table = torch.tensor(counts).view(-1, experts)
    owners = torch.arange(experts).repeat(table.shape[0]).repeat_interleave(table.reshape(-1))
    return owners.argsort(stable=True), table.sum(0).tolist()


def _grouped(rows: Tensor, weight: Tensor, sizes: list[int]) -> Tensor:
    if sum(sizes) != len(rows):
        raise Illegal("the rows of gmm_x", len(rows), f"as many as the counts say, {sum(sizes)}")
    parts = [part @ weight[expert] for expert, part in enumerate(torch.split(rows, sizes))]
    return torch.cat(parts) if parts else rows @ weight[0]


def _shared_expert(x: Tensor | None, weight: Tensor | None, transpose: bool, y: Tensor | None) -> None:
    if (x is None) != (weight is None):
        raise Illegal("mm_weight", weight, "given together with mm_x")
    if x is not None and weight is not None and y is not None:
        write(y, x @ (weight.t() if transpose else weight))
