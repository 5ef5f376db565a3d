"""Random numbers and optimisers that torch_npu calls on the 950 family only."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch_npu
from tests.vnpu.elementwise import same
from tests.vnpu.support import called
from torch import Tensor
from torch.nn import functional as F

from gallium.vnpu import soc
from gallium.vnpu.ops.dropout import unpack_bits


def test_the_chip() -> None:
    assert soc.current().family == "950"


def test_fused_adam() -> None:
    for amsgrad in (False, True):
        params = [torch.randn(3, 4).requires_grad_(), torch.randn(5).requires_grad_()]
        copies = [p.detach().npu().requires_grad_() for p in params]
        options = {"lr": 0.1, "weight_decay": 0.2, "amsgrad": amsgrad, "maximize": True}
        ours, theirs = torch.optim.Adam(copies, fused=True, **options), torch.optim.Adam(params, fused=True, **options)
        with called() as names:
            for _ in range(3):
                for copy, param in zip(copies, params, strict=True):
                    param.grad = torch.randn(param.shape)
                    copy.grad = param.grad.npu()
                ours.step()
                theirs.step()
        assert "FusedAdam" in names
        same([p.detach() for p in copies], [p.detach() for p in params])
        for copy, param in zip(copies, params, strict=True):
            for key, state in theirs.state[param].items():
                torch.testing.assert_close(ours.state[copy][key].cpu(), state)


def test_fused_adam_skips_after_an_overflow() -> None:
    lists = [[torch.ones(3, device="npu")] for _ in range(4)]
    numbers = {"lr": 0.1, "beta1": 0.9, "beta2": 0.99, "weight_decay": 0.0, "eps": 1e-8}
    step = [torch.ones((), device="npu")]
    overflow = {"grad_scale": torch.tensor(2.0, device="npu"), "found_inf": torch.tensor(1.0, device="npu")}
    torch._fused_adam_(*lists, [], step, amsgrad=False, maximize=False, **numbers, **overflow)
    same(lists[0], [torch.ones(3)])
    overflow["found_inf"].zero_()
    torch._fused_adam_(*lists, [], step, amsgrad=False, maximize=False, **numbers, **overflow)
    same(lists[2], [torch.ones(3) * 0.9 + 0.5 * 0.1])


def test_apply_adam() -> None:
    for nesterov in (False, True):
        var, m, v, grad = torch.randn(4), torch.randn(4), torch.rand(4), torch.randn(4)
        got = [x.npu() for x in (var, m, v)]
        with called() as names:
            torch_npu.npu_apply_adam(0.81, 0.9, 0.1, 0.9, 0.99, 1e-4, grad.npu(), False, nesterov, out=got)
        assert "ApplyAdam" in names
        m, v = m + (grad - m) * (1 - 0.9), v + (grad * grad - v) * (1 - 0.99)
        rate = 0.1 * (1 - 0.9) ** 0.5 / (1 - 0.81)
        direction = m * 0.9 + grad * (1 - 0.9) if nesterov else m
        same(got, [var - rate * direction / (v.sqrt() + 1e-4), m, v])


def test_apply_adam_w() -> None:
    for amsgrad, maximize in ((False, False), (True, False), (True, True)):
        var, m, v, grad, most = torch.randn(4), torch.randn(4), torch.rand(4), torch.randn(4), torch.rand(4)
        got = [x.npu() for x in (var, m, v)]
        numbers = [0.81, 0.9, 0.1, 0.2, 0.9, 0.99, 1e-4]
        with called() as names:
            torch_npu.npu_apply_adam_w(*numbers, grad.npu(), most.npu(), amsgrad, maximize, out=got)
        assert "ApplyAdamW" in names
        change = -grad if maximize else grad
        m, v = m * 0.9 + change * (1 - 0.9), v * 0.99 + change * change * (1 - 0.99)
        largest = torch.maximum(most, v) if amsgrad else v
        denominator = (largest / (1 - 0.9 * 0.99)).sqrt() + 1e-4
        expected = [var * (1 - 0.1 * 0.2) - 0.1 * m / (1 - 0.81 * 0.9) / denominator, m, v]
        for one, other in zip(got, expected, strict=True):
            torch.testing.assert_close(one.cpu(), other, rtol=1e-4, atol=1e-5)


def test_rrelu() -> None:
    x, noise = torch.randn(1000), torch.zeros(1000).npu()
    with called() as names:
        got = torch.ops.aten.rrelu_with_noise(x.npu(), noise, 0.1, 0.3, True)
        middle = torch.ops.aten.rrelu_with_noise(x.npu(), noise, 0.1, 0.3, False)
    assert "RReluWithNoise" in names
    same(got, noise.cpu() * x)
    same(middle, F.leaky_relu(x, 0.2))


def test_dropout() -> None:
    x = torch.rand(37, 50) + 1
    for view in (x, x.t()):
        leaf = view.npu().requires_grad_()
        with called() as names:
            y = F.dropout(leaf, 0.25)
            y.backward(torch.full_like(y, 2))
        assert {"DropoutV3", "DropoutV3Grad"} <= names
        kept = y.detach().cpu() != 0
        assert kept.float().mean() == pytest.approx(0.75, abs=0.06)
        same(y.detach(), torch.where(kept, view / 0.75, 0))
        same(leaf.grad, torch.where(kept, torch.full_like(view, 2 / 0.75), 0))
    result, mask = torch_npu._npu_dropout(x.npu(), 0.5)
    assert unpack_bits(mask.cpu(), x.numel()).view(x.shape).equal(result.cpu() != 0)


def test_exponential() -> None:
    x = torch.zeros(20000, device="npu")
    with called() as names:
        x.exponential_(2.0)
    assert "SimThreadExponential" in names
    assert x.cpu().mean() == pytest.approx(0.5, rel=0.05)


def test_integers() -> None:
    for dtype, bits in ((torch.int32, 31), (torch.int64, 63), (torch.uint8, 8), (torch.float16, 11)):
        with called() as names:
            x = torch.zeros(1000, dtype=dtype, device="npu").random_().cpu()
        assert "InplaceRandomWithoutFromTo" in names
        assert x.min() >= 0 and 2 ** (bits - 1) < x.double().max() <= 2**bits


GRAPHS: dict[str, Callable[[Tensor], Tensor]] = {
    "InplaceRandomWithoutFromToTensor": lambda x: x.random_(),
    "StatelessExponentialTensor": lambda x: x.exponential_(2.0),
    "DropoutV3Tensor": lambda x: F.dropout(x, 0.5),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_replays_give_new_numbers(name: str) -> None:
    static = torch.ones(1000, device="npu")
    graph = torch.npu.NPUGraph()
    with called() as names, torch.npu.graph(graph):
        result = GRAPHS[name](static)
    assert name in names
    drawn = []
    for _ in range(2):
        static.fill_(1)
        graph.replay()
        drawn.append(result.cpu())
    assert not drawn[0].equal(drawn[1])
    if name == "StatelessExponentialTensor":
        assert drawn[0].mean() == pytest.approx(0.5, rel=0.2)
