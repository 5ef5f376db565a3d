"""The gradients of pooling."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gallium.vnpu.ops.pooling import PRECISION, Ints, aten, unpacked_bits, window_offsets
from gallium.vnpu.precision import wide
from gallium.vnpu.registry import op, register
from gallium.vnpu.writing import write


@op("MaxPool2dWithMaskBackward")
def max_pool2d_with_mask_backward(
    grad_output: Tensor,
    x: Tensor,
    mask: Tensor,
    kernel: Ints,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    ceil_mode: bool,
    grad_input: Tensor,
) -> None:
    """The gradient of MaxPool2dWithMask, from its mask."""
    out_h, out_w = grad_output.shape[-2:]
    pitch = dilation[0], dilation[-1]
    chosen = unpacked_bits(mask.view(torch.uint8), out_h * out_w).to(torch.int8).argmax(-2)
    place = chosen.view(*chosen.shape[:-1], out_h, out_w)
    top, left = window_offsets(out_h, out_w, stride or kernel, padding)
    row, column = top + place // kernel[-1] * pitch[0], left + place % kernel[-1] * pitch[1]
    indices = row * x.shape[-1] + column
    _from_indices(
        aten.max_pool2d_with_indices_backward,
        grad_output,
        x,
        indices,
        kernel,
        stride,
        padding,
        dilation,
        ceil_mode,
        grad_input,
    )


def _max_pool_backward(function: Any) -> Any:
    def max_pool_backward(
        grad_output: Tensor,
        x: Tensor,
        indices: Tensor,
        kernel: Ints,
        stride: Ints,
        padding: Ints,
        dilation: Ints,
        ceil_mode: bool,
        grad_input: Tensor,
    ) -> None:
        _from_indices(function, grad_output, x, indices, kernel, stride, padding, dilation, ceil_mode, grad_input)

    return max_pool_backward


register("MaxPool2dWithIndicesBackward", _max_pool_backward(aten.max_pool2d_with_indices_backward))
register("MaxPool3dWithArgmaxBackward", _max_pool_backward(aten.max_pool3d_with_indices_backward))


def _adaptive_max_pool_backward(function: Any) -> Any:
    def adaptive_max_pool_backward(grad_output: Tensor, x: Tensor, indices: Tensor, grad_input: Tensor) -> None:
        write(grad_input, function(wide(grad_output), wide(x), indices.long()))

    return adaptive_max_pool_backward


register("AdaptiveMaxPool2dBackward", _adaptive_max_pool_backward(aten.adaptive_max_pool2d_backward))
register("AdaptiveMaxPool3dBackward", _adaptive_max_pool_backward(aten.adaptive_max_pool3d_backward))


@op("AvgPool2dBackward", unused=PRECISION)
def avg_pool2d_backward(
    grad_output: Tensor,
    x: Tensor,
    kernel: Ints,
    stride: Ints,
    padding: Ints,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int,
    cube_math_type: int,
    grad_input: Tensor,
) -> None:
    """The gradient of AvgPool2d."""
    settings = kernel, stride, padding, ceil_mode, count_include_pad, divisor_override or None
    write(grad_input, aten.avg_pool2d_backward(wide(grad_output), wide(x), *settings))


@op("AvgPool3dBackward")
def avg_pool3d_backward(
    grad_output: Tensor,
    x: Tensor,
    kernel: Ints,
    stride: Ints,
    padding: Ints,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int,
    grad_input: Tensor,
) -> None:
    """The gradient of AvgPool3d."""
    settings = kernel, stride, padding, ceil_mode, count_include_pad, divisor_override or None
    write(grad_input, aten.avg_pool3d_backward(wide(grad_output), wide(x), *settings))


def _adaptive_avg_pool_backward(function: Any) -> Any:
    def adaptive_avg_pool_backward(grad_output: Tensor, x: Tensor, grad_input: Tensor) -> None:
        write(grad_input, function(wide(grad_output), wide(x)))

    return adaptive_avg_pool_backward


register("AdaptiveAvgPool2dBackward", _adaptive_avg_pool_backward(aten._adaptive_avg_pool2d_backward))
register("AdaptiveAvgPool3dBackward", _adaptive_avg_pool_backward(aten._adaptive_avg_pool3d_backward))


def _from_indices(
    function: Any,
    grad_output: Tensor,
    x: Tensor,
    indices: Tensor,
    kernel: Ints,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    ceil_mode: bool,
    grad_input: Tensor,
) -> None:
    where = indices.long()
    write(grad_input, function(wide(grad_output), wide(x), kernel, stride, padding, dilation, ceil_mode, where))
