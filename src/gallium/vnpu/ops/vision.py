"""Sampling from grids, and affine grids."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gallium.vnpu.precision import wide
from gallium.vnpu.registry import Body, op, register
from gallium.vnpu.writing import write

aten: Any = torch.ops.aten


def _grid_sampler(function: Any) -> Body:
    def body(
        x: Tensor, grid: Tensor, interpolation_mode: int, padding_mode: int, align_corners: bool, out: Tensor
    ) -> None:
        write(out, function(wide(x), wide(grid), interpolation_mode, padding_mode, align_corners))

    return body


def _grid_sampler_backward(function: Any) -> Body:
    def body(
        grad_output: Tensor,
        x: Tensor,
        grid: Tensor,
        interpolation_mode: int,
        padding_mode: int,
        align_corners: bool,
        output_mask: tuple[bool, ...],
        grad_input: Tensor,
        grad_grid: Tensor,
    ) -> None:
        modes = interpolation_mode, padding_mode, align_corners
        # The kernel computes the gradient of the grid in any case; it leaves out the input's if it is not asked for.
        grads = function(wide(grad_output), wide(x), wide(grid), *modes, [output_mask[0], True])
        for wanted, out, value in zip(output_mask, (grad_input, grad_grid), grads, strict=True):
            if wanted:
                write(out, value)

    return body


register("GridSampler2D", _grid_sampler(aten.grid_sampler_2d))
register("GridSampler3D", _grid_sampler(aten.grid_sampler_3d))
register("GridSampler2DBackward", _grid_sampler_backward(aten.grid_sampler_2d_backward))
register("GridSampler3DBackward", _grid_sampler_backward(aten.grid_sampler_3d_backward))


@op("AffineGrid")
def affine_grid(theta: Tensor, size: tuple[int, ...], align_corners: bool, out: Tensor) -> None:
    """torch.nn.functional.affine_grid."""
    write(out, aten.affine_grid_generator(wide(theta), size, align_corners))
