"""Checks of tokens sent to experts on other ranks and back, run by communication_checks.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch_npu
from tests.vnpu.communication_ranks import RANKS, check, close, floats, hcom, rank, refused
from tests.vnpu.support import called

from gallium.vnpu.registry import operators

HIDDEN, EXPERTS, TOP_K, TOKENS = 1024, 4, 2, 5


def choices(of: int, experts: int = EXPERTS) -> torch.Tensor:
    generator = torch.Generator().manual_seed(70 + of)
    return torch.stack([torch.randperm(experts, generator=generator)[:TOP_K] for _ in range(TOKENS)]).int()


def expected_rows(shared_ranks: int, masks: list[torch.Tensor]) -> tuple[list[torch.Tensor], list[int]]:
    """For each expert of this rank its tokens, by source rank; and the numbers by (expert, source)."""
    xs, ids = [floats(TOKENS, HIDDEN, of=r) for r in range(RANKS)], [choices(r) for r in range(RANKS)]
    if rank() < shared_ranks:
        rows = [x[m] for r, (x, m) in enumerate(zip(xs, masks, strict=True)) if r % shared_ranks == rank()]
        return [torch.cat(rows)], [int(m.sum()) for m in masks]
    local = EXPERTS // (RANKS - shared_ranks)
    first = (rank() - shared_ranks) * local
    groups, counts = [], []
    for expert in range(first, first + local):
        parts = [x[m & (i == expert).any(1)] for x, i, m in zip(xs, ids, masks, strict=True)]
        groups.append(torch.cat(parts))
        counts += [len(part) for part in parts]
    return groups, counts


def dispatch_arguments(shared_ranks: int = 0) -> dict[str, Any]:
    return {
        "group_ep": hcom(), "ep_world_size": RANKS, "ep_rank_id": rank(), "moe_expert_num": EXPERTS,
        "shared_expert_rank_num": shared_ranks,
    }  # fmt: skip


@check
def dispatch_and_combine() -> None:
    everyone = [torch.ones(TOKENS, dtype=torch.bool) for _ in range(RANKS)]
    some = [torch.arange(TOKENS) < 3 + r for r in range(RANKS)]
    for shared_ranks, masks in ((0, everyone), (0, some), (1, everyone)):
        groups, counts = expected_rows(shared_ranks, masks)
        x, ids = floats(TOKENS, HIDDEN, of=rank()), choices(rank())
        mask = None if masks is everyone else masks[rank()].npu()
        with called() as names:
            rows, _, assist, per_expert, received, *_ = torch_npu.npu_moe_distribute_dispatch_v2(
                x.npu(), ids.npu(), x_active_mask=mask, **dispatch_arguments(shared_ranks)
            )
        assert any(name.startswith("MoeDistributeDispatchV") for name in names), names
        assert torch.equal(rows.cpu()[: sum(counts)], torch.cat(groups))
        assert per_expert.tolist() == [len(group) for group in groups]
        assert received.tolist() == torch.tensor(counts).cumsum(0).tolist()
        weights = torch.rand(TOKENS, TOP_K, generator=torch.Generator().manual_seed(rank()))
        done = rows.clone()  # the experts: this rank's rows times the number of the rank + 1
        done[: sum(counts)] *= rank() + 1
        with called() as names:
            result = torch_npu.npu_moe_distribute_combine_v2(
                done, ids.npu(), assist, received, weights.npu(), x_active_mask=mask,
                **dispatch_arguments(shared_ranks),
            )  # fmt: skip
        assert any(name.startswith("MoeDistributeCombineV") for name in names), names
        owner = shared_ranks + ids // (EXPERTS // (RANKS - shared_ranks))
        factor = (weights * (owner + 1)).sum(1, keepdim=True) + (1 if shared_ranks else 0)
        torch.testing.assert_close(
            result.cpu().float(), x.float() * factor * masks[rank()].unsqueeze(1), rtol=2e-2, atol=2e-2
        )


@check
def quantised_dispatch() -> None:
    x, ids = floats(TOKENS, HIDDEN, of=rank()), choices(rank())
    scales = torch.rand(EXPERTS, HIDDEN, generator=torch.Generator().manual_seed(3)) + 0.5
    everyone = [torch.ones(TOKENS, dtype=torch.bool)] * RANKS
    groups, counts = expected_rows(0, everyone)
    for table in (None, scales):
        rows, row_scales, *_ = torch_npu.npu_moe_distribute_dispatch_v2(
            x.npu(), ids.npu(), scales=None if table is None else table.npu(), quant_mode=2,
            expert_token_nums_type=0, **dispatch_arguments(),
        )  # fmt: skip
        start = 0
        for number, group in enumerate(groups):
            wide = group.double() * (1 if table is None else table[rank() * len(groups) + number].double())
            scale = wide.abs().amax(1) / 127
            part = slice(start, start + len(group))
            torch.testing.assert_close(row_scales.cpu()[part].double(), scale, rtol=1e-5, atol=0)
            difference = rows.cpu()[part].double() - (wide / scale.unsqueeze(1)).round()
            assert rows.dtype == torch.int8 and difference.abs().max() <= 1
            assert (difference != 0).double().mean() < 1e-3
            start += len(group)
    assert start == sum(counts)


@check
def first_version_of_dispatch() -> None:
    x, ids = floats(TOKENS, HIDDEN, of=rank()), choices(rank())
    with called() as names:
        rows, _, index, _, received, tp, _ = torch_npu.npu_moe_distribute_dispatch(
            x.npu(), ids.npu(), **dispatch_arguments()
        )
        weights = torch.ones(TOKENS, TOP_K)
        result = torch_npu.npu_moe_distribute_combine(
            rows, ids.npu(), index, received, weights.npu(), tp_send_counts=tp, **dispatch_arguments()
        )
    assert {"MoeDistributeDispatch", "MoeDistributeCombine"} <= names, names
    flat = ids.flatten().tolist()
    assert index.tolist() == [flat[:i].count(expert) for i, expert in enumerate(flat)]
    close(result, x.double() * TOP_K)


@check
def older_forms() -> None:
    """Called directly: this torch_npu calls the newest of them that it finds."""
    x, ids, weights = floats(TOKENS, HIDDEN, of=rank()), choices(rank()), torch.rand(TOKENS, TOP_K)
    tail = (hcom(), RANKS, rank(), EXPERTS, "", 0, 0, 0, 1, 0)
    for version, reserved, special in (("V2", (), ()), ("V3", (None,), (0, 0, 0))):
        rows, scales = torch.zeros(TOKENS * RANKS * 2, HIDDEN, dtype=x.dtype), torch.zeros(0)
        numbers, counts = torch.zeros(2, dtype=torch.int64), torch.zeros(2 * RANKS, dtype=torch.int32)
        assist = torch.ones(len(rows) * 128, dtype=torch.int32)
        operators()[f"MoeDistributeDispatch{version}"].body(
            x, ids, None, None, None, *reserved, *tail, 0, 0, 1, "", *special, rows, scales, assist, numbers, counts,
            None, None,
        )  # fmt: skip
        assert int(numbers.sum()) == int(counts[-1])
        special_data = (*reserved, None, None, None, None) if special else ()
        out = torch.empty(TOKENS, HIDDEN, dtype=x.dtype)
        operators()[f"MoeDistributeCombine{version}"].body(
            rows, ids, assist, counts, weights, None, None, None, None, None, None, None, *special_data, *tail, 0, 0,
            0, 0, "", *special, out,
        )  # fmt: skip
        close(out, x.double() * weights.sum(1, keepdim=True))
    y, rstd, total = (torch.empty(TOKENS, 1, width, dtype=torch.float32) for width in (HIDDEN, 1, HIDDEN))
    residual, gamma = floats(TOKENS, 1, HIDDEN, of=84), floats(HIDDEN, of=85)
    operators()["MoeDistributeCombineAddRmsNorm"].body(
        rows, ids, assist, counts, weights, residual, gamma, None, None, None, None, None, None, None, *tail, 0, 0, 0,
        0, "", 1e-6, y, rstd, total,
    )  # fmt: skip
    wide = (x.double() * weights.sum(1, keepdim=True)).unsqueeze(1) + residual.double()
    torch.testing.assert_close(total.double(), wide, rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(y, total * rstd * gamma.float())
    operators()["DistributeBarrier"].body(x, hcom(), RANKS)


@check
def experts_without_a_rank() -> None:
    x = floats(TOKENS, HIDDEN, of=rank())
    ids = torch.tensor([[0, 4], [1, 5], [2, 6], [3, 7], [4, 5]], dtype=torch.int32)  # 4 zero, 5 copy, 6 and 7 constant
    more = {"zero_expert_num": 1, "copy_expert_num": 1, "const_expert_num": 2}
    rows, _, assist, _, received, _, _ = torch_npu.npu_moe_distribute_dispatch_v2(
        x.npu(), ids.npu(), **dispatch_arguments(), **more
    )
    alpha_1, alpha_2, v = (floats(2, HIDDEN, of=of) for of in (80, 81, 82))
    weights = torch.rand(TOKENS, TOP_K, generator=torch.Generator().manual_seed(4))
    shared = floats(TOKENS, HIDDEN, of=83)
    residual, gamma = floats(TOKENS, 1, HIDDEN, of=84), floats(HIDDEN, of=85)
    arguments = more | {
        "ori_x": x.npu(), "const_expert_alpha_1": alpha_1.npu(), "const_expert_alpha_2": alpha_2.npu(),
        "const_expert_v": v.npu(), "shared_expert_x": shared.npu(),
    }  # fmt: skip
    given = (rows, ids.npu(), assist, received, weights.npu())
    result = torch_npu.npu_moe_distribute_combine_v2(*given, **dispatch_arguments(), **arguments)
    constant = alpha_1.double()[:, None] * x.double() + alpha_2.double()[:, None] * v.double()[:, None]
    gives = {4: 0 * x.double(), 5: x.double(), 6: constant[0], 7: constant[1]}
    expected = shared.double()
    for k in range(TOP_K):
        for token in range(TOKENS):
            value = gives.get(int(ids[token, k]), x.double())[token]
            expected[token] += weights[token, k] * value
    torch.testing.assert_close(result.cpu().double(), expected, rtol=2e-2, atol=5e-2)
    with called() as names:
        y, rstd, summed = torch_npu.npu_moe_distribute_combine_add_rms_norm(
            *given, residual.npu(), gamma.npu(), **dispatch_arguments(), **arguments
        )
    assert any(name.startswith("MoeDistributeCombineAddRmsNorm") for name in names), names
    wide = expected.unsqueeze(1) + residual.double()
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6)
    torch.testing.assert_close(summed.cpu().double(), wide, rtol=2e-2, atol=5e-2)
    torch.testing.assert_close(rstd.cpu().double(), scale, rtol=1e-2, atol=1e-3)
    torch.testing.assert_close(y.cpu().double(), wide * scale * gamma.double(), rtol=3e-2, atol=5e-2)


@check
def update_expert() -> None:
    """No communication, but of the chips only the 910_93 that these ranks emulate has it."""
    ids = torch.tensor([[0, 1], [1, 2], [2, 0]], dtype=torch.int32)
    table = torch.tensor([[1, 4, 0], [2, 5, 6], [2, 7, 8]], dtype=torch.int32)
    copies = [[4], [5, 6], [7, 8]]
    for mode in (0, 1):
        with called() as names:
            balanced, _ = torch_npu.npu_moe_update_expert(
                ids.npu(), table.npu(), local_rank_id=rank(), world_size=RANKS, balance_mode=mode
            )
        assert "MoeUpdateExpert" in names
        for token, row in enumerate(ids.tolist()):
            for place, expert in enumerate(row):
                own = copies[expert]
                index = rank() // -(-RANKS // len(own)) if mode == 0 else token % len(own)
                assert balanced[token, place].item() == own[index]
    scales, threshold = torch.tensor([[0.6, 0.3], [0.5, 0.1], [0.9, 0.8]]), torch.tensor([0.1, 0.4])
    active = torch.tensor([True, True, False])
    _, kept = torch_npu.npu_moe_update_expert(
        ids.npu(), table.npu(), expert_scales=scales.npu(), pruning_threshold=threshold.npu(),
        active_mask=active.npu(), local_rank_id=0, world_size=RANKS,
    )  # fmt: skip
    assert kept.tolist() == [[True, False], [True, False], [False, False]]


@check
def refusals_of_dispatch() -> None:
    x, ids = floats(TOKENS, HIDDEN, of=0).npu(), choices(0).npu()

    def dispatch(**other: Any) -> Callable[[], Any]:
        return lambda: torch_npu.npu_moe_distribute_dispatch_v2(x, ids, **(dispatch_arguments() | other))

    refused("ep_world_size", dispatch(ep_world_size=800, moe_expert_num=800))
    refused("the rank", dispatch(ep_rank_id=1 - rank()))
    refused("quant_mode", dispatch(quant_mode=1))
    refused("comm_alg", dispatch(comm_alg="ring"))
    refused("tp_world_size", dispatch(tp_world_size=2))
    refused("global_bs", dispatch(global_bs=4))
    refused("moe_expert_num", dispatch(moe_expert_num=5))
    small = floats(TOKENS, 512, of=0).npu()
    refused("hidden size", lambda: torch_npu.npu_moe_distribute_dispatch_v2(small, ids, **dispatch_arguments()))


@check
def barrier() -> None:
    x = torch.ones(3).npu()
    with called() as names:
        assert torch_npu._npu_distribute_barrier(x, hcom(), RANKS).tolist() == [1, 1, 1]
    assert {name.removesuffix("V2") for name in names} >= {"DistributeBarrier"}, names
    refused("world size", lambda: torch_npu._npu_distribute_barrier(x, hcom(), 3))
