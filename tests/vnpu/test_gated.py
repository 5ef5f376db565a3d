"""Gated activations against their formulas in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as nn
import torch_npu
from tests.vnpu.support import called
from torch import Tensor

LIMITS = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
DTYPES = tuple(LIMITS)


def near(actual: Tensor, expected: Tensor, scale: float = 1) -> None:
    limit = scale * LIMITS[actual.dtype]
    torch.testing.assert_close(actual.cpu().double(), expected.double(), rtol=limit, atol=limit)


def swiglu(x: Tensor, dim: int = -1) -> Tensor:
    gate, up = x.chunk(2, dim)
    return gate * torch.sigmoid(gate) * up


def geglu(x: Tensor, dim: int, tanh: bool, left: bool) -> tuple[Tensor, Tensor]:
    first, second = x.chunk(2, dim)
    active, other = (first, second) if left else (second, first)
    gelu = nn.gelu(active, approximate="tanh" if tanh else "none")
    return other * gelu, gelu


def gradients(function: Callable[[Tensor], Tensor], x: Tensor, grad: Tensor) -> Tensor:
    x = x.double().requires_grad_()
    function(x).backward(grad.double())
    assert x.grad is not None
    return x.grad


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "dim"), [((2, 3, 8), -1), ((4, 6), 0), ((2, 4, 3), 1), ((10,), 0)])
def test_swiglu_and_its_gradient(shape: tuple[int, ...], dim: int, dtype: torch.dtype) -> None:
    x = torch.randn(shape).to(dtype)
    device = x.npu().requires_grad_()
    with called() as names:
        out = torch_npu.npu_swiglu(device, dim)
    assert "SwiGlu" in names
    near(out.detach(), swiglu(x.double(), dim))
    grad = torch.randn(out.shape).to(dtype)
    with called() as names:
        out.backward(grad.npu())
    assert "SwiGluGrad" in names
    near(device.grad, gradients(lambda t: swiglu(t, dim), x, grad), 4)


def test_swiglu_of_a_strided_view() -> None:
    x = torch.randn(3, 4, 16)
    near(torch_npu.npu_swiglu(x.npu()[:, 1:, 2:10].transpose(0, 1)), swiglu(x[:, 1:, 2:10].transpose(0, 1)))


@pytest.mark.parametrize(
    ("x", "complaint"),
    [
        (torch.ones(2, 3), "must be even"),
        (torch.ones(0, 4), "empty tensors are not taken"),
        (torch.ones(2, 4, dtype=torch.float64), "dtype of x"),
    ],
)
def test_swiglu_refuses(x: Tensor, complaint: str) -> None:
    with pytest.raises(RuntimeError, match=complaint):
        torch_npu.npu_swiglu(x.npu())


def clipped(x: Tensor, dim: int, interleaved: bool, alpha: float, limit: float, bias: float) -> Tensor:
    rows = x.reshape(x.shape[:dim].numel(), -1)
    gate, up = (rows[:, ::2], rows[:, 1::2]) if interleaved else rows.chunk(2, 1)
    gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    shape = list(x.shape)
    shape[dim] //= 2
    return (gate * torch.sigmoid(alpha * gate) * (up + bias)).reshape(shape)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize(("shape", "dim"), [((6, 8), -1), ((2, 3, 4, 5), 2), ((4, 3), 0)])
def test_clipped_swiglu(shape: tuple[int, ...], dim: int, interleaved: bool, dtype: torch.dtype) -> None:
    x = (2 * torch.randn(shape)).to(dtype)
    settings = {"alpha": 0.7, "limit": 1.5, "bias": 1.2}
    with called() as names:
        out = torch_npu.npu_clipped_swiglu(x.npu(), dim=dim, interleaved=interleaved, **settings)
    assert "ClippedSwiglu" in names
    near(out, clipped(x.double(), dim % len(shape), interleaved, **settings))


@pytest.mark.parametrize(("counts", "used"), [([1, 3], 4), ([0, 0], 0), ([4, 9], 6)])
def test_clipped_swiglu_computes_only_the_rows_of_its_groups(counts: list[int], used: int) -> None:
    x = torch.randn(6, 8)
    out = torch_npu.npu_clipped_swiglu(x.npu(), group_index=torch.tensor(counts).npu())
    near(out[:used], clipped(x, 1, True, 1.702, 7.0, 1.0)[:used])


def test_clipped_swiglu_refuses_strides() -> None:
    with pytest.raises(RuntimeError, match="contiguous"):
        torch_npu.npu_clipped_swiglu(torch.ones(4, 8).npu().t())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("approximate", [0, 1])
@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize(("shape", "dim"), [((2, 3, 8), -1), ((4, 6), 0)])
def test_geglu_and_its_gradient(
    shape: tuple[int, ...], dim: int, left: bool, approximate: int, dtype: torch.dtype
) -> None:
    x = torch.randn(shape).to(dtype)
    device = x.npu().requires_grad_()
    with called() as names:
        out, gelu = torch_npu.npu_geglu(device, dim, approximate, left)
    assert "GeGluV3" in names
    expected, expected_gelu = geglu(x.double(), dim, bool(approximate), left)
    near(out.detach(), expected)
    near(gelu.detach(), expected_gelu)
    grad = torch.randn(out.shape).to(dtype)
    with called() as names:
        out.backward(grad.npu())
    assert "GeGluV3Backward" in names
    near(device.grad, gradients(lambda t: geglu(t, dim, bool(approximate), left)[0], x, grad), 4)


def test_geglu_refuses_an_unknown_approximation() -> None:
    with pytest.raises(RuntimeError, match="approximate"):
        torch_npu.npu_geglu(torch.ones(2, 4).npu(), -1, 2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu_mul(approximate: str, dtype: torch.dtype) -> None:
    x = torch.randn(3, 5, 12).to(dtype)
    with called() as names:
        out = torch_npu.npu_gelu_mul(x.npu(), approximate=approximate)
    assert "GeluMul" in names
    near(out, geglu(x.double(), -1, approximate == "tanh", True)[0])


@pytest.mark.parametrize(
    ("shape", "approximate", "complaint"),
    [((2, 2048), "none", "at most 1024"), ((8,), "none", "number of dimensions"), ((2, 8), "erf", "approximate")],
)
def test_gelu_mul_refuses(shape: tuple[int, ...], approximate: str, complaint: str) -> None:
    with pytest.raises(RuntimeError, match=complaint):
        torch_npu.npu_gelu_mul(torch.ones(shape).npu(), approximate=approximate)
