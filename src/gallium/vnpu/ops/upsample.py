"""Upsampling by nearest neighbours and by linear and cubic interpolation, and the gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from gallium.vnpu.precision import wide
from gallium.vnpu.registry import Body, register
from gallium.vnpu.writing import write

Ints = tuple[int, ...]
Function = Callable[..., Tensor]
aten: Any = torch.ops.aten


def scale(factor: float) -> float | None:
    """torch_npu passes 0 or -1 for a factor that follows from the sizes."""
    return factor if factor > 0 else None


def by_size_1d(function: Function) -> Body:
    """(self, output_size, out)."""

    def body(x: Tensor, output_size: Ints, out: Tensor) -> None:
        write(out, function(wide(x), output_size, None))

    return body


def by_size_2d(function: Function) -> Body:
    """(self, output_size, out)."""

    def body(x: Tensor, output_size: Ints, out: Tensor) -> None:
        write(out, function(wide(x), output_size, None, None))

    return body


def nearest_1d(function: Function) -> Body:
    """(self, output_size, scale, out)."""

    def body(x: Tensor, output_size: Ints, scales: float, out: Tensor) -> None:
        write(out, function(wide(x), output_size, scale(scales)))

    return body


def nearest_2d(function: Function) -> Body:
    """(self, output_size, scale of height, scale of width, out)."""

    def body(x: Tensor, output_size: Ints, scales_h: float, scales_w: float, out: Tensor) -> None:
        write(out, function(wide(x), output_size, scale(scales_h), scale(scales_w)))

    return body


def nearest_3d(function: Function) -> Body:
    """(self, output_size, scales of depth, height and width, out)."""

    def body(x: Tensor, output_size: Ints, scales_d: float, scales_h: float, scales_w: float, out: Tensor) -> None:
        write(out, function(wide(x), output_size, scale(scales_d), scale(scales_h), scale(scales_w)))

    return body


def nearest_1d_backward(function: Function) -> Body:
    """(grad_output, output_size, input_size, scale, grad_input)."""

    def body(grad: Tensor, output_size: Ints, input_size: Ints, scales: float, out: Tensor) -> None:
        write(out, function(wide(grad), output_size, input_size, scale(scales)))

    return body


def nearest_2d_backward(function: Function) -> Body:
    """(grad_output, output_size, input_size, scales of height and width, grad_input)."""

    def body(grad: Tensor, output_size: Ints, input_size: Ints, scales_h: float, scales_w: float, out: Tensor) -> None:
        write(out, function(wide(grad), output_size, input_size, scale(scales_h), scale(scales_w)))

    return body


def nearest_3d_backward(function: Function) -> Body:
    """(grad_output, output_size, input_size, scales of depth, height and width, grad_input)."""

    def body(
        grad: Tensor,
        output_size: Ints,
        input_size: Ints,
        scales_d: float,
        scales_h: float,
        scales_w: float,
        out: Tensor,
    ) -> None:
        scales = scale(scales_d), scale(scales_h), scale(scales_w)
        write(out, function(wide(grad), output_size, input_size, *scales))

    return body


def linear_1d(function: Function) -> Body:
    """(self, output_size, align_corners, scale, out)."""

    def body(x: Tensor, output_size: Ints, align_corners: bool, scales: float, out: Tensor) -> None:
        write(out, function(wide(x), output_size, align_corners, scale(scales)))

    return body


def linear_2d(function: Function) -> Body:
    """(self, output_size, align_corners, scales of height and width, out)."""

    def body(x: Tensor, output_size: Ints, align_corners: bool, scales_h: float, scales_w: float, out: Tensor) -> None:
        write(out, function(wide(x), output_size, align_corners, scale(scales_h), scale(scales_w)))

    return body


def linear_3d(function: Function) -> Body:
    """(self, output_size, align_corners, scales of depth, height and width, out)."""

    def body(
        x: Tensor,
        output_size: Ints,
        align_corners: bool,
        scales_d: float,
        scales_h: float,
        scales_w: float,
        out: Tensor,
    ) -> None:
        scales = scale(scales_d), scale(scales_h), scale(scales_w)
        write(out, function(wide(x), output_size, align_corners, *scales))

    return body


def linear_1d_backward(function: Function) -> Body:
    """(grad_output, output_size, input_size, align_corners, scale, grad_input)."""

    def body(
        grad: Tensor, output_size: Ints, input_size: Ints, align_corners: bool, scales: float, out: Tensor
    ) -> None:
        write(out, function(wide(grad), output_size, input_size, align_corners, scale(scales)))

    return body


def linear_2d_backward(function: Function) -> Body:
    """(grad_output, output_size, input_size, align_corners, scales of height and width, grad_input)."""

    def body(
        grad: Tensor,
        output_size: Ints,
        input_size: Ints,
        align_corners: bool,
        scales_h: float,
        scales_w: float,
        out: Tensor,
    ) -> None:
        write(out, function(wide(grad), output_size, input_size, align_corners, scale(scales_h), scale(scales_w)))

    return body


def linear_3d_backward(function: Function) -> Body:
    """(grad_output, output_size, input_size, align_corners, scales of depth, height and width, grad_input)."""

    def body(
        grad: Tensor,
        output_size: Ints,
        input_size: Ints,
        align_corners: bool,
        scales_d: float,
        scales_h: float,
        scales_w: float,
        out: Tensor,
    ) -> None:
        scales = scale(scales_d), scale(scales_h), scale(scales_w)
        write(out, function(wide(grad), output_size, input_size, align_corners, *scales))

    return body


UPSAMPLES: Mapping[str, tuple[Callable[[Function], Body], Function]] = {
    "Nearest1d": (by_size_1d, aten.upsample_nearest1d),
    "Nearest1dV2": (nearest_1d, aten.upsample_nearest1d),
    "Nearest1dBackward": (nearest_1d_backward, aten.upsample_nearest1d_backward),
    "Nearest2d": (by_size_2d, aten.upsample_nearest2d),
    "Nearest2dV2": (nearest_2d, aten.upsample_nearest2d),
    "Nearest2dBackward": (nearest_2d_backward, aten.upsample_nearest2d_backward),
    "Nearest3d": (nearest_3d, aten.upsample_nearest3d),
    "Nearest3dBackward": (nearest_3d_backward, aten.upsample_nearest3d_backward),
    "NearestExact1d": (nearest_1d, aten._upsample_nearest_exact1d),
    "NearestExact1dBackward": (nearest_1d_backward, aten._upsample_nearest_exact1d_backward),
    "NearestExact2d": (nearest_2d, aten._upsample_nearest_exact2d),
    "NearestExact2dBackward": (nearest_2d_backward, aten._upsample_nearest_exact2d_backward),
    "NearestExact3d": (nearest_3d, aten._upsample_nearest_exact3d),
    "NearestExact3dBackward": (nearest_3d_backward, aten._upsample_nearest_exact3d_backward),
    "Linear1d": (linear_1d, aten.upsample_linear1d),
    "Linear1dBackward": (linear_1d_backward, aten.upsample_linear1d_backward),
    "Bilinear2d": (linear_2d, aten.upsample_bilinear2d),
    "Bilinear2dBackward": (linear_2d_backward, aten.upsample_bilinear2d_backward),
    "Bilinear2dBackwardV2": (linear_2d_backward, aten.upsample_bilinear2d_backward),
    "Bilinear2dAA": (linear_2d, aten._upsample_bilinear2d_aa),
    "Bilinear2dAABackward": (linear_2d_backward, aten._upsample_bilinear2d_aa_backward),
    "Bicubic2d": (linear_2d, aten.upsample_bicubic2d),
    "Bicubic2dBackward": (linear_2d_backward, aten.upsample_bicubic2d_backward),
    "Bicubic2dAA": (linear_2d, aten._upsample_bicubic2d_aa),
    "Bicubic2dAAGrad": (linear_2d_backward, aten._upsample_bicubic2d_aa_backward),
    "Trilinear3d": (linear_3d, aten.upsample_trilinear3d),
    "Trilinear3dBackward": (linear_3d_backward, aten.upsample_trilinear3d_backward),
}

for _name, (_factory, _function) in UPSAMPLES.items():
    register(f"Upsample{_name}", _factory(_function))
