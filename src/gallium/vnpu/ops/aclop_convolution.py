"""Convolutions through CANN's older interface, in two and three dimensions.

Strides and dilations come for every dimension of the image, N and C first; pads come as pairs, before and after, for
each of the others (op-plugin's calls).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gallium.vnpu.aclop import aclop
from gallium.vnpu.checks import check_shape
from gallium.vnpu.precision import cast, wide
from gallium.vnpu.refusals import Illegal, Unsupported
from gallium.vnpu.writing import write

Ints = tuple[int, ...]
LAYOUTS = {4: "NCHW", 5: "NCDHW"}


@aclop("Conv2D", "Conv3D", cube=True)
def conv(
    y: Tensor,
    /,
    x: Tensor,
    filter: Tensor,
    bias: Tensor | None = None,
    *,
    strides: Ints,
    pads: Ints,
    dilations: Ints,
    groups: int = 1,
    data_format: str | bool,
) -> None:
    """torch.nn.functional.conv2d, conv3d."""
    _check_layout(data_format, x)
    stride, pad, dilation = _spatial("strides", strides, x), _even(pads), _spatial("dilations", dilations, x)
    shift = cast(bias, torch.float32)
    write(y, torch.convolution(wide(x), wide(filter), shift, stride, pad, dilation, False, [0] * len(pad), groups))


@aclop("Conv2DTranspose", "Conv3DTranspose", cube=True)
def conv_transpose(
    y: Tensor,
    /,
    output_size: Tensor,
    x: Tensor,
    filter: Tensor,
    bias: Tensor | None = None,
    *,
    strides: Ints,
    pads: Ints,
    output_padding: Ints,
    dilations: Ints,
    groups: int,
    data_format: str | bool,
) -> None:
    """torch.nn.functional.conv_transpose2d, conv_transpose3d."""
    _check_layout(data_format, x)
    check_shape("the output", y, output_size.tolist())
    stride, pad, dilation = _spatial("strides", strides, x), _even(pads), _spatial("dilations", dilations, x)
    more = output_padding[2:]
    shift = cast(bias, torch.float32)
    write(y, torch.convolution(wide(x), wide(filter), shift, stride, pad, dilation, True, more, groups))


@aclop("Conv2DBackpropInput", "Conv3DBackpropInput", cube=True)
def conv_backprop_input(
    y: Tensor,
    /,
    input_size: Tensor,
    filter: Tensor,
    out_backprop: Tensor,
    *,
    strides: Ints,
    pads: Ints,
    dilations: Ints,
    groups: int,
    data_format: str | bool,
) -> None:
    """The gradient of a convolution to its input, of size `input_size`."""
    _check_layout(data_format, out_backprop)
    grad, weight = wide(out_backprop), wide(filter)
    x = grad.new_empty(1).expand(input_size.tolist())
    write(y, _gradient(grad, x, weight, strides, pads, dilations, groups, 0))


@aclop("Conv2DBackpropFilter", "Conv3DBackpropFilter", cube=True)
def conv_backprop_filter(
    y: Tensor,
    /,
    x: Tensor,
    filter_size: Tensor,
    out_backprop: Tensor,
    *,
    strides: Ints,
    pads: Ints,
    dilations: Ints,
    groups: int,
    data_format: str | bool,
) -> None:
    """The gradient of a convolution to its filter, of size `filter_size`."""
    _check_layout(data_format, x)
    grad, image = wide(out_backprop), wide(x)
    weight = grad.new_empty(1).expand(filter_size.tolist())
    write(y, _gradient(grad, image, weight, strides, pads, dilations, groups, 1))


def _gradient(
    grad: Tensor, x: Tensor, weight: Tensor, strides: Ints, pads: Ints, dilations: Ints, groups: int, which: int
) -> Tensor:
    stride, pad, dilation = _spatial("strides", strides, x), _even(pads), _spatial("dilations", dilations, x)
    mask = [i == which for i in range(3)]
    gradients = torch.ops.aten.convolution_backward(
        grad, x, weight, None, stride, pad, dilation, False, [0] * len(pad), groups, mask
    )
    result: Tensor = gradients[which]
    return result


def _check_layout(data_format: str | bool, x: Tensor) -> None:
    # Where op-plugin writes the text as a literal, C++ takes it for a bool (SlowConvDilated2DKernelNpu.cpp).
    if data_format is not True and LAYOUTS.get(x.dim()) != data_format:
        raise Unsupported("data_format", data_format, f"NCHW or NCDHW, of the image's {x.dim()} dimensions")


def _spatial(name: str, values: Sequence[int], x: Tensor) -> Sequence[int]:
    """Those of height and width, and of depth."""
    if len(values) != x.dim() or tuple(values[:2]) != (1, 1):
        raise Illegal(name, values, f"{x.dim()} numbers, 1 for N and for C")
    return values[2:]


def _even(pads: Ints) -> Ints:
    """One number for each pair of pads."""
    if pads[0::2] != pads[1::2]:
        raise Unsupported("pads", pads, "as many before as after")
    return pads[0::2]
