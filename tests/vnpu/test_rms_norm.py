"""RmsNorm and its relatives against the formula of op-plugin's documentation, in float64."""

from __future__ import annotations

import pytest
import torch
import torch_npu
from tests.vnpu.support import called
from torch import Tensor

HALF_ULP = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
DTYPES = tuple(HALF_ULP)
SHAPES = [((2, 3, 64), 1), ((5, 32), 1), ((2, 3, 4, 8), 2), ((33,), 1), ((2, 1, 1024), 1)]


def reference(x: Tensor, gamma: Tensor, epsilon: float = 1e-6) -> tuple[Tensor, Tensor]:
    x, gamma = x.double(), gamma.double()
    dims = tuple(range(-gamma.dim(), 0))
    rstd = 1 / torch.sqrt(x.square().mean(dims, keepdim=True) + epsilon)
    return x * rstd * gamma, rstd


def near(actual: Tensor, expected: Tensor, dtype: torch.dtype | None = None) -> None:
    limit = HALF_ULP[dtype or actual.dtype]
    torch.testing.assert_close(actual.cpu().double(), expected.double(), rtol=limit, atol=limit)


def inputs(shape: tuple[int, ...], normalised: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return torch.randn(shape).to(dtype), torch.randn(shape[len(shape) - normalised :]).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "normalised"), SHAPES)
def test_rms_norm(shape: tuple[int, ...], normalised: int, dtype: torch.dtype) -> None:
    x, gamma = inputs(shape, normalised, dtype)
    with called() as names:
        y, rstd = torch_npu.npu_rms_norm(x.npu(), gamma.npu(), 1e-5)
    assert names == {"RmsNorm"}
    expected, expected_rstd = reference(x, gamma, 1e-5)
    assert y.dtype == dtype and rstd.dtype == torch.float32
    assert rstd.shape == (*shape[: len(shape) - normalised], *[1] * normalised)
    near(y, expected)
    near(rstd, expected_rstd)


def test_rms_norm_of_a_strided_view() -> None:
    x, gamma = torch.randn(4, 6, 32), torch.randn(16)
    view = x.npu()[:, 1:, ::2].transpose(0, 1)
    near(torch_npu.npu_rms_norm(view, gamma.npu())[0], reference(x[:, 1:, ::2].transpose(0, 1), gamma)[0])


@pytest.mark.parametrize("shape", [(0, 8), (2, 0, 8), (3, 0)])
def test_rms_norm_of_nothing(shape: tuple[int, ...]) -> None:
    y, rstd = torch_npu.npu_rms_norm(torch.empty(shape).npu(), torch.ones(shape[-1]).npu())
    assert y.shape == shape and rstd.shape == (*shape[:-1], 1)


def test_rms_norm_takes_a_gamma_of_float32() -> None:
    x, gamma = torch.randn(3, 64, dtype=torch.bfloat16), torch.randn(64)
    near(torch_npu.npu_rms_norm(x.npu(), gamma.npu())[0], reference(x, gamma)[0])


@pytest.mark.parametrize(
    ("x", "gamma", "complaint"),
    [
        (torch.ones(2, 8), torch.ones(8, dtype=torch.bfloat16), "dtype of gamma"),
        (torch.ones(2, 8, dtype=torch.float64), torch.ones(8), "dtype of x"),
        (torch.ones(2, 8), torch.ones(4), "shape of gamma"),
    ],
)
def test_rms_norm_refuses(x: Tensor, gamma: Tensor, complaint: str) -> None:
    with pytest.raises(RuntimeError, match=complaint):
        torch_npu.npu_rms_norm(x.npu(), gamma.npu())


@pytest.mark.parametrize("dtype", DTYPES)
def test_gemma_rms_norm(dtype: torch.dtype) -> None:
    x, gamma = inputs((2, 3, 16), 1, dtype)
    with called() as names:
        y, rstd = torch_npu.npu_gemma_rms_norm(x.npu(), gamma.npu(), 1e-6)
    assert "GemmaRmsNorm" in names
    expected, expected_rstd = reference(x, gamma.double() + 1)
    near(y, expected)
    near(rstd, expected_rstd)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "normalised"), SHAPES)
def test_add_rms_norm(shape: tuple[int, ...], normalised: int, dtype: torch.dtype) -> None:
    x1, gamma = inputs(shape, normalised, dtype)
    x2 = torch.randn(shape).to(dtype)
    with called() as names:
        y, rstd, x = torch_npu.npu_add_rms_norm(x1.npu(), x2.npu(), gamma.npu(), 1e-6)
    assert "AddRmsNorm" in names
    expected, expected_rstd = reference(x1 + x2, gamma)
    assert torch.equal(x.cpu(), x1 + x2)
    near(y, expected)
    near(rstd, expected_rstd)


def test_add_rms_norm_v2_works_in_place() -> None:
    x1, x2, gamma = torch.randn(4, 32), torch.randn(4, 32), torch.randn(32)
    first, second = x1.npu(), x2.npu()
    with called() as names:
        rstd = torch_npu.npu_add_rms_norm_v2(first, second, gamma.npu())
    assert "InplaceAddRmsNorm" in names
    expected, expected_rstd = reference(x1 + x2, gamma)
    near(first, expected)
    near(second, x1 + x2)
    near(rstd, expected_rstd)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_add_rms_norm_cast(dtype: torch.dtype) -> None:
    x1, gamma = inputs((2, 3, 16), 1, dtype)
    x2 = torch.randn(2, 3, 16).to(dtype)
    with called() as names:
        wide, narrow, rstd, x = torch_npu.npu_add_rms_norm_cast(x1.npu(), x2.npu(), gamma.npu())
    assert "AddRmsNormCast" in names
    expected, expected_rstd = reference(x1 + x2, gamma)
    assert (wide.dtype, narrow.dtype) == (torch.float32, dtype)
    near(wide, expected)
    near(narrow, expected)
    near(rstd, expected_rstd)
    assert torch.equal(x.cpu(), x1 + x2)


@pytest.mark.parametrize(
    ("x2", "gamma", "complaint"),
    [
        (torch.ones(2, 4), torch.ones(8), "shape of x2"),
        (torch.ones(2, 8).half(), torch.ones(8), "dtype of x2"),
        (torch.ones(2, 8), torch.ones(8).half(), "dtype of gamma"),
    ],
)
def test_add_rms_norm_refuses(x2: Tensor, gamma: Tensor, complaint: str) -> None:
    with pytest.raises(RuntimeError, match=complaint):
        torch_npu.npu_add_rms_norm(torch.ones(2, 8).npu(), x2.npu(), gamma.npu())


def test_add_rms_norm_refuses_nothing_to_normalise() -> None:
    with pytest.raises(RuntimeError, match="empty tensors are not taken"):
        torch_npu.npu_add_rms_norm(torch.ones(0, 8).npu(), torch.ones(0, 8).npu(), torch.ones(8).npu())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "normalised"), SHAPES)
def test_the_gradient_of_rms_norm(shape: tuple[int, ...], normalised: int, dtype: torch.dtype) -> None:
    x, gamma = inputs(shape, normalised, dtype)
    dy = torch.randn(shape).to(dtype)
    wide = [t.double().requires_grad_() for t in (x, gamma)]
    reference(*wide)[0].backward(dy.double())
    device = [t.npu().requires_grad_() for t in (x, gamma)]
    y = torch_npu.npu_rms_norm(*device)[0]
    with called() as names:
        y.backward(dy.npu())
    assert "RmsNormGrad" in names
    for actual, expected in zip(device, wide, strict=True):
        torch.testing.assert_close(
            actual.grad.cpu().double(), expected.grad, rtol=4 * HALF_ULP[dtype], atol=16 * HALF_ULP[dtype]
        )


def test_the_gradient_takes_a_rstd_without_ones() -> None:
    x, gamma, dy = torch.randn(2, 4, 16), torch.randn(16), torch.randn(2, 4, 16)
    _, rstd = reference(x, gamma)
    full = torch_npu.npu_rms_norm_backward(dy.npu(), x.npu(), gamma.npu(), rstd.float().npu())
    flat = torch_npu.npu_rms_norm_backward(dy.npu(), x.npu(), gamma.npu(), rstd.float().squeeze(-1).npu())
    assert all(torch.equal(a.cpu(), b.cpu()) for a, b in zip(full, flat, strict=True))
