"""Which experts a router chooses, against plain calculations from op-plugin's docs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch_npu
from tests.vnpu.support import called

BF16 = torch.bfloat16


def gated(
    x: torch.Tensor, k: int, bias: torch.Tensor | None, k_group: int, groups: int, mode: int, norm: int, factor: float,
    eps: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    """The docs' calculation of npu_moe_gating_top_k, row by row."""
    scores = (1 / (1 + (-x.double()).exp()) if norm else x.double().softmax(-1)).float().numpy()
    ranked = scores + (0 if bias is None else bias.float().numpy())
    weights, chosen = [], []
    for row, score in zip(ranked, scores, strict=True):
        if groups > 1:
            parts = row.reshape(groups, -1)
            worth = [max(p) if mode == 0 else sum(sorted(p)[-2:]) for p in parts]
            best = sorted(range(groups), key=lambda g: -worth[g])[:k_group]
            row = np.concatenate([p if g in best else np.full_like(p, -np.inf) for g, p in enumerate(parts)])
        index = sorted(range(len(row)), key=lambda e: -row[e])[:k]
        weight = score[index]
        weights.append((weight / (weight.sum() + eps) if norm else weight) * factor)
        chosen.append(index)
    return np.array(weights), np.array(chosen), scores


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, BF16])
@pytest.mark.parametrize(
    ("k", "biased", "k_group", "groups", "mode", "norm", "factor"),
    [
        (6, True, 4, 8, 1, 1, 2.5),
        (6, True, 4, 8, 0, 1, 1.0),
        (4, False, 1, 1, 0, 0, 1.0),
        (8, False, 2, 4, 1, 0, 0.5),
        (2, True, 1, 1, 0, 1, 1.5),
    ],
)
def test_gating(
    dtype: torch.dtype, k: int, biased: bool, k_group: int, groups: int, mode: int, norm: int, factor: float
) -> None:
    x, bias = torch.randn(7, 64).to(dtype), torch.randn(64).to(dtype) if biased else None
    with called() as names:
        y, index, out = torch_npu.npu_moe_gating_top_k(
            x.npu(), k, bias=None if bias is None else bias.npu(), k_group=k_group, group_count=groups,
            group_select_mode=mode, norm_type=norm, out_flag=True, routed_scaling_factor=factor,
        )  # fmt: skip
    assert "MoeGatingTopK" in names
    weights, chosen, scores = gated(x, k, bias, k_group, groups, mode, norm, factor, 1e-20)
    assert (index.cpu().numpy() == chosen).all()
    torch.testing.assert_close(y.cpu().float(), torch.tensor(weights).float(), rtol=1e-2, atol=1e-3)
    torch.testing.assert_close(out.cpu(), torch.tensor(scores))


def test_equal_scores_go_to_the_lower_experts() -> None:
    x = torch.zeros(2, 64)
    _, index, _ = torch_npu.npu_moe_gating_top_k(x.npu(), 4, k_group=2, group_count=4, norm_type=1)
    assert index.tolist() == [[0, 1, 2, 3]] * 2
    _, index, _ = torch_npu.npu_moe_gating_top_k_softmax(x.npu(), None, 3)
    assert index.tolist() == [[0, 1, 2]] * 2


def test_gating_by_table() -> None:
    x, ids, table = torch.randn(5, 16), torch.tensor([3, 0, 1, 3, 2]), torch.randint(0, 16, (4, 2), dtype=torch.int32)
    with called() as names:
        y, index, _ = torch_npu.npu_moe_gating_top_k(
            x.npu(), 2, input_ids=ids.npu(), tid2eid=table.npu(), norm_type=1, routed_scaling_factor=2.0
        )
    assert "MoeGatingTopKV2" in names
    assert torch.equal(index.cpu(), table[ids])
    weights = x.sigmoid().gather(1, table[ids].long())
    torch.testing.assert_close(y.cpu(), 2 * weights / weights.sum(1, keepdim=True))


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("renorm", {"renorm": 1}),
        ("norm_type", {"norm_type": 2}),
        ("group_count", {"group_count": 5}),
        ("group_count", {"group_count": 32}),
        ("k_group", {"k_group": 3, "group_count": 2}),
        ("k = 40", {"k": 40, "group_count": 2}),
        ("group_select_mode", {"group_select_mode": 2, "group_count": 2}),
    ],
)
def test_gating_refuses(name: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(RuntimeError, match=name):
        torch_npu.npu_moe_gating_top_k(torch.zeros(2, 64).npu(), **({"k": 4} | arguments))


@pytest.mark.parametrize("norm", [0, 1])
def test_gating_backward(norm: int) -> None:
    x = torch.randn(6, 16, dtype=torch.float64, requires_grad=True)
    scores = x.sigmoid() if norm else x.softmax(-1)
    index = scores.topk(3).indices
    weights = scores.gather(1, index)
    y = 1.5 * (weights / (weights.sum(1, keepdim=True) + 1e-6) if norm else weights)
    grad = torch.randn(6, 3)
    y.backward(grad.double())
    with called() as names:
        result = torch_npu.npu_moe_gating_top_k_backward(
            scores.detach().float().npu(), grad.npu(), index.int().npu(), norm_type=norm, routed_scaling_factor=1.5,
            eps=1e-6,
        )  # fmt: skip
    assert "MoeGatingTopKBackward" in names
    torch.testing.assert_close(result.cpu().double(), x.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("shape", [(5, 12), (2, 3, 12)])
def test_gating_softmax(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    finished = torch.rand(shape[:-1]) > 0.5
    rows = math.prod(shape[:-1])
    with called() as names:
        y, index, row = torch_npu.npu_moe_gating_top_k_softmax(x.npu(), finished.npu(), 3)
        y2, index2, all_scores = torch_npu.npu_moe_gating_top_k_softmax_v2(x.npu(), k=3, output_softmax=True)
        y3, _, _ = torch_npu.npu_moe_gating_top_k_softmax_v2(x.npu(), k=3, renorm=1)
    assert {"MoeGatingTopKSoftmax", "MoeGatingTopKSoftmaxV2"} <= names
    best = x.softmax(-1).topk(3)
    torch.testing.assert_close(y.cpu(), best.values)
    assert torch.equal(index.cpu().long(), best.indices.masked_fill(finished.unsqueeze(-1), 12))
    assert torch.equal(row.cpu().long(), torch.arange(rows * 3).view(3, rows).t().reshape(*shape[:-1], 3))
    torch.testing.assert_close(y2.cpu(), best.values)
    assert torch.equal(index2.cpu().long(), best.indices)
    torch.testing.assert_close(all_scores.cpu(), x.softmax(-1))
    torch.testing.assert_close(y3.cpu(), x.topk(3).values.softmax(-1))
