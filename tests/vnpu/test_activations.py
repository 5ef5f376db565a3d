"""Activation functions and their gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch_npu
from tests.vnpu.elementwise import FLOATS, agree, agree_inplace, npu, values
from tests.vnpu.support import called
from torch import Tensor
from torch.nn import functional as F

ACTIVATIONS: dict[str, tuple[Callable[..., Tensor], tuple[Any, ...]]] = {
    "Silu": (F.silu, ()),
    "Mish": (F.mish, ()),
    "Hardsigmoid": (F.hardsigmoid, ()),
    "Hardswish": (F.hardswish, ()),
    "Hardtanh": (F.hardtanh, (-0.5, 1.5)),
    "Hardshrink": (F.hardshrink, (0.7,)),
    "Softshrink": (F.softshrink, (0.7,)),
    "Softplus": (F.softplus, (2.0, 3.0)),
    "LeakyRelu": (F.leaky_relu, (0.2,)),
    "Threshold": (F.threshold, (0.3, -7.0)),
    "Elu": (F.elu, (0.7,)),
    "Celu": (F.celu, (0.7,)),
    "LogSigmoidForward": (F.logsigmoid, ()),
}


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation(name: str, dtype: torch.dtype) -> None:
    function, args = ACTIVATIONS[name]
    agree(function, values(dtype, -5, 5), *args, calls=name)


INPLACE = ("Mish", "Hardsigmoid", "Hardswish", "Hardtanh", "LeakyRelu", "Threshold", "Elu", "Celu")


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("name", INPLACE)
def test_activation_in_place(name: str, dtype: torch.dtype) -> None:
    function, args = ACTIVATIONS[name]
    agree_inplace(function, values(dtype, -5, 5), *args, inplace=True, calls=f"Inplace{name}")


def test_selu_is_elu() -> None:
    agree(F.selu, values(torch.float32), calls="Elu")


GRADIENTS = {
    "SigmoidBackward": (torch.sigmoid, ()),
    "TanhBackward": (torch.tanh, ()),
    "SiluBackward": (F.silu, ()),
    "MishBackward": (F.mish, ()),
    "HardsigmoidBackward": (F.hardsigmoid, ()),
    "HardswishBackwardV2": (F.hardswish, ()),
    "HardtanhBackward": (F.hardtanh, (-0.5, 1.5)),
    "HardshrinkBackward": (F.hardshrink, (0.7,)),
    "SoftshrinkBackward": (F.softshrink, (0.7,)),
    "SoftplusBackward": (F.softplus, (2.0, 3.0)),
    "LeakyReluBackward": (F.leaky_relu, (0.2,)),
    "ThresholdBackward": (F.relu, ()),
    "EluBackward": (F.elu, (0.7,)),
    "LogSigmoidBackward": (F.logsigmoid, ()),
    "GluBackward": (F.glu, (1,)),
    "LogitGrad": (torch.logit, (0.01,)),
}


def gradients(function: Callable[..., Tensor], *inputs: Tensor, upstream: Tensor) -> list[Tensor]:
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    result = function(*leaves)
    result.backward(upstream.to(result.device).expand_as(result))
    return [leaf.grad for leaf in leaves if leaf.grad is not None]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("name", GRADIENTS)
def test_gradient(name: str, dtype: torch.dtype) -> None:
    function, args = GRADIENTS[name]
    low, high = (0.05, 0.95) if name == "LogitGrad" else (-5, 5)
    x, upstream = values(dtype, low, high)[:, :4], torch.tensor(1.7, dtype=dtype)
    with called() as names:
        for view in (x, x.t().contiguous().t(), x[:0]):
            (expected,) = gradients(lambda t: function(t, *args), view, upstream=upstream)
            (got,) = gradients(lambda t: function(t, *args), npu(view), upstream=upstream)
            torch.testing.assert_close(got.cpu(), expected)
    assert name in names


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_glu(dim: int) -> None:
    x = values(torch.float32)[:, :4]
    with called() as names:
        torch.testing.assert_close(F.glu(x.npu(), dim).cpu(), F.glu(x, dim))
    assert "Glu" in names


@pytest.mark.parametrize("eps", [None, 0.1])
def test_logit(eps: float | None) -> None:
    agree(torch.logit, values(torch.float32, 0, 1), eps, calls="Logit")


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_gelu_of_torch_is_always_the_one_by_tanh(dtype: torch.dtype) -> None:
    """As on the device: op-plugin's npu_gelu page says that `approximate` has no effect."""
    x = values(dtype, -4, 4)
    upstream = torch.tensor(1.0, dtype=dtype)
    for approximate in ("none", "tanh"):
        with called() as names:
            torch.testing.assert_close(F.gelu(x.npu(), approximate=approximate).cpu(), F.gelu(x, approximate="tanh"))
            (got,) = gradients(lambda t: F.gelu(t, approximate=approximate), x.npu(), upstream=upstream)  # noqa: B023
        assert {"Gelu", "GeluBackward"} <= names
        (expected,) = gradients(lambda t: F.gelu(t, approximate="tanh"), x, upstream=upstream)
        torch.testing.assert_close(got.cpu(), expected)


@pytest.mark.parametrize("approximate", ["none", "tanh"])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_npu_gelu(dtype: torch.dtype, approximate: str) -> None:
    x = values(dtype, -4, 4)
    upstream = torch.tensor(1.0, dtype=dtype)
    with called() as names:
        got = torch_npu.npu_gelu(x.npu(), approximate=approximate)
        (gradient,) = gradients(lambda t: torch_npu.npu_gelu(t, approximate=approximate), x.npu(), upstream=upstream)
    assert {"GeluV2", "GeluBackwardV2"} <= names
    torch.testing.assert_close(got.cpu(), F.gelu(x, approximate=approximate))
    (expected,) = gradients(lambda t: F.gelu(t, approximate=approximate), x, upstream=upstream)
    torch.testing.assert_close(gradient.cpu(), expected)


def test_the_two_gelus_differ() -> None:
    x = torch.linspace(-3, 3, 50)
    assert not torch.allclose(F.gelu(x.npu()).cpu(), F.gelu(x), atol=1e-4)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_fast_gelu(dtype: torch.dtype) -> None:
    x = values(dtype, -4, 4)
    upstream = torch.tensor(1.5, dtype=dtype)
    leaf = x.double().requires_grad_()
    reference = leaf / (1 + torch.exp(-1.702 * leaf))
    reference.backward(upstream.expand_as(leaf))
    with called() as names:
        got = torch_npu.npu_fast_gelu(x.npu())
        (gradient,) = gradients(torch_npu.npu_fast_gelu, x.npu(), upstream=upstream)
    assert {"FastGelu", "FastGeluBackward"} <= names
    torch.testing.assert_close(got.cpu(), reference.detach().to(dtype))
    torch.testing.assert_close(gradient.cpu(), leaf.grad.to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("channels", [1, 5])
def test_prelu(channels: int, dtype: torch.dtype) -> None:
    for shape in ((6, 5), (2, 5, 3, 2)):
        x, weight = torch.randn(shape).to(dtype), torch.rand(channels).to(dtype)
        upstream = torch.tensor(0.5, dtype=dtype)
        with called() as names:
            got = F.prelu(x.npu(), weight.npu())
            grads = gradients(F.prelu, x.npu(), weight.npu(), upstream=upstream)
        assert {"Prelu", "PreluBackward"} <= names
        torch.testing.assert_close(got.cpu(), F.prelu(x, weight))
        for one, other in zip(grads, gradients(F.prelu, x, weight, upstream=upstream), strict=True):
            torch.testing.assert_close(one.cpu(), other)
