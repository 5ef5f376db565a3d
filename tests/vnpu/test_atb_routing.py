"""_npu_group_topk and npu_fused_add_topk_div."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch_npu
from torch import Tensor


def best(values: list[float], count: int) -> list[int]:
    return sorted(range(len(values)), key=lambda i: (-values[i], i))[:count]


def kept(scores: Tensor, groups: int, k: int, n: int) -> Tensor:
    """Row by row: 0 in all but the k groups with the largest sums of n scores."""
    out = torch.zeros_like(scores)
    size = scores.shape[1] // groups
    for row, line in enumerate(scores.tolist()):
        parts = [line[i * size : (i + 1) * size] for i in range(groups)]
        for group in best([sum(sorted(part, reverse=True)[:n]) for part in parts], k):
            out[row, group * size : (group + 1) * size] = scores[row, group * size : (group + 1) * size]
    return out


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("groups", "k", "n"), [(4, 2, 1), (4, 1, 3), (8, 8, 1), (1, 1, 2), (2, 1, 8)])
def test_scores_outside_the_best_groups_become_zero(dtype: torch.dtype, groups: int, k: int, n: int) -> None:
    scores = torch.randint(-40, 40, (5, 16)).to(dtype) / 8
    on_device = scores.npu()
    torch_npu._npu_group_topk(on_device, k=k, group_num=groups, n=n)
    assert torch.equal(on_device.cpu(), kept(scores, groups, k, n))


@pytest.mark.parametrize(
    ("k", "groups", "n", "named"), [(3, 2, 1, "k"), (1, 3, 1, "group_num"), (1, 4, 5, "n"), (0, 2, 1, "k")]
)
def test_illegal_groups_are_refused(k: int, groups: int, n: int, named: str) -> None:
    with pytest.raises(RuntimeError, match=rf"atb\.GroupTopk: {named} = "):
        torch_npu._npu_group_topk(torch.zeros(2, 16).half().npu(), k=k, group_num=groups, n=n)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    ("experts", "options"),
    [
        (64, {"group_num": 8, "group_topk": 4, "n": 2, "k": 8, "scale": 2.5}),
        (16, {"group_num": 4, "group_topk": 1, "n": 1, "k": 3}),
        (16, {"group_num": 2, "group_topk": 2, "n": 3, "k": 4, "is_norm": False}),
    ],
)
def test_weights_of_the_best_experts(dtype: torch.dtype, experts: int, options: dict[str, Any]) -> None:
    x, bias = torch.randn(6, experts).to(dtype), torch.rand(experts).to(dtype)
    weights = torch.sigmoid(x.float())
    ranked = kept(weights + bias.float(), options["group_num"], options["group_topk"], options["n"])
    wanted = torch.tensor([best(line, options["k"]) for line in ranked.tolist()], dtype=torch.int32)
    picked = weights.gather(1, wanted.long())
    if options.get("is_norm", True):
        picked = picked / picked.sum(1, keepdim=True) * options.get("scale", 1)
    for outputs in ({}, {"y": torch.zeros_like(picked).npu(), "indices": torch.zeros_like(wanted).npu()}):
        y, indices = torch_npu.atb.npu_fused_add_topk_div(x.npu(), bias.npu(), **options, **outputs)
        assert torch.equal(indices.cpu(), wanted)
        torch.testing.assert_close(y.cpu(), picked, rtol=1e-6, atol=1e-7)


LEGAL = {"group_num": 8, "group_topk": 4, "n": 2, "k": 8}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"enable_expert_mapping": True}, "enable_expert_mapping"),
        ({"mapping_num": torch.ones(64, dtype=torch.int32)}, "mapping_num"),
        ({"mapping_table": torch.ones(64, 2, dtype=torch.int32)}, "mapping_table"),
        ({"is_norm": False, "scale": 2.0}, "scale"),
        ({"group_num": 4}, "group_num"),
        ({"group_topk": 9}, "group_topk"),
        ({"n": 9}, "n"),
        ({"k": 65}, "k"),
    ],
)
def test_what_is_not_documented_or_illegal_is_refused(change: dict[str, Any], named: str) -> None:
    x = torch.zeros(2, 64).half().npu()
    options = {name: v.npu() if isinstance(v, Tensor) else v for name, v in (LEGAL | change).items()}
    with pytest.raises(RuntimeError, match=rf"atb\.FusedAddTopkDiv: {named} = "):
        torch_npu.atb.npu_fused_add_topk_div(x, x[0].contiguous(), **options)
