"""Fused optimiser steps and loss scaling give what PyTorch's own give."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.vnpu.elementwise import same
from tests.vnpu.support import called
from torch import Tensor

from gallium.vnpu.registry import operators

SHAPES = ((3, 4), (5,), (0, 2))
LIMITS = {torch.float32: 2e-6, torch.float16: 4e-3}


def train(optimizer: type[torch.optim.Optimizer], dtype: torch.dtype = torch.float32, **options: Any) -> None:
    """Three fused steps on the NPU and three ordinary ones on the CPU: parameters and states agree."""
    params = [torch.randn(shape).to(dtype).requires_grad_() for shape in SHAPES]
    params.append(torch.randn(3, 4).to(dtype).t().requires_grad_())
    copies = [p.detach().npu().requires_grad_() for p in params]
    ours, theirs = optimizer(copies, fused=True, **options), optimizer(params, fused=False, **options)
    for _ in range(3):
        for copy, param in zip(copies, params, strict=True):
            param.grad = torch.randn_like(param)
            copy.grad = torch.empty_like(copy).copy_(param.grad)
        ours.step()
        theirs.step()
    for copy, param in zip(copies, params, strict=True):
        torch.testing.assert_close(copy.detach().cpu(), param.detach(), rtol=LIMITS[dtype], atol=LIMITS[dtype])
        for key, state in theirs.state[param].items():
            torch.testing.assert_close(ours.state[copy][key].cpu(), state, rtol=LIMITS[dtype], atol=LIMITS[dtype])


@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("maximize", [False, True])
def test_adamw(amsgrad: bool, maximize: bool) -> None:
    with called() as names:
        options = {"lr": 0.1, "betas": (0.8, 0.9), "weight_decay": 0.3, "eps": 1e-3}
        train(torch.optim.AdamW, amsgrad=amsgrad, maximize=maximize, **options)
    assert "ApplyAdamWV2" in names


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("maximize", [False, True])
def test_sgd(nesterov: bool, maximize: bool) -> None:
    with called() as names:
        options = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.3, "dampening": 0.0 if nesterov else 0.2}
        train(torch.optim.SGD, nesterov=nesterov, maximize=maximize, **options)
    assert "FusedSgd" in names


def test_halves() -> None:
    train(torch.optim.SGD, torch.float16, lr=0.1, momentum=0.9)
    param, grad = torch.randn(7).bfloat16(), torch.randn(7).bfloat16()
    copy, states = param.npu(), [torch.zeros(7).bfloat16().npu() for _ in range(2)]
    step = torch.ones((), device="npu")
    numbers = {"lr": 0.1, "beta1": 0.9, "beta2": 0.99, "weight_decay": 0.1, "eps": 1e-8}
    torch._fused_adamw_(
        [copy], [grad.npu()], [states[0]], [states[1]], [], [step], amsgrad=False, maximize=False, **numbers
    )
    expected = param.float() * (1 - 0.1 * 0.1) - 0.1 * torch.sign(grad.float())  # the first step of Adam
    torch.testing.assert_close(copy.cpu().float(), expected, rtol=1e-2, atol=1e-2)
    assert step.item() == 1


def test_sgd_unscales_its_gradients() -> None:
    param, grad, buffer = torch.randn(5), torch.randn(5), torch.randn(5)
    lists = [[x.npu()] for x in (param, grad, buffer)]
    options: dict[str, Any] = {"weight_decay": 0.1, "momentum": 0.9, "lr": 0.2, "dampening": 0.3}
    options |= {"nesterov": False, "maximize": False, "is_first_step": False}
    with called() as names:
        torch._fused_sgd_(*lists, grad_scale=torch.tensor(4.0, device="npu"), **options)
    assert "FusedSgd" in names
    change = grad / 4 + 0.1 * param
    expected = buffer * 0.9 + change * 0.7
    same(lists[2], [expected])
    same(lists[0], [param - 0.2 * expected])


@pytest.mark.parametrize("found", [0.0, 1.0])
def test_loss_scale(found: float) -> None:
    scale, tracker, inf = torch.tensor([8.0]), torch.tensor([1], dtype=torch.int32), torch.tensor([found])
    with called() as names:
        got = [scale.npu(), tracker.npu()]
        torch._amp_update_scale_(*got, inf.npu(), 2.0, 0.5, 2)
    assert "AmpUpdateScale" in names
    same(got, [torch.tensor([4.0 if found else 16.0]), torch.tensor([0], dtype=torch.int32)])


def test_amsgrad_needs_its_state() -> None:
    x = torch.ones(3)
    body = operators()["ApplyAdamWV2"].body
    with pytest.raises(Exception, match="max_exp_avg_sq"):
        body(x, x, x, None, x, torch.zeros(1), 0.1, 0.9, 0.99, 0.0, 1e-8, True, False)


def test_gradient_scaler_trains() -> None:
    weights: list[Tensor] = []
    for device in ("npu", "cpu"):
        weight = torch.linspace(-1, 1, 6).view(2, 3).to(device).requires_grad_()
        optimizer = torch.optim.SGD([weight], lr=0.1)
        scaler = torch.amp.GradScaler(device, init_scale=16.0, growth_interval=1)
        for value in (1.0, float("inf"), 2.0):
            optimizer.zero_grad()
            scaler.scale((weight * value).square().sum()).backward()
            scaler.step(optimizer)
            scaler.update()
        assert scaler.get_scale() == 32.0
        weights.append(weight.detach())
    same(weights[0], weights[1])
