"""Routing and permutation of tokens for mixtures of experts, against plain calculations from op-plugin's docs."""

from __future__ import annotations

import pytest
import torch
import torch_npu
from tests.vnpu.support import called

from gallium.vnpu.registry import operators

BF16 = torch.bfloat16


def routed(expert_idx: torch.Tensor, start: int, end: int) -> list[tuple[int, int]]:
    """(expert, choice) of the choices in range, in the order of the experts."""
    flat = expert_idx.flatten().tolist()
    return sorted((e, i) for i, e in enumerate(flat) if start <= e < end)


@pytest.mark.parametrize("active", [-1, 7])
@pytest.mark.parametrize("limits", [[], [2, 6]])  # torch_npu keeps the first default range of a process for all
@pytest.mark.parametrize(("quant", "scaled"), [(-1, False), (-1, True), (0, True), (1, False), (1, True)])
def test_init_routing(active: int, limits: list[int], quant: int, scaled: bool) -> None:
    tokens, k, experts = 6, 3, 8
    x, ids = torch.randn(tokens, 16), torch.stack([torch.randperm(experts)[:k] for _ in range(tokens)]).int()
    start, end = limits or (0, experts)
    order = routed(ids, start, end)
    kept = order[: active if active > 0 else None]
    scale, offset = None, None
    if quant == -1 and scaled:
        scale = torch.rand(tokens)
    elif quant == 0:
        scale, offset = torch.tensor([3.0]), torch.tensor([2.0])
    elif scaled:
        scale = torch.rand(end - start, 16) + 0.5
    for row_type in (0, 1):
        with called() as names:
            rows, index, counts, scales = torch_npu.npu_moe_init_routing_v2(
                x.npu(), ids.npu(), scale=None if scale is None else scale.npu(),
                offset=None if offset is None else offset.npu(), active_num=active, expert_num=experts,
                expert_tokens_num_type=1, expert_tokens_num_flag=True, quant_mode=quant, active_expert_range=limits,
                row_idx_type=row_type,
            )  # fmt: skip
        assert "MoeInitRoutingV3" in names
        if row_type:
            assert index.tolist()[: len(order)] == [i for _, i in order]
        else:
            places = {i: p for p, (_, i) in enumerate(order)}
            assert index.tolist() == [places.get(i, -1) for i in range(tokens * k)]
    assert counts.tolist() == [sum(e == expert for e, _ in order) for expert in range(start, end)]
    for row, (expert, choice) in enumerate(kept):
        value = x[choice // k]
        if quant == -1:
            assert torch.equal(rows[row].cpu(), value)
            assert scale is None or scales[row].item() == scale[choice // k].item()
        elif quant == 0:
            assert torch.equal(rows[row].cpu(), (value.half() * 3 + 2).round().clamp(-128, 127).to(torch.int8))
        else:
            value = value if scale is None else value * scale[expert - start]
            step = value.abs().max() / 127
            torch.testing.assert_close(scales[row].cpu(), step)
            assert (rows[row].cpu().float() - value / step).abs().max() <= 0.5001


@pytest.mark.parametrize("kind", [0, 1, 2])
def test_counts_of_init_routing(kind: int) -> None:
    ids = torch.tensor([[1, 5], [5, 3], [3, 5]], dtype=torch.int32)
    _, _, counts, _ = torch_npu.npu_moe_init_routing_v2(
        torch.randn(3, 4).npu(), ids.npu(), expert_num=6, expert_tokens_num_type=kind, expert_tokens_num_flag=True,
        active_expert_range=[2, 6],
    )  # fmt: skip
    if kind == 2:
        assert counts[:2].tolist() == [[3, 2], [5, 3]]
    else:
        assert counts.tolist() == ([0, 2, 2, 5] if kind == 0 else [0, 2, 0, 3])


@pytest.mark.parametrize("quant", [-1, 1])
def test_init_routing_with_capacity(quant: int) -> None:
    tokens, k, experts, capacity = 6, 2, 4, 2
    x, ids = torch.randn(tokens, 8), torch.stack([torch.randperm(experts)[:k] for _ in range(tokens)]).int()
    rows, index, counts, scales = torch_npu.npu_moe_init_routing_v2(
        x.npu(), ids.npu(), expert_num=experts, expert_capacity=capacity, drop_pad_mode=1, quant_mode=quant,
        expert_tokens_num_type=1, expert_tokens_num_flag=True, active_expert_range=[0, experts],
    )  # fmt: skip
    expected, places = torch.zeros(experts, capacity, 8), [-1] * (tokens * k)
    taken = [0] * experts
    for expert, choice in routed(ids, 0, experts):
        if taken[expert] < capacity:
            expected[expert, taken[expert]] = x[choice // k]
            places[choice] = expert * capacity + taken[expert]
        taken[expert] += 1
    assert index.tolist() == places
    assert counts.tolist() == taken
    if quant == -1:
        assert torch.equal(rows.cpu(), expected)
    else:
        step = expected.abs().amax(-1).flatten() / 127
        torch.testing.assert_close(scales.cpu(), step)
        assert (rows.cpu().float() * step.view(experts, capacity, 1) - expected).abs().max() <= step.max() / 2 + 1e-6


def test_older_forms_of_init_routing() -> None:
    x, ids = torch.randn(5, 8), torch.stack([torch.randperm(6)[:2] for _ in range(5)]).int()
    numbers = torch.arange(10, dtype=torch.int32).view(2, 5).t().contiguous()
    with called() as names:
        rows, index, sorted_experts = torch_npu.npu_moe_init_routing(x.npu(), numbers.npu(), ids.npu(), 3)
        quantised = torch_npu.npu_moe_init_routing_quant(
            x.npu(), ids.npu(), active_num=0, expert_num=6, expert_tokens_num_mode=2
        )
    assert {"MoeInitRouting", "MoeInitRoutingQuantV2"} <= names
    order = sorted((int(ids.flatten()[i]), i) for i in range(10))
    assert sorted_experts.tolist() == [e for e, _ in order]
    places = {int(numbers.flatten()[i]): p for p, (_, i) in enumerate(order)}
    assert index.tolist() == [places[i] for i in range(10)]
    assert torch.equal(rows.cpu(), torch.stack([x[int(numbers.flatten()[i]) % 5] for _, i in order[:6]]))
    assert quantised[2].tolist() == torch.bincount(ids.flatten(), minlength=6).tolist()
    torch.testing.assert_close(quantised[4].cpu(), torch.stack([x[i // 2].abs().max() / 127 for _, i in order]))

    body = operators()["MoeInitRoutingV2"].body  # what 310P calls
    out, where = torch.empty(10, 8), torch.empty(10, dtype=torch.int32)
    sums, before = torch.empty(6, dtype=torch.int32), torch.empty(6, dtype=torch.int32)
    body(x, ids, -1, 0, 6, 0, 1, False, out, where, sums, before)
    assert torch.equal(out, torch.stack([x[i // 2] for _, i in order]))
    assert sums.tolist() == torch.bincount(ids.flatten(), minlength=6).cumsum(0).tolist()


@pytest.mark.parametrize("limits", [[0, 8], [2, 6]])
def test_init_routing_to_int4(limits: list[int]) -> None:
    x, ids = torch.randn(6, 16).to(BF16), torch.stack([torch.randperm(8)[:3] for _ in range(6)]).int()
    smooth = torch.rand(1, 16) + 0.5
    rows, _, _, scales = torch_npu.npu_moe_init_routing_v2(
        x.npu(), ids.npu(), scale=smooth.npu(), expert_num=8, quant_mode=13, active_expert_range=limits
    )
    for row, (_, choice) in enumerate(routed(ids, *limits)):
        wide = x[choice // 3].float() * smooth[0]
        step = wide.abs().max() / 7
        torch.testing.assert_close(scales[row].cpu(), step)
        packed = rows[row].cpu().int()
        values = torch.stack((packed & 15, packed >> 4), 1).flatten()
        assert ((values + 8) % 16 - 8 - wide / step).abs().max() <= 0.5001


def test_init_routing_refuses() -> None:
    x, ids = torch.randn(3, 4).npu(), torch.zeros(3, 1, dtype=torch.int32).npu()
    for words, arguments in (
        ("quant_mode", {"quant_mode": 6}),
        ("active_expert_range", {"active_expert_range": [0, 9]}),
        ("expert_capacity", {"drop_pad_mode": 1, "expert_capacity": 0}),
        ("scale and offset", {"quant_mode": 0}),
        ("row_idx_type", {"row_idx_type": 2}),
        ("offset", {"offset": torch.ones(1).npu()}),
    ):
        with pytest.raises(RuntimeError, match=words):
            torch_npu.npu_moe_init_routing_v2(x, ids, expert_num=4, **arguments)


@pytest.mark.parametrize("dtype", [torch.float32, BF16])
@pytest.mark.parametrize("mode", [0, 1, 2, 3])
@pytest.mark.parametrize("plain", [False, True])
def test_finalize_routing(dtype: torch.dtype, mode: int, plain: bool) -> None:
    tokens, k, experts, capacity, hidden = 5, 2, 4, 4, 6
    count = experts * capacity if mode in (1, 3) else tokens * k
    rows = torch.randn(count, hidden).to(dtype)
    index = torch.randperm(count)[: tokens * k].int()
    if mode in (1, 3):
        index[3] = -1
        rows = rows.view(experts, capacity, hidden)
    scales = torch.rand(tokens, k).to(dtype)
    skip1, skip2 = torch.randn(tokens, hidden).to(dtype), torch.randn(tokens, hidden).to(dtype)
    bias, owner = torch.randn(experts, hidden).to(dtype), torch.randint(0, experts, (tokens, k), dtype=torch.int32)
    optional = [None] * 3 if plain else [skip1.npu(), skip2.npu(), bias.npu()]
    with called() as names:
        result = torch_npu.npu_moe_finalize_routing(rows.npu(), *optional, scales.npu(), index.npu(), owner.npu(), mode)
    assert "MoeFinalizeRoutingV4" in names
    flat = rows.view(-1, hidden).double()
    expected = torch.zeros(tokens, hidden, dtype=torch.float64) if plain else skip1.double() + skip2.double()
    for t in range(tokens):
        for c in range(k):
            place = int(index[t * k + c] if mode >= 2 else index[c * tokens + t])
            row = flat[place] if place >= 0 else torch.zeros(hidden, dtype=torch.float64)
            expected[t] += scales[t, c].double() * (row + (0 if plain else bias[owner[t, c]].double()))
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(result.cpu().double(), expected, rtol=tolerance, atol=tolerance)
    given = [None if o is None else o.cpu() for o in optional]
    for name, arguments in (
        ("MoeFinalizeRoutingV2", (rows, index, *given, scales, owner, mode)),
        ("MoeFinalizeRouting", (rows, *given, scales, index, owner)),
    ):
        if name == "MoeFinalizeRoutingV2" or mode == 0:
            out = torch.empty(tokens, hidden, dtype=dtype)
            operators()[name].body(*arguments, out)
            assert torch.equal(out, result.cpu())


def test_finalize_routing_without_scales_adds_k_rows() -> None:
    rows, index = torch.randn(6, 4), torch.randperm(6).int()
    result = torch_npu.npu_moe_finalize_routing(
        rows.npu(), None, None, None, None, index.npu(), None, drop_pad_mode=2, k=2
    )
    torch.testing.assert_close(result.cpu(), rows[index.view(3, 2).long()].sum(1))
    with pytest.raises(RuntimeError, match="skip2"):
        skip = torch.zeros(6, 4).npu()
        torch_npu.npu_moe_finalize_routing(rows.npu(), None, skip, None, None, index.npu(), None)
    with pytest.raises(RuntimeError, match="expanded_src_to_dst_row"):
        torch_npu.npu_moe_finalize_routing(rows.npu(), None, None, None, None, index.npu() + 1, None)


def test_re_routing() -> None:
    counts = torch.tensor([[1, 2, 3], [2, 1, 1]])
    tokens, scales = torch.randn(10, 4).half(), torch.rand(10)
    with called() as names:
        rows, row_scales, index, per_expert = torch_npu.npu_moe_re_routing(
            tokens.npu(), counts.npu(), per_token_scales=scales.npu()
        )
    assert "MoeReRouting" in names
    order = [0, 6, 7, 1, 2, 8, 3, 4, 5, 9]
    assert index.tolist() == order
    assert torch.equal(rows.cpu(), tokens[order])
    assert torch.equal(row_scales.cpu(), scales[order])
    assert per_expert.tolist() == [3, 3, 4]
    for words, arguments in (("expert_token_num_type", {"expert_token_num_type": 0}), ("idx_type", {"idx_type": 1})):
        with pytest.raises(RuntimeError, match=words):
            torch_npu.npu_moe_re_routing(tokens.npu(), counts.npu(), **arguments)


def test_compute_expert_tokens() -> None:
    experts = torch.randint(0, 9, (50,)).sort().values.int()
    with called() as names:
        ends = torch_npu.npu_moe_compute_expert_tokens(experts.npu(), 9)
    assert "MoeComputeExpertTokens" in names
    assert ends.tolist() == [int((experts <= e).sum()) for e in range(9)]


def test_update_expert_needs_a_910_93() -> None:
    ids = torch.tensor([[0, 1], [1, 2], [2, 0]], dtype=torch.int32)
    table = torch.tensor([[1, 4, 0], [2, 5, 6], [2, 7, 8]], dtype=torch.int32)
    with pytest.raises(RuntimeError, match="910_93"):
        torch_npu.npu_moe_update_expert(ids.npu(), table.npu(), local_rank_id=1, world_size=2)


@pytest.mark.parametrize("dtype", [torch.float32, BF16])
@pytest.mark.parametrize("kept", [None, 7])
def test_permute_and_unpermute(dtype: torch.dtype, kept: int | None) -> None:
    tokens, k = 5, 2
    x = torch.randn(tokens, 8).to(dtype)
    indices = torch.stack([torch.randperm(6)[:k] for _ in range(tokens)])
    probs = torch.rand(tokens, k)
    order = indices.flatten().argsort(stable=True)
    ours, theirs = x.npu().requires_grad_(), x.double().requires_grad_()
    weights, their_weights = probs.npu().requires_grad_(), probs.double().requires_grad_()
    with called() as names:
        permuted, places = torch_npu.npu_moe_token_permute(ours, indices.npu(), kept)
        result = torch_npu.npu_moe_token_unpermute(permuted, places, weights)
        result.backward(torch.ones_like(result))
    assert {"MoeTokenPermute", "MoeTokenUnpermute", "MoeTokenPermuteGrad", "MoeTokenUnpermuteGrad"} <= names
    assert places.tolist() == order.argsort().tolist()
    assert torch.equal(permuted.cpu(), x[order[:kept] // k])
    present = (order.argsort() < (kept or tokens * k)).view(tokens, k)
    expected = theirs * (their_weights * present).sum(1, keepdim=True)
    expected.backward(torch.ones_like(expected))
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(result.cpu().double(), expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(ours.grad.cpu().double(), theirs.grad, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(weights.grad.cpu().double(), their_weights.grad, rtol=tolerance, atol=5 * tolerance)


def test_permute_without_probabilities() -> None:
    x, indices = torch.randn(5, 8), torch.randint(0, 3, (5,))
    permuted, places = torch_npu.npu_moe_token_permute(x.npu(), indices.npu())
    assert torch.equal(torch_npu.npu_moe_token_unpermute(permuted, places).cpu(), x)
    with pytest.raises(RuntimeError, match="padded_mode"):
        torch_npu.npu_moe_token_permute(x.npu(), indices.npu(), padded_mode=True)


@pytest.mark.parametrize("pad", [False, True])
@pytest.mark.parametrize("with_probs", [False, True])
def test_routing_map(pad: bool, with_probs: bool) -> None:
    tokens, experts, k, hidden = 6, 4, 2, 8
    x = torch.randn(tokens, hidden)
    table = torch.zeros(tokens, experts, dtype=torch.bool)
    for row in table:
        row[torch.randperm(experts)[:k]] = True
    probs = torch.rand(tokens, experts)
    capacity = 2
    ours, theirs = x.npu().requires_grad_(), x.double().requires_grad_()
    p_ours = probs.npu().requires_grad_() if with_probs else None
    p_theirs = probs.double().requires_grad_() if with_probs else None
    with called() as names:
        rows, row_probs, index = torch_npu.npu_moe_token_permute_with_routing_map(
            ours, table.npu(), probs=p_ours, num_out_tokens=experts * capacity if pad else tokens * k, drop_and_pad=pad
        )
        total = (rows * (1.0 if row_probs is None else row_probs.unsqueeze(-1))).sum()
        total.backward()
    assert {"MoeTokenPermuteWithRoutingMap", "MoeTokenPermuteWithRoutingMapGrad"} <= names
    source = []
    for expert in range(experts):
        own = [t for t in range(tokens) if table[t, expert]]
        rest = [t for t in range(tokens) if not table[t, expert]]
        source += [(t, expert) for t in ([*own, *rest][:capacity] if pad else own)]
    assert torch.equal(rows.cpu(), x[[t for t, _ in source]])
    by_token = sorted(range(len(source)), key=lambda i: source[i][0])
    assert index.tolist() == ([t for t, _ in source] if pad else by_token)
    parts = [theirs[t] * (1 if p_theirs is None else p_theirs[t, e]) for t, e in source]
    torch.stack(parts).sum().backward()
    torch.testing.assert_close(ours.grad.cpu().double(), theirs.grad, rtol=1e-5, atol=1e-5)
    if p_ours is not None and p_theirs is not None:
        torch.testing.assert_close(p_ours.grad.cpu().double(), p_theirs.grad, rtol=1e-5, atol=1e-5)

    ours, theirs = rows.detach().requires_grad_(), rows.detach().cpu().double().requires_grad_()
    p_ours = probs.npu().requires_grad_() if with_probs else None
    p_theirs = probs.double().requires_grad_() if with_probs else None
    with called() as names:
        back = torch_npu.npu_moe_token_unpermute_with_routing_map(
            ours, index, [tokens, hidden], probs=p_ours, routing_map=table.npu(), drop_and_pad=pad
        )
        (back * back).sum().backward()
    assert {"MoeTokenUnpermuteWithRoutingMap", "MoeTokenUnpermuteWithRoutingMapGrad"} <= names
    sums = [torch.zeros(hidden, dtype=torch.float64) for _ in range(tokens)]
    for row, (t, e) in enumerate(source):
        sums[t] = sums[t] + theirs[row] * (1 if p_theirs is None else p_theirs[t, e])
    expected = torch.stack(sums)
    (expected * expected).sum().backward()
    torch.testing.assert_close(back.detach().cpu().double(), expected.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.grad.cpu().double(), theirs.grad, rtol=1e-5, atol=1e-5)
    if p_ours is not None and p_theirs is not None:
        torch.testing.assert_close(p_ours.grad.cpu().double(), p_theirs.grad, rtol=1e-5, atol=1e-5)
