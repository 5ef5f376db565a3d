"""Upsampling and its gradients against PyTorch's on the CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as nn
import torch_npu  # noqa: F401
from tests.vnpu.support import called
from torch import Tensor

LIMITS = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
DTYPES = tuple(LIMITS)
SHAPES = {1: (2, 3, 7), 2: (2, 3, 5, 6), 3: (1, 2, 3, 4, 5)}
# mode, spatial dimensions, settings, forward function, backward function
MODES: list[tuple[str, int, dict[str, Any], str, str]] = [
    ("nearest", 1, {}, "Nearest1dV2", "Nearest1dBackward"),
    ("nearest", 2, {}, "Nearest2dV2", "Nearest2dBackward"),
    ("nearest", 3, {}, "Nearest3d", "Nearest3dBackward"),
    ("nearest-exact", 1, {}, "NearestExact1d", "NearestExact1dBackward"),
    ("nearest-exact", 2, {}, "NearestExact2d", "NearestExact2dBackward"),
    ("nearest-exact", 3, {}, "NearestExact3d", "NearestExact3dBackward"),
    ("linear", 1, {}, "Linear1d", "Linear1dBackward"),
    ("linear", 1, {"align_corners": True}, "Linear1d", "Linear1dBackward"),
    ("bilinear", 2, {}, "Bilinear2d", "Bilinear2dBackwardV2"),
    ("bilinear", 2, {"align_corners": True}, "Bilinear2d", "Bilinear2dBackwardV2"),
    ("bilinear", 2, {"antialias": True}, "Bilinear2dAA", "Bilinear2dAABackward"),
    ("bicubic", 2, {}, "Bicubic2d", "Bicubic2dBackward"),
    ("bicubic", 2, {"align_corners": True}, "Bicubic2d", "Bicubic2dBackward"),
    ("bicubic", 2, {"antialias": True}, "Bicubic2dAA", "Bicubic2dAAGrad"),
    ("trilinear", 3, {}, "Trilinear3d", "Trilinear3dBackward"),
    ("trilinear", 3, {"align_corners": True}, "Trilinear3d", "Trilinear3dBackward"),
]
SIZES: list[dict[str, Any]] = [
    {"scale_factor": 2},
    {"scale_factor": 1.6},
    {"scale_factor": 0.6, "recompute_scale_factor": True},
    {"size": 9},
]


def near(actual: Tensor, expected: Tensor, dtype: torch.dtype, scale: float = 1) -> None:
    limit = scale * LIMITS[dtype]
    torch.testing.assert_close(actual.detach().cpu().double(), expected.detach().double(), rtol=limit, atol=limit)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("mode", "dims", "settings", "forward", "backward"), MODES)
def test_upsample_and_its_gradient(
    mode: str,
    dims: int,
    settings: dict[str, Any],
    forward: str,
    backward: str,
    size: dict[str, Any],
    dtype: torch.dtype,
) -> None:
    x = torch.randn(SHAPES[dims]).to(dtype)
    device, reference = x.npu().requires_grad_(), x.float().requires_grad_()
    with called() as names:
        y = nn.interpolate(device, mode=mode, **settings, **size)
    assert f"Upsample{forward}" in names, names
    expected = nn.interpolate(reference, mode=mode, **settings, **size)
    near(y, expected, dtype)
    grad = torch.randn(expected.shape).to(dtype)
    with called() as names:
        y.backward(grad.npu())
    assert f"Upsample{backward}" in names, names
    expected.backward(grad.float())
    assert device.grad is not None and reference.grad is not None
    near(device.grad, reference.grad, dtype, 4)


@pytest.mark.parametrize(("mode", "shape"), [("nearest", (2, 6, 5, 3)), ("bilinear", (2, 6, 5, 3))])
def test_upsample_of_a_strided_view(mode: str, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    y = nn.interpolate(x.npu().permute(0, 3, 1, 2)[:, :, ::2], scale_factor=3, mode=mode)
    near(y, nn.interpolate(x.permute(0, 3, 1, 2)[:, :, ::2], scale_factor=3, mode=mode), torch.float32)
