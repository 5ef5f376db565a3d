"""Convolutions and their gradients, and the unfolding of images into columns."""

from __future__ import annotations

import torch
from torch import Tensor

from gallium.vnpu.checks import FLOATS, check_dtype, check_same_dtype, check_shape
from gallium.vnpu.precision import wide
from gallium.vnpu.refusals import Illegal
from gallium.vnpu.registry import op
from gallium.vnpu.tensors import Blocked, dense
from gallium.vnpu.writing import into, write

Ints = tuple[int, ...]
PRECISION = {"cube_math_type": "chooses the precision of the cube unit, which is not emulated"}


@op("Convolution", cube=True, unused=PRECISION)
def convolution(
    x: Tensor,
    weight: Tensor | Blocked,
    bias: Tensor | None,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    transposed: bool,
    output_padding: Ints,
    groups: int,
    out: Tensor,
    cube_math_type: int,
) -> None:
    """torch.convolution."""
    _check(x, dense(weight))
    shift = None if bias is None else bias.to(torch.float32)
    filters = wide(dense(weight))
    write(
        out,
        torch.convolution(wide(x), filters, shift, stride, padding, dilation, transposed, output_padding, groups),
    )


@op("ConvolutionBackward", cube=True, unused=PRECISION)
def convolution_backward(
    grad_output: Tensor,
    x: Tensor,
    weight: Tensor | Blocked,
    bias_sizes: Ints | None,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    transposed: bool,
    output_padding: Ints,
    groups: int,
    output_mask: tuple[bool, ...],
    cube_math_type: int,
    grad_input: Tensor | None,
    grad_weight: Tensor | None,
    grad_bias: Tensor | None,
) -> None:
    """The gradients that output_mask asks for."""
    _check(x, dense(weight))
    grads = torch.ops.aten.convolution_backward(
        wide(grad_output),
        wide(x),
        wide(dense(weight)),
        bias_sizes,
        stride,
        padding,
        dilation,
        transposed,
        output_padding,
        groups,
        list(output_mask),
    )
    for wanted, out, value in zip(output_mask, (grad_input, grad_weight, grad_bias), grads, strict=True):
        if wanted and out is not None:
            write(out, value)


@op("ConvDepthwise2d", cube=True, unused=PRECISION)
def conv_depthwise2d(
    x: Tensor,
    weight: Tensor | Blocked,
    kernel_size: Ints,
    bias: Tensor | None,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    out: Tensor,
    cube_math_type: int,
) -> None:
    """A convolution with a group for each input channel."""
    filters = dense(weight)
    _check(x, filters)
    if tuple(kernel_size) != tuple(filters.shape[2:]):
        raise Illegal("kernel_size", kernel_size, f"that of the weight, {list(filters.shape[2:])}")
    shift = None if bias is None else bias.to(torch.float32)
    write(out, torch.conv2d(wide(x), wide(filters), shift, stride, padding, dilation, x.shape[-3]))


@op("ConvTbc", cube=True, unused=PRECISION)
def conv_tbc(x: Tensor, weight: Tensor, bias: Tensor, pad: int, out: Tensor, cube_math_type: int) -> None:
    """A convolution along the first dimension: x [time, batch, in], weight [kernel, in, out]."""
    _check(x, weight)
    write(out, torch.conv_tbc(wide(x), wide(weight), wide(bias), pad))


@op("ConvTbcBackward", cube=True, unused=PRECISION)
def conv_tbc_backward(
    grad_output: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    pad: int,
    cube_math_type: int,
    grad_input: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
) -> None:
    """The gradients of ConvTbc."""
    _check(x, weight)
    check_shape("grad_bias", grad_bias, bias.shape)
    in_order = wide(grad_output).permute(1, 2, 0), wide(x).permute(1, 2, 0), wide(weight).permute(2, 1, 0)
    grads = torch.ops.aten.convolution_backward(
        *in_order, list(bias.shape), [1], [pad], [1], False, [0], 1, [True, True, True]
    )
    write(grad_input, grads[0].permute(2, 0, 1))
    write(grad_weight, grads[1].permute(2, 1, 0))
    write(grad_bias, grads[2])


@op("Im2col")
def im2col(x: Tensor, kernel_size: Ints, dilation: Ints, padding: Ints, stride: Ints, out: Tensor) -> None:
    """torch.nn.functional.unfold."""
    into(torch.ops.aten.im2col, out, x, kernel_size, dilation, padding, stride)


@op("Im2colBackward")
def im2col_backward(
    grad_output: Tensor,
    output_size: Ints,
    kernel_size: Ints,
    dilation: Ints,
    padding: Ints,
    stride: Ints,
    out: Tensor,
) -> None:
    """torch.nn.functional.fold: the columns added up into an image."""
    columns = wide(grad_output)
    write(out, torch.ops.aten.col2im(columns, output_size, kernel_size, dilation, padding, stride))


def _check(x: Tensor, weight: Tensor) -> None:
    check_dtype("input", x, FLOATS)
    check_same_dtype("weight", weight, "input", x)
