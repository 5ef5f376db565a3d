"""Pooling of images through CANN's older interface, and the unfolding of images into columns."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gallium.vnpu.aclop import aclop
from gallium.vnpu.ops.pooling import max_pool2d_with_mask
from gallium.vnpu.ops.pooling_backward import max_pool2d_with_mask_backward
from gallium.vnpu.precision import wide
from gallium.vnpu.refusals import Illegal, Unsupported, only
from gallium.vnpu.writing import write

Ints = tuple[int, ...]
aten: Any = torch.ops.aten


@aclop("MaxPoolWithArgmaxV1")
def max_pool(
    y: Tensor,
    argmax: Tensor,
    /,
    x: Tensor,
    *,
    ksize: Ints,
    strides: Ints,
    pads: Ints,
    dilation: Ints,
    ceil_mode: bool,
) -> None:
    """max_pool2d; `argmax` holds bits, as the mask of aclnnMaxPool2dWithMask does, 16 to an element."""
    kernel, stride, pad, pitch = (_middle(v) for v in (ksize, strides, pads, dilation))
    bits = argmax.view(torch.int8)
    mask = bits.new_empty(*bits.shape[:-1], 16 * bits.shape[-1])  # aclnn's mask has more room for the same bits
    max_pool2d_with_mask(x, kernel, stride, pad, pitch, ceil_mode, y, mask)
    write(bits, mask[..., : bits.shape[-1]])


@aclop("MaxPoolGradWithArgmaxV1")
def max_pool_grad(
    y: Tensor,
    /,
    x: Tensor,
    grad: Tensor,
    argmax: Tensor,
    *,
    ksize: Ints,
    strides: Ints,
    pads: Ints,
    dilations: Ints,
    ceil_mode: bool,
) -> None:
    """The gradient of max_pool2d; the mask may come from aclnnMaxPool2dWithMask as well."""
    kernel, stride, pad, pitch = (_middle(v) for v in (ksize, strides, pads, dilations))
    max_pool2d_with_mask_backward(grad, x, argmax.view(torch.int8), kernel, stride, pad, pitch, ceil_mode, y)


def _middle(values: Ints) -> Ints:
    if len(values) != 4:
        raise Illegal("ksize, strides, pads or dilation", values, "four numbers")
    return values[1:3]


@aclop("AvgPoolV2")
def avg_pool(
    y: Tensor,
    /,
    x: Tensor,
    *,
    ksize: Ints,
    strides: Ints,
    padding_mode: str,
    pads: Ints,
    data_format: str,
    global_pooling: bool,
    ceil_mode: bool,
    exclusive: bool,
    divisor_override: int,
) -> None:
    """avg_pool2d; `exclusive`: what is padded does not count. In ceil_mode the pads at the ends are longer already."""
    _only_calculated(padding_mode, data_format, global_pooling)
    pad = pads[0::2] if ceil_mode else _even(pads)
    divisor = divisor_override or None
    write(y, aten.avg_pool2d(wide(x), _last(ksize, 2), _last(strides, 2), pad, ceil_mode, not exclusive, divisor))


@aclop("AvgPoolV2Grad")
def avg_pool_grad(
    y: Tensor,
    /,
    input_size: Tensor,
    grad: Tensor,
    *,
    ksize: Ints,
    strides: Ints,
    padding_mode: str,
    pads: Ints,
    data_format: str,
    global_pooling: bool,
    ceil_mode: bool,
    exclusive: bool,
) -> None:
    """The gradient of AvgPoolV2."""
    _only_calculated(padding_mode, data_format, global_pooling)
    image = wide(grad).new_empty(1).expand(input_size.tolist())
    window = _last(ksize, 2), _last(strides, 2), _even(pads)
    write(y, aten.avg_pool2d_backward(wide(grad), image, *window, ceil_mode, not exclusive, None))


@aclop("MaxPool3D")
def max_pool_3d(
    y: Tensor,
    /,
    x: Tensor,
    *,
    ksize: Ints,
    strides: Ints,
    padding: str,
    pads: Ints,
    dilation: Ints,
    ceil_mode: int,
    data_format: str,
) -> None:
    """max_pool3d. In ceil_mode the pads at the ends are longer already."""
    only("padding", padding, "CALCULATED")
    only("data_format", data_format, "NCDHW")
    pad = pads[0::2] if ceil_mode else _even(pads)
    window = _last(ksize, 3), _last(strides, 3), pad, dilation[-3:]
    maxima = aten.max_pool3d_with_indices(x, *window, bool(ceil_mode))[0]
    write(y, maxima.unsqueeze(0) if y.dim() > x.dim() else maxima)  # op-plugin adds the batch to the output only


@aclop("MaxPool3DGrad")
def max_pool_3d_grad(
    y: Tensor,
    /,
    orig_x: Tensor,
    orig_y: Tensor,
    grads: Tensor,
    *,
    ksize: Ints,
    strides: Ints,
    padding: str,
    pads: Ints,
    data_format: str,
) -> None:
    """The gradient of MaxPool3D, to the first maximum of each window. The call does not tell the forward's dilation."""
    only("padding", padding, "CALCULATED")
    only("data_format", data_format, "NCDHW")
    image, longer = wide(orig_x), pads[0::2] != pads[1::2]
    window = _last(ksize, 3), _last(strides, 3), pads[0::2], [1, 1, 1], longer
    maxima, indices = aten.max_pool3d_with_indices(image, *window)
    if maxima.shape != orig_y.shape or not ((maxima == orig_y) | maxima.isnan()).all():
        raise Unsupported("orig_y", orig_y, "the maxima of windows without dilation")
    write(y, aten.max_pool3d_with_indices_backward(wide(grads), image, *window, indices))


@aclop("AvgPool3D")
def avg_pool_3d(
    y: Tensor,
    /,
    x: Tensor,
    *,
    ksize: Ints,
    strides: Ints,
    pads: Ints,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None = None,
    data_format: str,
) -> None:
    """avg_pool3d."""
    only("data_format", data_format, "NCDHW")
    window = _last(ksize, 3), _last(strides, 3), _even(pads)
    write(y, aten.avg_pool3d(wide(x), *window, ceil_mode, count_include_pad, divisor_override))


@aclop("AvgPool3DGrad")
def avg_pool_3d_grad(
    y: Tensor,
    /,
    input_size: Tensor,
    grad: Tensor,
    *,
    ksize: Ints,
    strides: Ints,
    pads: Ints,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None = None,
    data_format: str,
) -> None:
    """The gradient of AvgPool3D."""
    only("data_format", data_format, "NCDHW")
    if (
        len(set(pads)) > 1
    ):  # op-plugin passes them in the order H, W, D, unlike all others (AvgPool3dBackwardKernelNpu.cpp)
        raise Unsupported("pads", pads, "equal ones for depth, height and width")
    image = wide(grad).new_empty(1).expand(input_size.tolist())
    window = _last(ksize, 3), _last(strides, 3), _even(pads)
    write(y, aten.avg_pool3d_backward(wide(grad), image, *window, ceil_mode, count_include_pad, divisor_override))


@aclop("Im2col")
def im2col(
    y: Tensor, /, x: Tensor, *, ksizes: Ints, strides: Ints, dilations: Ints, padding_mode: str, pads: Ints
) -> None:
    """torch.nn.functional.unfold."""
    only("padding_mode", padding_mode, "CALCULATED")
    write(y, aten.im2col(x, ksizes, dilations, _even(pads), strides).view(y.shape))


@aclop("Col2im")
def col2im(
    y: Tensor, /, x: Tensor, output_size: Tensor, *, kernel_size: Ints, dilation: Ints, padding: Ints, stride: Ints
) -> None:
    """torch.nn.functional.fold, of columns [N, C, elements of the window, windows]."""
    columns = wide(x).flatten(1, 2)
    write(y, aten.col2im(columns, output_size.tolist(), kernel_size, dilation, padding, stride))


def _only_calculated(padding_mode: str, data_format: str, global_pooling: bool) -> None:
    only("padding_mode", padding_mode, "CALCULATED")
    only("data_format", data_format, "NCHW")
    only("global_pooling", global_pooling, False)


def _last(values: Ints, count: int) -> Ints:
    """Those of the image's own dimensions; N and C may come first, and have 1."""
    if len(values) < count or any(v != 1 for v in values[:-count]):
        raise Illegal("ksize or strides", values, f"{count} numbers, after a 1 each for N and C")
    return values[-count:]


def _even(pads: Ints) -> Ints:
    """One number for each pair of pads."""
    if pads[0::2] != pads[1::2]:
        raise Unsupported("pads", pads, "as many before as after")
    return pads[0::2]
