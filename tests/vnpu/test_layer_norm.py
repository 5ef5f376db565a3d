"""Layer and group normalisation, alone and fused, with gradients, against PyTorch's own on the CPU in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as nn
import torch_npu
from tests.vnpu.support import called
from torch import Tensor

LIMITS = {torch.float32: 5e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
DTYPES = tuple(LIMITS)


def near(actual: Tensor, expected: Tensor, dtype: torch.dtype | None = None, scale: float = 1) -> None:
    limit = scale * LIMITS[dtype or actual.dtype]
    torch.testing.assert_close(actual.detach().cpu().double(), expected.detach().double(), rtol=limit, atol=limit)


def backward_equal(
    on_device: Callable[..., Tensor],
    on_cpu: Callable[..., Tensor],
    tensors: Sequence[Tensor],
    function: str,
    scale: float = 20,
) -> None:
    """The gradients of all tensors agree, and this CANN function computed them."""
    device = [t.npu().requires_grad_() for t in tensors]
    wide = [t.double().requires_grad_() for t in tensors]
    y, expected = on_device(*device), on_cpu(*wide)
    near(y, expected, tensors[0].dtype)
    grad = torch.randn(y.shape).to(y.dtype)
    with called() as names:
        y.backward(grad.npu())
    assert function in names
    expected.backward(grad.double())
    for actual, reference in zip(device, wide, strict=True):
        near(actual.grad, reference.grad, tensors[0].dtype, scale)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize(("shape", "normalised"), [((2, 3, 16), 1), ((4, 3, 8), 2), ((7,), 1)])
def test_layer_norm(shape: tuple[int, ...], normalised: int, affine: bool, dtype: torch.dtype) -> None:
    x = torch.randn(shape).to(dtype)
    tail = shape[-normalised:]
    parameters = [torch.randn(tail).to(dtype) for _ in range(2)] if affine else [None, None]
    device = [None if p is None else p.npu() for p in parameters]
    with called() as names:
        y, mean, rstd = torch.native_layer_norm(x.npu(), tail, *device, 1e-5)
    assert names & {"LayerNorm", "FastLayerNorm"}
    wide = [None if p is None else p.double() for p in parameters]
    expected = torch.native_layer_norm(x.double(), tail, *wide, 1e-5)
    near(y, expected[0])
    assert mean.dtype == rstd.dtype == torch.float32
    near(mean, expected[1])
    near(rstd, expected[2])


def test_layer_norm_of_a_strided_view_and_of_nothing() -> None:
    x = torch.randn(4, 6, 8)
    view = x.npu()[1:, ::2].transpose(0, 1)
    near(nn.layer_norm(view, (8,)), nn.layer_norm(x[1:, ::2].transpose(0, 1), (8,)))
    assert nn.layer_norm(torch.empty(0, 8).npu(), (8,)).shape == (0, 8)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_gradient_of_layer_norm(dtype: torch.dtype) -> None:
    tensors = [torch.randn(s).to(dtype) for s in ((3, 4, 16), (16,), (16,))]

    def norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return nn.layer_norm(x, (16,), weight, bias)

    backward_equal(norm, norm, tensors, "LayerNormBackward")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("additional", [True, False])
def test_add_layer_norm(additional: bool, dtype: torch.dtype) -> None:
    x1, x2, gamma, beta = (torch.randn(s).to(dtype) for s in ((2, 3, 16), (2, 3, 16), (16,), (16,)))
    with called() as names:
        y, mean, rstd, x = torch_npu.npu_add_layer_norm(x1.npu(), x2.npu(), gamma.npu(), beta.npu(), 1e-5, additional)
    assert "AddLayerNorm" in names
    total = (x1 + x2).double()
    expected = torch.native_layer_norm(total, (16,), gamma.double(), beta.double(), 1e-5)
    for actual, value in zip((y, mean, rstd), expected, strict=True):
        near(actual, value)
    if additional:
        near(x, total)


def test_add_layer_norm_of_two_types() -> None:
    x1, x2, gamma, beta = torch.randn(2, 16).half(), torch.randn(2, 16), torch.randn(16), torch.randn(16)
    y, _, _, x = torch_npu.npu_add_layer_norm(x1.npu(), x2.npu(), gamma.npu(), beta.npu(), 1e-5, True)
    assert y.dtype == x.dtype == torch.float32
    near(x, x1 + x2)
    near(y, nn.layer_norm(x1 + x2, (16,), gamma, beta))


def test_the_gradient_of_add_layer_norm() -> None:
    tensors = [torch.randn(s) for s in ((2, 3, 16), (2, 3, 16), (16,), (16,))]

    def on_device(x1: Tensor, x2: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        y, _, _, x = torch_npu.npu_add_layer_norm(x1, x2, gamma, beta, 1e-5, True)
        return y + 2 * x

    def on_cpu(x1: Tensor, x2: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        return nn.layer_norm(x1 + x2, (16,), gamma, beta) + 2 * (x1 + x2)

    backward_equal(on_device, on_cpu, tensors, "AddLayerNormGrad")


@pytest.mark.parametrize("dtype", DTYPES)
def test_deep_norm_and_its_gradient(dtype: torch.dtype) -> None:
    tensors = [torch.randn(s).to(dtype) for s in ((2, 3, 16), (2, 3, 16), (16,), (16,))]

    def on_device(x: Tensor, gx: Tensor, beta: Tensor, gamma: Tensor) -> Tensor:
        with called() as names:
            mean, _, y = torch_npu.npu_deep_norm(x, gx, beta, gamma, 0.3, 1e-6)
        assert "DeepNorm" in names and mean.dtype == torch.float32
        return y

    def on_cpu(x: Tensor, gx: Tensor, beta: Tensor, gamma: Tensor) -> Tensor:
        return nn.layer_norm(0.3 * x + gx, (16,), gamma, beta, 1e-6)

    backward_equal(on_device, on_cpu, tensors, "DeepNormGrad")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "groups"), [((2, 6, 4, 3), 3), ((3, 4), 2), ((1, 4, 5), 4)])
def test_group_norm_and_its_gradient(shape: tuple[int, ...], groups: int, dtype: torch.dtype) -> None:
    tensors = [torch.randn(s).to(dtype) for s in (shape, shape[1:2], shape[1:2])]

    def norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return nn.group_norm(x, groups, weight, bias)

    with called() as names:
        nn.group_norm(tensors[0].npu(), groups)
    assert "GroupNorm" in names
    backward_equal(norm, norm, tensors, "GroupNormBackward")


@pytest.mark.parametrize("dtype", DTYPES)
def test_group_norm_silu(dtype: torch.dtype) -> None:
    x, weight, bias = (torch.randn(s).to(dtype) for s in ((2, 6, 4, 3), (6,), (6,)))
    with called() as names:
        y, mean, rstd = torch_npu.npu_group_norm_silu(x.npu(), weight.npu(), bias.npu(), 3, 1e-5)
    assert "GroupNormSilu" in names
    expected = torch.native_group_norm(x.double(), weight.double(), bias.double(), 2, 6, 12, 3, 1e-5)
    near(y, nn.silu(expected[0]))
    near(mean, expected[1], dtype)
    near(rstd, expected[2], dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_group_norm_swish_and_its_gradient(scale: float, dtype: torch.dtype) -> None:
    tensors = [torch.randn(s).to(dtype) for s in ((2, 6, 4, 3), (6,), (6,))]

    def on_device(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        with called() as names:
            y, _, _ = torch_npu.npu_group_norm_swish(x, 3, weight, bias, eps=1e-5, swish_scale=scale)
        assert "GroupNormSwish" in names
        return y

    def on_cpu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        y = nn.group_norm(x, 3, weight, bias)
        return y * torch.sigmoid(scale * y)

    backward_equal(on_device, on_cpu, tensors, "GroupNormSwishGrad", scale=40)


@pytest.mark.parametrize(
    ("call", "complaint"),
    [
        (lambda: torch_npu.npu_group_norm_silu(*_ones((2, 6, 4), (6,), (6,)), 4, 1e-5), "group = 4"),
        (lambda: torch_npu.npu_group_norm_silu(*_ones((2, 6, 4), (6,), (6,)), 3, 0.0), "eps = 0"),
        (lambda: torch_npu.npu_group_norm_silu(*_ones((6,), (6,), (6,)), 1, 1e-5), "number of dimensions|Dimension"),
        (lambda: torch_npu.npu_add_layer_norm(*_ones((2, 8), (2, 4), (8,), (8,))), "shape of x2"),
        (lambda: torch_npu.npu_deep_norm(*_ones((2, 8), (2, 4), (8,), (8,))), "shape of gx"),
    ],
)
def test_refusals(call: Callable[[], object], complaint: str) -> None:
    with pytest.raises((RuntimeError, IndexError), match=complaint):
        call()


def _ones(*shapes: tuple[int, ...]) -> list[Tensor]:
    return [torch.ones(shape).npu() for shape in shapes]
