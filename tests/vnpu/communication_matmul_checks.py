"""Checks of matrix products joined with collectives, run by communication_checks.py."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch_npu
from tests.vnpu.communication_ranks import BF16, RANKS, check, close, floats, hcom, ints, rank, refused
from tests.vnpu.support import called

from gallium.vnpu.ops import all_to_all_matmul


@check
def matmul_all_reduce() -> None:
    xs, ws = [floats(3, 8, of=r) for r in range(RANKS)], [floats(8, 4, of=10 + r) for r in range(RANKS)]
    more = [floats(3, 4, of=20 + r) for r in range(RANKS)]
    bias = floats(4, of=-1)
    total = sum(x.double() @ w.double() for x, w in zip(xs, ws, strict=True))
    x, w = xs[rank()].npu(), ws[rank()].npu()
    for arguments, expected, name in (
        ({}, total, "MatmulAllReduce"),
        ({"bias": bias.npu()}, total + RANKS * bias.double(), "MatmulAllReduce"),
        ({"x3": more[rank()].npu()}, total + sum(m.double() for m in more), "MatmulAllReduceV2"),
        ({"comm_mode": "aiv"}, total, "MatmulAllReduceV3"),
    ):
        with called() as names:
            result = torch_npu.npu_mm_all_reduce_base(x, w, hcom(), **arguments)
        assert name in names, names
        close(result, expected)
    refused("reduce_op", lambda: torch_npu.npu_mm_all_reduce_base(x, w, hcom(), reduce_op="max"))
    refused("comm_turn", lambda: torch_npu.npu_mm_all_reduce_base(x, w, hcom(), comm_turn=1))
    refused("the name of a communicator", lambda: torch_npu.npu_mm_all_reduce_base(x, w, "nobody"))


@check
def quantised_all_reduce() -> None:
    xs, ws = [ints(3, 40, of=r) for r in range(RANKS)], [ints(40, 4, of=10 + r) for r in range(RANKS)]
    scale = torch.rand(4, generator=torch.Generator().manual_seed(0)).to(BF16) / 100
    rows = [torch.rand(3, generator=torch.Generator().manual_seed(r)) for r in range(RANKS)]
    products = [x.double() @ w.double() * scale.double() for x, w in zip(xs, ws, strict=True)]
    x, w = xs[rank()].npu(), ws[rank()].npu()
    reduce = torch_npu.npu_mm_all_reduce_base
    with called() as names:
        result = reduce(x, w, hcom(), dequant_scale=scale.npu())
        by_row = reduce(x, w, hcom(), dequant_scale=scale.npu(), pertoken_scale=rows[rank()].npu())
        chosen = reduce(x, w, hcom(), dequant_scale=scale.npu(), comm_mode="aiv")
    assert {"QuantMatmulAllReduce", "QuantMatmulAllReduceV2", "QuantMatmulAllReduceV5"} <= names
    close(result, sum(products))
    close(chosen, sum(products))
    close(by_row, sum(p * r[:, None] for p, r in zip(products, rows, strict=True)))
    packed = torch_npu.npu_trans_quant_param(scale.float().npu())
    close(reduce(x, w, hcom(), dequant_scale=packed), sum(products))
    comm = torch.ones(4, dtype=BF16).npu()
    refused(
        "comm_quant_scale_1",
        lambda: reduce(x, w, hcom(), dequant_scale=scale.npu(), comm_quant_scale_1=comm, comm_quant_scale_2=comm),
    )


@check
def weight_quantised_all_reduce() -> None:
    xs, ws = [floats(3, 64, of=r) for r in range(RANKS)], [ints(64, 4, of=10 + r) for r in range(RANKS)]
    for scale, size in ((torch.rand(1, 4).to(BF16) / 50, 0), (torch.rand(2, 4).to(BF16) / 50, 32)):
        dist.broadcast(shared := scale.npu(), 0)
        scale = shared.cpu()
        wide = scale.repeat_interleave(size, 0) if size else scale
        expected = sum(x.double() @ ((w.double() + 3) * wide.double()) for x, w in zip(xs, ws, strict=True))
        for mode, name in (({}, "WeightQuantMatmulAllReduce"), ({"comm_mode": "aiv"}, "WeightQuantMatmulAllReduceV2")):
            with called() as names:
                result = torch_npu.npu_mm_all_reduce_base(
                    xs[rank()].npu(), ws[rank()].npu(), hcom(), antiquant_scale=scale.npu(),
                    antiquant_offset=torch.full_like(scale, 3).npu(), antiquant_group_size=size, **mode,
                )  # fmt: skip
            assert name in names, names
            torch.testing.assert_close(result.cpu().double(), expected, rtol=2e-2, atol=5e-2)


@check
def all_gather_matmul() -> None:
    xs, w = [floats(3, 256, of=r) for r in range(RANKS)], floats(256, 4, of=9)
    with called() as names:
        result, gathered = torch_npu.npu_all_gather_base_mm(xs[rank()].npu(), w.npu(), hcom(), RANKS)
        aiv, _ = torch_npu.npu_all_gather_base_mm(xs[rank()].npu(), w.npu(), hcom(), RANKS, comm_mode="aiv")
    assert {"AllGatherMatmul", "AllGatherMatmulV2"} <= names
    assert torch.equal(gathered.cpu(), torch.cat(xs))
    close(result, torch.cat(xs).double() @ w.double())
    close(aiv, torch.cat(xs).double() @ w.double())
    whole, ws = [ints(3, 256, of=r) for r in range(RANKS)], ints(256, 4, of=9)
    rows, columns = torch.rand(3, 1) / 100, torch.linspace(0.1, 0.4, 4).view(1, 4)
    dist.broadcast(common := rows.npu(), 0)
    result, _ = torch_npu.npu_all_gather_base_mm(
        whole[rank()].npu(), ws.npu(), hcom(), RANKS, x1_scale=common * (rank() + 1), x2_scale=columns.npu(),
        comm_mode="aiv",
    )  # fmt: skip
    scales = torch.cat([common.cpu() * (r + 1) for r in range(RANKS)])
    close(result, torch.cat(whole).double() @ ws.double() * scales * columns)
    short = floats(3, 16, of=0).npu()
    refused("inner dimension", lambda: torch_npu.npu_all_gather_base_mm(short, w[:16].npu(), hcom(), RANKS))


@check
def matmul_reduce_scatter() -> None:
    xs, ws = [floats(4, 256, of=r) for r in range(RANKS)], [floats(256, 4, of=10 + r) for r in range(RANKS)]
    total = sum(x.double() @ w.double() for x, w in zip(xs, ws, strict=True)).chunk(RANKS)[rank()]
    with called() as names:
        result = torch_npu.npu_mm_reduce_scatter_base(xs[rank()].npu(), ws[rank()].npu(), hcom(), RANKS)
        aiv = torch_npu.npu_mm_reduce_scatter_base(xs[rank()].npu(), ws[rank()].npu(), hcom(), RANKS, comm_mode="aiv")
    assert {"MatmulReduceScatter", "MatmulReduceScatterV2"} <= names
    torch.testing.assert_close(result.cpu().double(), total, rtol=1e-2, atol=0.1)
    torch.testing.assert_close(aiv.cpu().double(), total, rtol=1e-2, atol=0.1)


@check
def exchanges_and_products() -> None:
    xs, w, bias = [floats(4, 6, of=r) for r in range(RANKS)], floats(12, 5, of=9), floats(5, of=8, dtype=torch.float32)
    with called() as names:
        result, joined = torch_npu.npu_all_to_all_matmul(xs[rank()].npu(), w.npu(), hcom(), RANKS, bias=bias.npu())
    assert "AlltoAllMatmul" in {name.removesuffix("V2") for name in names}, names
    mine = torch.cat([x.chunk(RANKS)[rank()] for x in xs], 1)
    assert torch.equal(joined.cpu(), mine)
    close(result, mine.double() @ w.double() + bias.double())
    w = floats(6, 8, of=9)
    with called() as names:
        result = torch_npu.npu_matmul_all_to_all(xs[rank()].npu(), w.npu(), hcom(), RANKS)
    assert "MatmulAlltoAll" in {name.removesuffix("V2") for name in names}, names
    close(result, torch.cat([(x.double() @ w.double()).chunk(RANKS, 1)[rank()] for x in xs]))


@check
def tokens_to_experts_and_back() -> None:
    all_to_all_matmul.EXPERT_RANKS = (RANKS, *all_to_all_matmul.EXPERT_RANKS)  # the chip starts at 8
    experts, hidden = 2, 6
    sends = [[1, 2, 3, 0], [2, 0, 1, 4]]  # by rank: its tokens for (rank 0: expert 0, 1), (rank 1: expert 0, 1)
    receives = [[s[r * experts + e] for s in sends for e in range(experts)] for r in range(RANKS)]
    xs = [floats(sum(s), hidden, of=r) for r, s in enumerate(sends)]
    weight = floats(experts, hidden, 3, of=30 + rank())
    parts = [x.split(s) for x, s in zip(xs, sends, strict=True)]
    by_expert = [torch.cat([parts[r][rank() * experts + e] for r in range(RANKS)]) for e in range(experts)]
    with called() as names:
        result, _, permuted = torch_npu.npu_alltoallv_gmm(
            xs[rank()].npu(), weight.npu(), hcom(), RANKS, sends[rank()], receives[rank()], permute_out_flag=True
        )
    assert "AlltoAllvGroupedMatMul" in {name.removesuffix("V2") for name in names}, names
    assert torch.equal(permuted.cpu(), torch.cat(by_expert))
    expected = torch.cat([x.double() @ w.double() for x, w in zip(by_expert, weight, strict=True)])
    close(result, expected)

    weights = [floats(experts, hidden, 3, of=30 + r) for r in range(RANKS)]
    by_expert_then_rank = [receives[rank()][r * experts + e] for e in range(experts) for r in range(RANKS)]
    shared = floats(2, 5, of=40), floats(5, 4, of=41)
    with called() as names:
        result, extra = torch_npu.npu_gmm_alltoallv(
            torch.cat(by_expert).npu(), weight.npu(), hcom(), RANKS, by_expert_then_rank, sends[rank()],
            mm_x=shared[0].npu(), mm_weight=shared[1].npu(),
        )  # fmt: skip
    assert "GroupedMatMulAlltoAllv" in {name.removesuffix("V2") for name in names}, names
    own = parts[rank()]
    close(result, torch.cat([own[i].double() @ weights[i // experts][i % experts].double() for i in range(len(own))]))
    close(extra, shared[0].double() @ shared[1].double())
    refused(
        "send_counts",
        lambda: torch_npu.npu_gmm_alltoallv(
            torch.cat(by_expert).npu(), weight.npu(), hcom(), RANKS, [sum(receives[rank()]), 0, 0, 0], sends[rank()]
        ),
    )
