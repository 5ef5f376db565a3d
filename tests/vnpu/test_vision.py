"""Grid sampling, affine grids, regions of interest and distances against PyTorch's and the documented figures."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as nn
import torch_npu
from tests.vnpu.support import called
from torch import Tensor

LIMITS = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
DTYPES = tuple(LIMITS)


def near(actual: Tensor, expected: Tensor, dtype: torch.dtype = torch.float32, scale: float = 1) -> None:
    limit = scale * LIMITS[dtype]
    torch.testing.assert_close(actual.detach().cpu().double(), expected.detach().double(), rtol=limit, atol=limit)


GRIDS = [
    (2, "bilinear", "zeros", False),
    (2, "bilinear", "border", True),
    (2, "nearest", "reflection", False),
    (2, "bicubic", "zeros", True),
    (3, "bilinear", "reflection", False),
    (3, "nearest", "border", True),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("dims", "mode", "padding", "corners"), GRIDS)
def test_grid_sample_and_its_gradient(dims: int, mode: str, padding: str, corners: bool, dtype: torch.dtype) -> None:
    x = torch.randn(2, 3, 5, 6) if dims == 2 else torch.randn(2, 3, 4, 5, 6)
    grid = 1.5 * torch.rand(2, *([4] * dims), dims) - 0.75
    settings = {"mode": mode, "padding_mode": padding, "align_corners": corners}
    device = [t.to(dtype).npu().requires_grad_() for t in (x, grid)]
    reference = [t.to(dtype).float().requires_grad_() for t in (x, grid)]
    with called() as names:
        y = nn.grid_sample(*device, **settings)
    assert f"GridSampler{dims}D" in names
    expected = nn.grid_sample(*reference, **settings)
    near(y, expected, dtype)
    grad = torch.randn(expected.shape).to(dtype)
    with called() as names:
        y.backward(grad.npu())
    assert f"GridSampler{dims}DBackward" in names
    expected.backward(grad.float())
    for actual, wanted in zip(device, reference, strict=True):
        near(actual.grad, wanted.grad, dtype, 8)


def test_the_gradient_of_the_grid_alone() -> None:
    x, grid = torch.randn(1, 2, 4, 4), torch.rand(1, 3, 3, 2) - 0.5
    device, reference = grid.npu().requires_grad_(), grid.clone().requires_grad_()
    nn.grid_sample(x.npu(), device, align_corners=False).sum(0).backward(torch.ones(2, 3, 3).npu())
    nn.grid_sample(x, reference, align_corners=False).sum(0).backward(torch.ones(2, 3, 3))
    near(device.grad, reference.grad)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("corners", [True, False])
@pytest.mark.parametrize("size", [(2, 3, 4, 5), (2, 3, 4, 5, 6)])
def test_affine_grid(size: tuple[int, ...], corners: bool, dtype: torch.dtype) -> None:
    theta = torch.randn(2, len(size) - 2, len(size) - 1).to(dtype)
    with called() as names:
        grid = nn.affine_grid(theta.npu(), size, align_corners=corners)
    assert "AffineGrid" in names
    near(grid, nn.affine_grid(theta.float(), size, align_corners=corners), dtype)


IMAGE = torch.arange(1.0, 37).view(1, 1, 6, 6)
REGION = torch.tensor([[0, -2.0, -2.0, 22.0, 22.0]])


def test_roi_align_as_documented() -> None:
    """The figures of op-plugin's documentation and of its test of the gradient, which takes roi_end_mode 1."""
    with called() as names:
        pooled = torch_npu.npu_roi_align(IMAGE.npu(), REGION.npu(), 0.25, 3, 3, 2, 0)
        grad = torch_npu.npu_roi_alignbk(pooled, REGION.npu(), IMAGE.shape, 3, 3, 0.25, 2)
    assert {"ROIAlign", "ROIAlignBackward"} <= names
    near(pooled[0, 0], torch.tensor([[4.5, 6.5, 8.5], [16.5, 18.5, 20.5], [28.5, 30.5, 32.5]]))
    near(grad[0, 0, 0], torch.tensor([1.0786, 1.0557, 1.4942, 1.5248, 1.9226, 2.4709]), scale=10)
    near(grad[0, 0, 5], torch.tensor([8.2847, 8.1084, 8.6403, 8.6774, 9.1598, 11.4575]), scale=10)


def roi_align(features: Tensor, rois: Tensor, scale: float, size: tuple[int, int], samples: int, mode: int) -> Tensor:
    """One sample after the other, with torch.nn.functional.grid_sample for the interpolation."""
    out = torch.zeros(len(rois), features.shape[1], *size)
    height, width = features.shape[-2:]
    for n, (image, *box) in enumerate(rois.tolist()):
        low = [edge * scale - (0.5 if mode == 3 else 0) for edge in box[:2]]
        high = [(edge + (mode == 1)) * scale - (0.5 if mode == 3 else 0) for edge in box[2:]]
        lengths = [h - b if mode == 3 else max(h - b, 1.0) for b, h in zip(low, high, strict=True)]
        bins = [lengths[0] / size[1], lengths[1] / size[0]]
        counts = [samples or max(1, -int(-b // 1)) for b in bins]
        for row in range(size[0]):
            for column in range(size[1]):
                for i in range(counts[1]):
                    for j in range(counts[0]):
                        y = low[1] + bins[1] * (row + (i + 0.5) / counts[1])
                        x = low[0] + bins[0] * (column + (j + 0.5) / counts[0])
                        if -1 <= y <= height and -1 <= x <= width:
                            point = torch.tensor([2 * x / (width - 1) - 1, 2 * y / (height - 1) - 1]).view(1, 1, 1, 2)
                            value = nn.grid_sample(
                                features[int(image)][None], point, padding_mode="border", align_corners=True
                            )
                            out[n, :, row, column] += value.flatten() / counts[0] / counts[1]
    return out


@pytest.mark.parametrize("mode", [0, 1, 3])
@pytest.mark.parametrize("samples", [0, 2])
def test_roi_align_and_its_gradient(samples: int, mode: int) -> None:
    features = torch.randn(2, 3, 7, 8, requires_grad=True)
    rois = torch.tensor([[0, 1.0, 2.0, 9.0, 11.0], [1, 5.0, -3.0, 5.5, 20.0], [1, 0.0, 0.0, 15.0, 13.0]])
    expected = roi_align(features, rois, 0.5, (2, 3), samples, mode)
    device = features.detach().npu()
    pooled = torch_npu.npu_roi_align(device, rois.npu(), 0.5, 2, 3, samples, mode)
    near(pooled, expected)
    grad = torch.randn(expected.shape)
    expected.backward(grad)
    actual = torch_npu.npu_roi_alignbk(grad.npu(), rois.npu(), features.shape, 3, 2, 0.5, samples, mode)
    assert features.grad is not None
    near(actual, features.grad, scale=4)


def test_roi_align_refuses_a_mode_without_a_source() -> None:
    with pytest.raises(RuntimeError, match="roi_end_mode"):
        torch_npu.npu_roi_align(IMAGE.npu(), REGION.npu(), 0.25, 3, 3, 2, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("p", [0.0, 1.0, 2.0, 3.5, torch.inf])
def test_distances(p: float, dtype: torch.dtype) -> None:
    x, y = torch.randn(2, 5, 4).to(dtype), torch.randn(2, 6, 4).to(dtype)
    with called() as names:
        between, within = torch.cdist(x.npu(), y.npu(), p), nn.pdist(x[0].npu(), p)
    assert {"Cdist", "Pdist"} <= names
    near(between, torch.cdist(x.float(), y.float(), p), dtype)
    near(within, nn.pdist(x[0].float(), p), dtype)


def test_the_gradient_of_cdist() -> None:
    x, y = torch.randn(2, 5, 4), torch.randn(2, 6, 4)
    device = [t.npu().requires_grad_() for t in (x, y)]
    reference = [t.double().requires_grad_() for t in (x, y)]
    grad = torch.randn(2, 5, 6)
    distances = torch.cdist(*device, p=3.0)
    with called() as names:
        distances.backward(grad.npu())
    assert "CdistBackward" in names
    torch.cdist(*reference, p=3.0).backward(grad.double())
    for actual, wanted in zip(device, reference, strict=True):
        near(actual.grad, wanted.grad)
