"""Pooling and its gradients against PyTorch's on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as nn
import torch_npu  # noqa: F401
from tests.vnpu.support import called
from torch import Tensor

LIMITS = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
DTYPES = tuple(LIMITS)
MAXIMA = [
    (nn.max_pool2d, (2, 3, 9, 8), {"kernel_size": 3, "stride": 2, "padding": 1}),
    (nn.max_pool2d, (3, 8, 8), {"kernel_size": (2, 3)}),
    (nn.max_pool2d, (1, 2, 10, 9), {"kernel_size": (3, 2), "stride": (2, 3), "padding": (1, 1), "ceil_mode": True}),
    (nn.max_pool2d, (2, 1, 12, 12), {"kernel_size": 3, "stride": 1, "dilation": 2}),
    (nn.max_pool1d, (2, 3, 20), {"kernel_size": 4, "stride": 3}),
]
POOLS = [
    ("MaxPool3dWithArgmax", nn.max_pool3d, (2, 2, 5, 6, 7), {"kernel_size": 2, "stride": (2, 1, 2), "padding": 1}),
    ("MaxPool3dWithArgmax", nn.max_pool3d, (2, 5, 6, 7), {"kernel_size": (2, 3, 2), "ceil_mode": True}),
    ("AvgPool2d", nn.avg_pool2d, (2, 3, 9, 8), {"kernel_size": 3, "stride": 2, "padding": 1}),
    ("AvgPool2d", nn.avg_pool2d, (3, 9, 8), {"kernel_size": (2, 3), "ceil_mode": True, "count_include_pad": False}),
    ("AvgPool2d", nn.avg_pool2d, (1, 2, 6, 6), {"kernel_size": 3, "stride": 1, "divisor_override": 5}),
    ("AvgPool3d", nn.avg_pool3d, (2, 2, 5, 6, 4), {"kernel_size": 2, "stride": 1, "padding": 1}),
    ("AvgPool3d", nn.avg_pool3d, (2, 5, 6, 4), {"kernel_size": 2, "divisor_override": 3}),
    ("AdaptiveAvgPool2d", nn.adaptive_avg_pool2d, (2, 3, 7, 9), {"output_size": (3, 4)}),
    ("AdaptiveAvgPool3d", nn.adaptive_avg_pool3d, (2, 3, 5, 7, 9), {"output_size": (2, 3, 4)}),
    ("AdaptiveMaxPool2d", nn.adaptive_max_pool2d, (2, 3, 7, 9), {"output_size": (3, 4)}),
    ("AdaptiveMaxPool3d", nn.adaptive_max_pool3d, (2, 3, 5, 7, 9), {"output_size": (2, 3, 4)}),
]
Pool = Callable[..., Any]


def near(actual: Tensor, expected: Tensor, dtype: torch.dtype, scale: float = 1) -> None:
    limit = scale * LIMITS[dtype]
    torch.testing.assert_close(actual.detach().cpu().double(), expected.detach().double(), rtol=limit, atol=limit)


def compare(
    function: Pool, x: Tensor, settings: dict[str, Any], forward: set[str], backward: set[str]
) -> tuple[Tensor, Tensor]:
    device, reference = x.npu().requires_grad_(), x.double().requires_grad_()
    with called() as names:
        y = function(device, **settings)
    assert names >= forward, names
    expected = function(reference, **settings)
    near(y, expected, x.dtype)
    grad = torch.randn(expected.shape).to(x.dtype)
    with called() as names:
        y.backward(grad.npu())
    assert names >= backward, names
    expected.backward(grad.double())
    assert device.grad is not None and reference.grad is not None
    near(device.grad, reference.grad, x.dtype, 4)
    return y, device.grad


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("function", "shape", "settings"), MAXIMA)
def test_max_pool2d(function: Pool, shape: tuple[int, ...], settings: dict[str, Any], dtype: torch.dtype) -> None:
    x = torch.randn(shape).to(dtype)
    compare(function, x, settings, {"MaxPool2dWithMask"}, {"MaxPool2dWithMaskBackward"})


def test_max_pool2d_of_equal_values_has_one_maximum() -> None:
    _, grad = compare(nn.max_pool2d, torch.ones(1, 1, 4, 4), {"kernel_size": 2}, set(), set())
    assert int((grad != 0).sum()) == 4


def test_the_indices_of_max_pool2d_are_a_bit_mask() -> None:
    _, mask = nn.max_pool2d(torch.randn(2, 3, 9, 8).npu(), 3, 2, 1, return_indices=True)
    assert mask.dtype == torch.int8 and mask.shape == (2, 3, 9, 32 * 3)


def test_max_pool2d_of_a_strided_view() -> None:
    x = torch.randn(2, 8, 9, 3)
    near(nn.max_pool2d(x.npu().permute(0, 3, 2, 1), 2), nn.max_pool2d(x.permute(0, 3, 2, 1), 2), torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "function", "shape", "settings"), POOLS)
def test_pool(name: str, function: Pool, shape: tuple[int, ...], settings: dict[str, Any], dtype: torch.dtype) -> None:
    compare(function, torch.randn(shape).to(dtype), settings, {name}, {f"{name}Backward"})


@pytest.mark.parametrize(
    ("function", "shape", "size"), [(nn.adaptive_max_pool2d, (2, 7, 9), 3), (nn.adaptive_max_pool3d, (2, 5, 7, 9), 2)]
)
def test_the_indices_of_adaptive_pools(function: Pool, shape: tuple[int, ...], size: int) -> None:
    x = torch.randn(shape)
    for actual, expected in zip(function(x.npu(), size, True), function(x, size, True), strict=True):
        assert torch.equal(actual.cpu().to(expected.dtype), expected)


def test_the_indices_of_max_pool3d() -> None:
    x = torch.randn(1, 2, 4, 6, 6)
    values, indices = nn.max_pool3d(x.npu(), 2, return_indices=True)
    expected, where = nn.max_pool3d(x, 2, return_indices=True)
    assert torch.equal(values.cpu(), expected) and torch.equal(indices.cpu().long(), where)


@pytest.mark.parametrize(
    ("name", "pool", "unpool", "shape"),
    [
        ("MaxUnpool2d", nn.max_pool2d, nn.max_unpool2d, (2, 3, 6, 8)),
        ("MaxUnpool3d", nn.max_pool3d, nn.max_unpool3d, (2, 4, 6, 8)),
    ],
)
def test_max_unpool(name: str, pool: Pool, unpool: Pool, shape: tuple[int, ...]) -> None:
    values, indices = pool(torch.randn(shape), 2, return_indices=True)
    with called() as names:
        image = unpool(values.npu(), indices.npu(), 2)
    assert name in names
    assert torch.equal(image.cpu(), unpool(values, indices, 2))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: nn.adaptive_avg_pool2d(x, (3, 2)),
        lambda x: nn.avg_pool2d(x, 2),
        lambda x: nn.max_pool2d(x, 2),
        lambda x: nn.unfold(x, 2),
        lambda x: nn.max_unpool2d(x, torch.arange(42, device=x.device).view(6, 7).expand(2, 4, 6, 7), 1, 1),
    ],
)
def test_images_whose_channels_lie_last_in_memory(function: Pool) -> None:
    """PyTorch's own kernels give outputs the input's memory format; an output that CANN is given keeps its own."""
    x = torch.randn(2, 4, 6, 7)
    image = x.npu().permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    for _ in range(2):
        near(function(image), function(x), torch.float32)
