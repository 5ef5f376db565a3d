"""Pooling: the maximum and the mean of windows, and the way back from maxima."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gallium.vnpu.checks import check_shape
from gallium.vnpu.precision import wide
from gallium.vnpu.registry import op, register
from gallium.vnpu.writing import into, write

Ints = tuple[int, ...]
aten: Any = torch.ops.aten
PRECISION = {"cube_math_type": "chooses the precision of the cube unit, which is not emulated"}


@op("MaxPool2dWithIndices")
def max_pool2d(
    x: Tensor, kernel: Ints, stride: Ints, padding: Ints, dilation: Ints, ceil_mode: bool, out: Tensor, indices: Tensor
) -> None:
    """torch.max_pool2d_with_indices; the indices may be of 32 bits."""
    _maxima(aten.max_pool2d_with_indices, x, kernel, stride, padding, dilation, ceil_mode, out, indices)


@op("MaxPool3dWithArgmax")
def max_pool3d(
    x: Tensor, kernel: Ints, stride: Ints, padding: Ints, dilation: Ints, ceil_mode: bool, out: Tensor, indices: Tensor
) -> None:
    """torch.max_pool3d_with_indices; the indices may be of 32 bits."""
    _maxima(aten.max_pool3d_with_indices, x, kernel, stride, padding, dilation, ceil_mode, out, indices)


@op("MaxPool2dWithMask")
def max_pool2d_with_mask(
    x: Tensor, kernel: Ints, stride: Ints, padding: Ints, dilation: Ints, ceil_mode: bool, out: Tensor, mask: Tensor
) -> None:
    """max_pool2d that tells where the maxima are in bits, for MaxPool2dWithMaskBackward alone to read.

    mask int8 [..., places in the window, bytes] has room for more than one bit for each output element (op-plugin's
    MaxPool2dWithIndicesKernelNpuOpApi.cpp). Which bit is which is not documented; here bit p of row k is set if the
    maximum of window p is its element k.
    """
    values, indices = aten.max_pool2d_with_indices(x, kernel, stride, padding, dilation, ceil_mode)
    write(out, values)
    places = kernel[0] * kernel[1]
    check_shape("the mask", mask, (*x.shape[:-2], places, 32 * (-(-out.shape[-2:].numel() // 16) + 1)))
    chosen = _place_in_window(indices, x.shape[-1], kernel, stride or kernel, padding, dilation)
    hits = chosen.flatten(-2).unsqueeze(-2) == torch.arange(places)[:, None]
    mask.zero_()
    packed = packed_bits(hits)
    mask[..., : packed.shape[-1]] = packed.view(torch.int8)


@op("AdaptiveMaxPool2d")
def adaptive_max_pool2d(x: Tensor, output_size: Ints, out: Tensor, indices: Tensor) -> None:
    """torch.nn.functional.adaptive_max_pool2d."""
    for output, value in zip((out, indices), aten.adaptive_max_pool2d(x, output_size), strict=True):
        write(output, value)


@op("AdaptiveMaxPool3d")
def adaptive_max_pool3d(x: Tensor, output_size: Ints, out: Tensor, indices: Tensor) -> None:
    """torch.nn.functional.adaptive_max_pool3d; the indices may be of 32 bits."""
    for output, value in zip((out, indices), aten.adaptive_max_pool3d(x, output_size), strict=True):
        write(output, value)


@op("AvgPool2d", unused=PRECISION)
def avg_pool2d(
    x: Tensor,
    kernel: Ints,
    stride: Ints,
    padding: Ints,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int,
    cube_math_type: int,
    out: Tensor,
) -> None:
    """torch.nn.functional.avg_pool2d; divisor_override 0 means none."""
    into(aten.avg_pool2d, out, x, kernel, stride, padding, ceil_mode, count_include_pad, divisor_override or None)


@op("AvgPool3d")
def avg_pool3d(
    x: Tensor,
    kernel: Ints,
    stride: Ints,
    padding: Ints,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int,
    out: Tensor,
) -> None:
    """torch.nn.functional.avg_pool3d; divisor_override 0 means none."""
    divisor = divisor_override or None
    write(out, aten.avg_pool3d(wide(x), kernel, stride, padding, ceil_mode, count_include_pad, divisor))


def _adaptive_avg_pool(function: Any) -> Any:
    # Not by out=: aten would give the output the memory format of x.
    def adaptive_avg_pool(x: Tensor, output_size: Ints, out: Tensor) -> None:
        write(out, function(x, output_size))

    return adaptive_avg_pool


register("AdaptiveAvgPool2d", _adaptive_avg_pool(aten.adaptive_avg_pool2d))
register("AdaptiveAvgPool3d", _adaptive_avg_pool(aten.adaptive_avg_pool3d))


@op("MaxUnpool2d")
def max_unpool2d(x: Tensor, indices: Tensor, output_size: Ints, out: Tensor) -> None:
    """torch.nn.functional.max_unpool2d."""
    # Not by out=: aten would give the output the memory format of x.
    write(out, aten.max_unpool2d(x, indices.long(), output_size))


@op("MaxUnpool3d")
def max_unpool3d(x: Tensor, indices: Tensor, output_size: Ints, stride: Ints, padding: Ints, out: Tensor) -> None:
    """torch.nn.functional.max_unpool3d."""
    write(out, aten.max_unpool3d(x, indices.long(), output_size, stride, padding))


def packed_bits(bits: Tensor) -> Tensor:
    """bool [..., n] to uint8 [..., n / 8 rounded up], the lowest bit first."""
    padded = torch.nn.functional.pad(bits, (0, -bits.shape[-1] % 8))
    weights = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8)
    return (padded.view(*bits.shape[:-1], -1, 8) * weights).sum(-1, dtype=torch.uint8)


def unpacked_bits(packed: Tensor, n: int) -> Tensor:
    """uint8 [..., bytes] to bool [..., n], the lowest bit first."""
    shifts = torch.arange(8, dtype=torch.uint8)
    bits = (packed[..., : -(-n // 8), None] >> shifts) & 1
    return bits.flatten(-2)[..., :n].bool()


def window_offsets(out_h: int, out_w: int, stride: Ints, padding: Ints) -> tuple[Tensor, Tensor]:
    """The row [out_h, 1] and the column [out_w] of the image at which each window begins."""
    return torch.arange(out_h)[:, None] * stride[0] - padding[0], torch.arange(out_w) * stride[-1] - padding[-1]


def _place_in_window(indices: Tensor, width: int, kernel: Ints, stride: Ints, padding: Ints, dilation: Ints) -> Tensor:
    """Positions in the image to positions in the window, both counted row by row."""
    top, left = window_offsets(indices.shape[-2], indices.shape[-1], stride, padding)
    row = (indices // width - top) // dilation[0]
    column = (indices % width - left) // dilation[-1]
    return row * kernel[-1] + column


def _maxima(
    function: Any,
    x: Tensor,
    kernel: Ints,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    ceil_mode: bool,
    out: Tensor,
    indices: Tensor,
) -> None:
    values, where = function(x, kernel, stride, padding, dilation, ceil_mode)
    write(out, values)
    write(indices, where)
