"""Fused operators that torch_npu calls on the 950 family only; test_on_950.py runs this file."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as nn
import torch_npu
from tests.vnpu.support import called
from torch import Tensor

FP8 = {torch.float8_e4m3fn: 448.0, torch.float8_e5m2: 57344.0}


def near(actual: Tensor, expected: Tensor, limit: float = 2e-5) -> None:
    torch.testing.assert_close(actual.detach().cpu().double(), expected.detach().double(), rtol=limit, atol=limit)


def off_by_one_at_ties(actual: Tensor, expected: Tensor) -> None:
    difference = (actual.cpu().double() - expected.double().round().clamp(-128, 127)).abs()
    assert difference.max() <= 1
    assert (difference > 0).double().mean() < 0.05


def deformed(
    x: Tensor,
    offset: Tensor,
    kernel: tuple[int, int],
    s: list[int],
    p: list[int],
    d: list[int],
    groups: int,
    modulated: bool,
) -> Tensor:
    """The image as the kernel reads it, one place of the kernel after the other."""
    batch, channels, height, width = x.shape
    rows, columns = offset.shape[2:]
    parts = offset.reshape(batch, -1, groups, *kernel, rows, columns)
    out = x.new_zeros(batch, channels, rows * kernel[0], columns * kernel[1])
    for group in range(groups):
        mine = slice(group * channels // groups, (group + 1) * channels // groups)
        for i in range(kernel[0]):
            for j in range(kernel[1]):
                place_y = parts[:, 1, group, i, j] + torch.arange(rows)[:, None] * s[2] - p[0] + i * d[2]
                place_x = parts[:, 0, group, i, j] + torch.arange(columns) * s[3] - p[2] + j * d[3]
                total = x.new_zeros(batch, channels // groups, rows, columns)
                for corner_y in (0, 1):
                    for corner_x in (0, 1):
                        row, column = place_y.floor() + corner_y, place_x.floor() + corner_x
                        weight = (1 - (place_y - row).abs()) * (1 - (place_x - column).abs())
                        inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
                        index = row.clamp(0, height - 1).long() * width + column.clamp(0, width - 1).long()
                        values = (
                            x[:, mine].flatten(2).gather(2, index.flatten(1)[:, None].expand(-1, total.shape[1], -1))
                        )
                        total = total + values.view(total.shape) * (weight * inside)[:, None]
                if modulated:
                    total = total * parts[:, 2, group, i, j][:, None]
                out[:, mine, i :: kernel[0], j :: kernel[1]] = total
    return out


@pytest.mark.parametrize("modulated", [True, False])
@pytest.mark.parametrize(("groups", "deformable_groups"), [(1, 1), (2, 2)])
def test_deformable_convolution(groups: int, deformable_groups: int, modulated: bool) -> None:
    kernel, stride, padding, dilation = (3, 2), [1, 1, 2, 1], [1, 1, 0, 1], [1, 1, 1, 2]
    x, weight, bias = torch.randn(2, 4, 7, 6), torch.randn(6, 4 // groups, 3, 2), torch.randn(6)
    parts = 3 if modulated else 2
    offset = torch.randn(2, parts * deformable_groups * 6, 4, 5)
    leaves = [t.double().requires_grad_() for t in (x, weight, offset, bias)]
    read = deformed(leaves[0], leaves[2], kernel, stride, padding, dilation, deformable_groups, modulated)
    expected = torch.conv2d(read, leaves[1], leaves[3], stride=kernel, groups=groups)
    device = [t.npu().requires_grad_() for t in (x, weight, offset, bias)]
    with called() as names:
        y, image = torch_npu.npu_deformable_conv2d(
            device[0],
            device[1],
            device[2],
            device[3],
            list(kernel),
            stride,
            padding,
            dilation,
            groups,
            deformable_groups,
            modulated,
        )
    assert "DeformableConv2d" in names
    near(image, read)
    near(y, expected)
    grad = torch.randn(expected.shape)
    with called() as names:
        y.backward(grad.npu())
    assert "DeformableConv2dBackward" in names
    expected.backward(grad.double())
    for actual, wanted in zip(device, leaves, strict=True):
        near(actual.grad, wanted.grad, 2e-4)


def test_deformable_convolution_refuses() -> None:
    x, weight, offset = torch.ones(1, 2, 5, 5).npu(), torch.ones(2, 2, 3, 3).npu(), torch.ones(1, 27, 3, 3).npu()
    with pytest.raises(RuntimeError, match="shape of offset"):
        torch_npu.npu_deformable_conv2d(x, weight, offset[:, :20], None, [3, 3], [1] * 4, [0] * 4)
    with pytest.raises(RuntimeError, match="stride and dilation"):
        torch_npu.npu_deformable_conv2d(x, weight, offset, None, [3, 3], [2, 1, 1, 1], [0] * 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_max_pool2d_gives_indices(dtype: torch.dtype) -> None:
    x = torch.randn(2, 3, 9, 8).to(dtype)
    device, reference = x.npu().requires_grad_(), x.double().requires_grad_()
    with called() as names:
        y, where = nn.max_pool2d(device, 3, 2, 1, return_indices=True)
    assert "MaxPool2dWithIndices" in names
    expected, indices = nn.max_pool2d(reference, 3, 2, 1, return_indices=True)
    near(y, expected, 1e-7)
    assert torch.equal(where.cpu().long(), indices)
    with called() as names:
        y.backward(torch.ones(y.shape, dtype=dtype).npu())
    assert "MaxPool2dWithIndicesBackward" in names
    expected.backward(torch.ones(y.shape).double())
    near(device.grad, reference.grad)


def test_iou() -> None:
    """The figures of op-plugin's test_iou for the 950."""
    boxes = torch.tensor([[0, 0, 10, 10], [10, 10, 20, 20], [32, 32, 38, 42]]).float()
    truth = torch.tensor([[0, 0, 10, 20], [0, 0, 10, 10], [10, 10, 20, 20]]).float()
    with called() as names:
        over_union, over_truth = (torch_npu.npu_iou(boxes.npu(), truth.npu(), mode) for mode in (0, 1))
    assert "Iou" in names
    near(over_union, torch.tensor([[0.5005, 0.0003, 0], [1, 0, 0], [0, 1, 0]]), 1e-3)
    near(over_truth, torch.tensor([[0.5005, 0.0005, 0], [1, 0, 0], [0, 1, 0]]), 1e-3)


def test_ciou() -> None:
    boxes, truth = torch.rand(4, 1024) * 20, torch.rand(4, 1024) * 20
    with called() as names:
        overlap = torch_npu.npu_ciou(boxes.npu(), truth.npu(), True, False, 0, True)
    assert "CIoU" in names
    (ax, ay, aw, ah), (bx, by, bw, bh) = boxes.double(), truth.double()
    edges = [(c - s / 2, c + s / 2) for c, s in ((ax, aw), (bx, bw), (ay, ah), (by, bh))]
    width = (torch.minimum(edges[0][1], edges[1][1]) - torch.maximum(edges[0][0], edges[1][0])).clamp(min=0)
    height = (torch.minimum(edges[2][1], edges[3][1]) - torch.maximum(edges[2][0], edges[3][0])).clamp(min=0)
    iou = width * height / (aw * ah + bw * bh - width * height)
    whole_width = torch.maximum(edges[0][1], edges[1][1]) - torch.minimum(edges[0][0], edges[1][0])
    whole_height = torch.maximum(edges[2][1], edges[3][1]) - torch.minimum(edges[2][0], edges[3][0])
    apart = ((ax - bx) ** 2 + (ay - by) ** 2) / (whole_width**2 + whole_height**2)
    shape = 4 / math.pi**2 * (torch.atan(bw / bh) - torch.atan(aw / ah)) ** 2
    near(overlap[0], iou - apart - shape**2 / (1 - iou + shape), 1e-4)
    with pytest.raises(RuntimeError, match="is_cross"):
        torch_npu.npu_ciou(boxes[:, :7].npu(), truth[:, :7].npu(), True, False, 0, True)


def normalised(x: Tensor, gamma: Tensor, beta: Tensor | None = None) -> Tensor:
    x = x.double()
    y = x / torch.sqrt(x.square().mean(-1, keepdim=True) + 1e-6) * gamma.double()
    return y if beta is None else y + beta.double()


@pytest.mark.parametrize("div_mode", [True, False])
@pytest.mark.parametrize("dst", [torch.int8, torch.float8_e4m3fn, torch.float8_e5m2])
def test_rms_norm_quant(dst: torch.dtype, div_mode: bool) -> None:
    x, gamma, beta = torch.randn(5, 32).half(), torch.randn(32).half(), torch.randn(32).half()
    scale, offset = torch.tensor([0.05 if div_mode else 20.0]).half(), torch.tensor([2], dtype=torch.int8)
    with called() as names:
        y, _ = torch_npu.npu_rms_norm_quant_v2(
            x.npu(), gamma.npu(), scale.npu(), offset=offset.npu(), beta=beta.npu(), div_mode=div_mode, dst_dtype=dst
        )
    assert "RmsNormQuantV3" in names
    normal = normalised(x, gamma, beta)
    values = (normal / scale.double() if div_mode else normal * scale.double()) + 2
    if dst == torch.int8:
        off_by_one_at_ties(y, values)
    else:
        near(y.cpu().float(), values.clamp(-FP8[dst], FP8[dst]).float().to(dst).float(), 0.13)


def test_rms_norm_quant_keeps_rstd_for_the_gradient() -> None:
    x, gamma = torch.randn(5, 32).half(), torch.randn(32).half()
    one = torch.ones(1).half().npu()
    _, rstd = torch_npu.npu_rms_norm_quant_v2(x.npu().requires_grad_(), gamma.npu(), one)
    near(rstd, 1 / torch.sqrt(x.double().square().mean(-1, keepdim=True) + 1e-6), 1e-4)


def test_add_rms_norm_quant_without_beta() -> None:
    x1, x2, gamma = torch.randn(5, 32).half(), torch.randn(5, 32).half(), torch.randn(32).half()
    scale, zero = torch.rand(32) * 0.1 + 0.02, torch.randint(-5, 5, (32,), dtype=torch.int32)
    with called() as names:
        y, _, x = torch_npu.npu_add_rms_norm_quant(x1.npu(), x2.npu(), gamma.npu(), scale.npu(), zero.npu())
    assert "AddRmsNormQuant" in names
    assert torch.equal(x.cpu(), x1 + x2)
    off_by_one_at_ties(y, normalised(x1 + x2, gamma) / scale.double() + zero)


def test_the_quantised_gradient_of_rms_norm() -> None:
    x, gamma, dy = torch.randn(2, 4, 64).half(), torch.randn(64).half(), torch.randn(2, 4, 64).half()
    wide = [t.double().requires_grad_() for t in (x, gamma)]
    normalised(*wide).backward(dy.double())
    rstd = (1 / torch.sqrt(x.double().square().mean(-1) + 1e-6)).float()
    scale, offset = torch.tensor([0.05]), torch.tensor([3], dtype=torch.int32)
    with called() as names:
        dx, dgamma = torch_npu._npu_rms_norm_backward_quant(
            dy.npu(), x.npu(), rstd.npu(), gamma.npu(), scale.npu(), offset_x=offset.npu(), div_mode=True
        )
    assert "RmsNormGradQuant" in names
    assert wide[0].grad is not None
    off_by_one_at_ties(dx, wide[0].grad / 0.05 + 3)
    near(dgamma, wide[1].grad, 1e-3)


@pytest.mark.parametrize("approximate", ["none", "tanh"])
@pytest.mark.parametrize("dst", [torch.int8, torch.float8_e4m3fn])
@pytest.mark.parametrize("dynamic", [True, False])
def test_gelu_quant(dynamic: bool, dst: torch.dtype, approximate: str) -> None:
    x, scale, offset = torch.randn(6, 32).half(), (torch.rand(32) * 20).half(), torch.randn(32).half()
    with called() as names:
        y, out_scale = torch_npu.npu_gelu_quant(
            x.npu(),
            input_scale=scale.npu(),
            input_offset=None if dynamic else offset.npu(),
            approximate=approximate,
            quant_mode="dynamic" if dynamic else "static",
            dst_type=dst,
        )
    assert "GeluQuant" in names
    values = nn.gelu(x.double(), approximate=approximate) * scale.double()
    if dynamic:
        measure = values.abs().amax(-1) / (127 if dst == torch.int8 else 448)
        near(out_scale, measure, 1e-4)
        values = values / measure[:, None]
    else:
        values = values + offset.double()
    if dst == torch.int8:
        off_by_one_at_ties(y, values)
    else:
        near(y.cpu().float(), values.float().to(dst).float(), 0.13)


@pytest.mark.parametrize("round_mode", range(5))
@pytest.mark.parametrize("dst", [torch.int8, torch.float8_e4m3fn])
def test_dequant_swiglu_quant(dst: torch.dtype, round_mode: int) -> None:
    x, scale = torch.randint(-300, 300, (5, 64), dtype=torch.int32), torch.rand(1, 64) * 0.02
    arguments: dict[str, Any] = {"activate_left": True, "quant_mode": 1, "dst_type": dst, "round_mode": round_mode}
    if round_mode == 1 or (round_mode and dst != torch.int8):
        with pytest.raises(RuntimeError, match="round_mode"):
            torch_npu.npu_dequant_swiglu_quant(x.npu(), weight_scale=scale.npu(), **arguments)
        return
    with called() as names:
        y, measure = torch_npu.npu_dequant_swiglu_quant(x.npu(), weight_scale=scale.npu(), **arguments)
    assert "DequantSwigluQuantV2" in names
    left, right = (x.double() * scale.double()).chunk(2, -1)
    values = nn.silu(left) * right
    expected = values.abs().amax(-1) / (127 if dst == torch.int8 else 448)
    near(measure, expected, 1e-4)
    values = values / expected[:, None]
    if dst == torch.int8:
        rounded = {0: torch.round, 2: torch.floor, 3: torch.ceil, 4: torch.trunc}[round_mode](values)
        off_by_one_at_ties(y, rounded)
    else:
        near(y.cpu().float(), values.float().to(dst).float(), 0.13)


def test_dequant_swiglu_quant_without_options() -> None:
    x, scale = torch.randint(-300, 300, (5, 64), dtype=torch.int32), torch.rand(1, 64) * 0.02
    with called() as names:
        y, measure = torch_npu.npu_dequant_swiglu_quant(x.npu(), weight_scale=scale.npu(), quant_mode=1)
    assert "DequantSwigluQuant" in names
    left, right = (x.double() * scale.double()).chunk(2, -1)
    values = left * nn.silu(right)
    near(measure, values.abs().amax(-1) / 127, 1e-4)
    off_by_one_at_ties(y, values / values.abs().amax(-1, keepdim=True) * 127)


@pytest.mark.parametrize("limit", [0.0, 0.7])
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("counts", [None, [1, 2]])
def test_the_gradient_of_swiglu_group_quant(counts: list[int] | None, weighted: bool, limit: float) -> None:
    x, grad, weight = torch.randn(4, 16), torch.randn(4, 8), torch.randn(4, 1)
    leaves = [t.double().requires_grad_() for t in (x, weight)]
    left, right = leaves[0].chunk(2, -1)
    if limit:
        left, right = left.clamp(max=limit), right.clamp(-limit, limit)
    origin = nn.silu(left) * right
    y = origin * leaves[1] if weighted else origin
    y[: sum(counts) if counts else None].backward(grad[: sum(counts) if counts else None].double())
    index = None if counts is None else torch.tensor(counts).npu()
    more = {"weight": weight.npu(), "y_origin": origin.detach().float().npu()} if weighted else {}
    with called() as names:
        grad_x, grad_weight = torch_npu.npu_swiglu_group_quant_backward(
            grad.npu(), x.npu(), group_index=index, clamp_limit=limit, **more
        )
    assert "SwigluGroupQuantGrad" in names
    near(grad_x, leaves[0].grad)
    if weighted:
        near(grad_weight, leaves[1].grad)
