"""Drawing tokens, against the formulas of op-plugin's pages and of its test."""

from __future__ import annotations

import math

import pytest
import torch
import torch_npu
from tests.vnpu.elementwise import FLOATS
from tests.vnpu.support import called
from torch import Tensor

from gallium.vnpu.registry import operators


@pytest.mark.parametrize("replacement", [False, True])
def test_multinomial(replacement: bool) -> None:
    weights = torch.tensor([[0.0, 1.0, 3.0], [2.0, 0.0, 2.0]])
    torch.npu.manual_seed(4)
    with called() as names:
        one = torch.stack([torch.multinomial(weights.npu(), 1)[:, 0] for _ in range(400)]).cpu()
    assert "Multinomial" in names
    assert (one[:, 0] == 2).float().mean() == pytest.approx(0.75, abs=0.1)
    assert set(one[:, 0].tolist()) == {1, 2} and set(one[:, 1].tolist()) == {0, 2}
    two = torch.multinomial(weights.npu(), 2, replacement).cpu()
    assert two.shape == (2, 2) and two.dtype == torch.int64
    if not replacement:
        assert two.sort().values.tolist() == [[1, 2], [0, 2]]
    assert torch.multinomial(weights[0].npu(), 5, True).shape == (5,)


def filtered(logits: Tensor, p: Tensor | None, k: Tensor | None) -> Tensor:
    """The formula, one row at a time."""
    out = torch.full_like(logits, -math.inf)
    for i, row in enumerate(logits.double()):
        order = sorted(range(len(row)), key=lambda j: (row[j].item(), j))
        kept = order
        if k is not None:
            least = row[order[-int(k[i])]]
            kept = [j for j in order if row[j] >= least]
        chances = torch.softmax(row[kept], 0).cumsum(0)
        for place, j in enumerate(kept):
            if p is None or place == len(kept) - 1 or chances[place] > 1 - p[i].double():
                out[i, j] = logits[i, j]
    return out


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize(("with_p", "with_k"), [(True, True), (True, False), (False, True)])
def test_top_k_top_p(with_p: bool, with_k: bool, dtype: torch.dtype) -> None:
    logits = (torch.randn(5, 40) * 3).to(dtype)
    p = torch.tensor([0.0, 0.3, 0.7, 0.95, 1.0], dtype=dtype) if with_p else None
    k = torch.tensor([40, 1, 3, 17, 39], dtype=torch.int32) if with_k else None
    with called() as names:
        got = torch_npu.npu_top_k_top_p(logits.npu(), None if p is None else p.npu(), None if k is None else k.npu())
    assert "ApplyTopKTopP" in names
    assert got.cpu().equal(filtered(logits, p, k))
    view = torch.zeros(40, 10, dtype=dtype, device="npu").t()[::2].copy_(logits.npu())
    assert torch_npu.npu_top_k_top_p(view, None if p is None else p.npu(), None if k is None else k.npu()).equal(got)


@pytest.mark.parametrize("bad", [0, 41])
def test_top_k_has_limits(bad: int) -> None:
    k = torch.tensor([1, bad], dtype=torch.int32)
    with pytest.raises(RuntimeError, match=r"k = .*is not legal"):
        torch_npu.npu_top_k_top_p(torch.randn(2, 40).npu(), None, k.npu())
    with pytest.raises(RuntimeError, match="dtype of p"):
        torch_npu.npu_top_k_top_p(torch.randn(2, 40).npu(), torch.ones(2).half().npu(), None)


def chosen(row: Tensor, k: int, p: float, min_p: float, most_k: int, are_logits: bool) -> tuple[list[int], list[float]]:
    """What the limits leave of one row, after op-plugin's test, in double precision."""
    use_k, use_p = 1 <= k <= min(most_k, len(row)), p < 1
    order = list(range(len(row)))
    if use_k or use_p or min_p >= 1:
        order.sort(key=lambda j: (-row[j].item(), j))
    order = order[:k] if use_k else order
    chances = (torch.softmax(row[order].double(), 0) if are_logits else row[order].double()).tolist()
    if p <= 0:
        order, chances = order[:1], [1.0] if are_logits else chances[:1]
    elif use_p:
        count = sum(1 for n in range(len(order)) if sum(chances[:n]) < p)
        order, chances = order[:count], chances[:count]
    if min_p >= 1:
        return order[:1], chances[:1]
    kept = [n for n in range(len(order)) if min_p <= 0 or chances[n] >= max(chances) * min_p]
    return [order[n] for n in kept], [chances[n] for n in kept]


K = torch.tensor([0, 3, 7, 50, 24, 1], dtype=torch.int32)
P = torch.tensor([0.6, 1.0, 0.5, 1.0, 0.0, 0.9])
MIN_P = torch.tensor([0.0, 0.2, 0.3, 0.4, 0.5, 1.0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("are_logits", [True, False])
@pytest.mark.parametrize("with_min_p", [False, True])
@pytest.mark.parametrize("with_q", [False, True])
@pytest.mark.parametrize("most_k", [1024, 4])
def test_sample(dtype: torch.dtype, are_logits: bool, with_min_p: bool, with_q: bool, most_k: int) -> None:
    spread = torch.stack([torch.randperm(30) for _ in range(6)]) / 30  # no two alike, also in bfloat16
    logits = (spread * 6 if are_logits else torch.softmax(spread * 6, -1)).to(dtype)
    p, min_p = P.to(dtype), MIN_P.to(dtype) if with_min_p else None
    q = torch.rand(6, 30) if with_q else None
    with called() as names:
        index, kept = torch_npu.npu_top_k_top_p_sample(
            logits.npu(), K.npu(), p.npu(), q=None if q is None else q.npu(), is_need_logits=True, eps=1e-6,
            min_ps=None if min_p is None else min_p.npu(), ks_max=most_k, input_is_logits=are_logits,
        )  # fmt: skip
    assert "TopKTopPSampleV2" in names
    for i in range(6):
        least = -1.0 if min_p is None else min_p[i].item()
        order, chances = chosen(logits[i].float(), int(K[i]), p[i].item(), least, max(8, most_k), are_logits)
        expected = torch.full((30,), -math.inf if are_logits else 0.0)
        expected[order] = logits[i].float()[order]
        assert kept[i].cpu().equal(expected)
        weights = torch.tensor(chances)
        if q is not None:
            weights = weights / (q[i, : len(order)] + 1e-6)
        assert index[i].item() == order[int(weights.argmax())]


def test_sample_by_multinomial() -> None:
    logits = torch.randn(4, 30)
    k, p = torch.full((4,), 3, dtype=torch.int32), torch.tensor([1.0, 1.0, 0.0, 1.0])
    top = logits.topk(3).indices
    with called() as names:
        draws = [
            torch_npu.npu_top_k_top_p_sample(logits.npu(), k.npu(), p.npu(), post_sample="multiNomial")[0].cpu()
            for _ in range(200)
        ]
    assert {"TopKTopPSampleV2", "Multinomial", "Gather"} <= names
    for row in (0, 1, 3):
        assert {int(draw[row]) for draw in draws} == set(top[row].tolist())
    assert {int(draw[2]) for draw in draws} == {int(top[2, 0])}


def test_sample_refusals() -> None:
    logits = torch.randn(2, 9).npu()
    k, p = torch.ones(2, dtype=torch.int32).npu(), torch.ones(2).npu()
    for match, call in {
        "top_k": lambda: torch_npu.npu_top_k_top_p_sample(logits, k.long(), p),
        "top_p": lambda: torch_npu.npu_top_k_top_p_sample(logits, k, p.half()),
        "ks_max": lambda: torch_npu.npu_top_k_top_p_sample(logits, k, p, ks_max=0),
        "shape of q": lambda: torch_npu.npu_top_k_top_p_sample(logits, k, p, q=p),
    }.items():
        with pytest.raises(RuntimeError, match=match):
            call()


def test_older_sample() -> None:
    """torch_npu calls this only where V2 is missing."""
    logits, out, index = torch.randn(6, 30), torch.empty(6, 30), torch.empty(6, dtype=torch.int64)
    operators()["TopKTopPSample"].body(logits, K, P, None, 1e-8, True, 32, index, out)
    for i in range(6):
        order, _ = chosen(logits[i], int(K[i]), P[i].item(), -1, 1024, True)
        assert index[i] == max(order, key=lambda j: logits[i, j].item())
        assert (out[i] > -math.inf).sum() == len(order)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_exponential(dtype: torch.dtype) -> None:
    x = torch.zeros(100, 200, dtype=dtype, device="npu")
    with called() as names:
        torch_npu.npu_sim_exponential_(x, lambd=2.0, generator=torch.Generator("npu").manual_seed(6))
    assert "SimThreadExponential" in names
    assert x.cpu().float().mean() == pytest.approx(0.5, rel=0.03)
    assert x.cpu().float().std() == pytest.approx(0.5, rel=0.05)
    assert (x >= 0).all()
    again = torch.zeros_like(x)
    torch_npu.npu_sim_exponential_(again, lambd=2.0, generator=torch.Generator("npu").manual_seed(6))
    assert again.equal(x)
    with pytest.raises(RuntimeError, match="contiguous"):
        torch_npu.npu_sim_exponential_(x.t())
