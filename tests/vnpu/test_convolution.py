"""Convolutions, unfolding and their gradients against PyTorch's on the CPU in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as nn
import torch_npu  # noqa: F401
from tests.vnpu.support import called
from torch import Tensor

LIMITS = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
DTYPES = tuple(LIMITS)
CONVOLUTIONS = [
    (torch.conv1d, (2, 4, 9), (6, 4, 3), {"stride": 2, "padding": 1}),
    (torch.conv2d, (2, 4, 9, 7), (6, 4, 3, 3), {"stride": (2, 1), "padding": (1, 0), "dilation": (1, 2)}),
    (torch.conv2d, (2, 4, 6, 6), (8, 2, 3, 3), {"groups": 2}),
    (torch.conv2d, (4, 6, 6), (3, 4, 2, 2), {}),
    (torch.conv3d, (1, 2, 5, 6, 4), (3, 2, 2, 3, 2), {"padding": 1}),
    (torch.conv_transpose1d, (2, 4, 9), (4, 3, 3), {"stride": 2, "output_padding": 1}),
    (torch.conv_transpose2d, (2, 4, 5, 6), (4, 3, 3, 3), {"stride": 2, "padding": 1, "groups": 2}),
    (torch.conv_transpose3d, (1, 2, 3, 4, 3), (2, 3, 2, 2, 2), {"stride": 2}),
]


def near(actual: Tensor, expected: Tensor, dtype: torch.dtype, scale: float = 1) -> None:
    limit = scale * LIMITS[dtype]
    torch.testing.assert_close(actual.detach().cpu().double(), expected.detach().double(), rtol=limit, atol=limit)


def compare(
    function: Callable[..., Tensor],
    tensors: Sequence[Tensor],
    forward: str,
    backward: str,
    on_cpu: Callable[..., Tensor] | None = None,
    scale: float = 10,
) -> None:
    """Output and gradients agree with the CPU's in float64, and these CANN functions made them."""
    dtype = tensors[0].dtype
    device = [t.npu().requires_grad_() for t in tensors]
    reference = [t.double().requires_grad_() for t in tensors]
    with called() as names:
        y = function(*device)
    assert forward in names
    expected = (on_cpu or function)(*reference)
    assert y.dtype == dtype
    near(y, expected, dtype)
    grad = torch.randn(expected.shape).to(dtype)
    with called() as names:
        y.backward(grad.npu())
    assert backward in names
    expected.backward(grad.double())
    for actual, wanted in zip(device, reference, strict=True):
        near(actual.grad, wanted.grad, dtype, scale)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize(("function", "shape", "weight_shape", "settings"), CONVOLUTIONS)
def test_convolution(
    function: Any,
    shape: tuple[int, ...],
    weight_shape: tuple[int, ...],
    settings: dict[str, Any],
    biased: bool,
    dtype: torch.dtype,
) -> None:
    transposed = "transpose" in function.__name__
    channels = weight_shape[1] * settings.get("groups", 1) if transposed else weight_shape[0]
    tensors = [torch.randn(s).to(dtype) for s in (shape, weight_shape, *([(channels,)] if biased else []))]

    def convolve(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return function(x, weight, bias, **settings)

    compare(convolve, tensors, "Convolution", "ConvolutionBackward")


def test_convolution_of_strided_views() -> None:
    x, weight = torch.randn(2, 9, 7, 4), torch.randn(3, 3, 4, 6)
    y = torch.conv2d(x.npu().permute(0, 3, 1, 2)[:, :, 1:], weight.npu().permute(3, 2, 0, 1))
    near(y, torch.conv2d(x.permute(0, 3, 1, 2)[:, :, 1:], weight.permute(3, 2, 0, 1)), torch.float32)


def test_convolution_of_an_empty_batch() -> None:
    assert torch.conv2d(torch.empty(0, 4, 6, 6).npu(), torch.ones(3, 4, 3, 3).npu()).shape == (0, 3, 4, 4)


def test_only_the_gradients_that_are_asked_for() -> None:
    x, weight, grad = torch.randn(1, 2, 5, 5), torch.randn(3, 2, 3, 3), torch.randn(1, 3, 3, 3)
    settings = ([3], [1, 1], [0, 0], [1, 1], False, [0, 0], 1)
    for mask in ([True, False, False], [False, True, True]):
        on_cpu = torch.ops.aten.convolution_backward(grad, x, weight, *settings, mask)
        on_npu = torch.ops.aten.convolution_backward(grad.npu(), x.npu(), weight.npu(), *settings, mask)
        for wanted, actual, expected in zip(mask, on_npu, on_cpu, strict=True):
            if wanted:
                near(actual, expected, torch.float32)
            else:
                assert actual is None


def test_convolution_refuses_float64() -> None:
    with pytest.raises(RuntimeError, match="dtype"):
        torch.conv2d(torch.ones(1, 1, 3, 3).double().npu(), torch.ones(1, 1, 2, 2).double().npu())


@pytest.mark.parametrize("dtype", DTYPES)
def test_depthwise_convolution(dtype: torch.dtype) -> None:
    x, weight, bias = (torch.randn(s).to(dtype) for s in ((2, 4, 7, 6), (8, 1, 3, 2), (8,)))
    settings = ([3, 2], bias.npu(), [2, 1], [1, 0], [1, 1])
    with called() as names:
        y = torch.ops.aten._conv_depthwise2d(x.npu(), weight.npu(), *settings)
    assert "ConvDepthwise2d" in names
    expected = torch.conv2d(x.double(), weight.double(), bias.double(), (2, 1), (1, 0), groups=4)
    near(y, expected, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pad", [0, 2])
def test_conv_tbc(pad: int, dtype: torch.dtype) -> None:
    tensors = [torch.randn(s).to(dtype) for s in ((7, 2, 4), (3, 4, 5), (5,))]

    def convolve(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.conv_tbc(x, weight, bias, pad)

    compare(convolve, tensors, "ConvTbc", "ConvTbcBackward")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 3, 6, 7), (3, 6, 7)])
def test_unfold(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    settings = {"kernel_size": (3, 2), "dilation": (1, 2), "padding": 1, "stride": (2, 1)}

    def unfold(x: Tensor) -> Tensor:
        return nn.unfold(x, **settings)

    compare(unfold, [torch.randn(shape).to(dtype)], "Im2col", "Im2colBackward")


def test_fold() -> None:
    columns = torch.randn(2, 12, 20)
    with called() as names:
        image = nn.fold(columns.npu(), (5, 6), (2, 2))
    assert "Im2colBackward" in names
    near(image, nn.fold(columns, (5, 6), (2, 2)), torch.float32)
