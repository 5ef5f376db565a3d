"""Deformable convolution and its gradient.

Each element of the kernel reads the image at a place of its own: the usual one plus an offset, between pixels by
bilinear interpolation, times a mask. From op-plugin's page of torch_npu.npu_deformable_conv2d; the order of the offsets
(all x, all y, all masks) is that of its test_deformable_conv2d.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gallium.vnpu.checks import check_dims, check_not_empty, check_shape
from gallium.vnpu.refusals import Illegal
from gallium.vnpu.registry import op
from gallium.vnpu.writing import write

Ints = tuple[int, ...]
aten: Any = torch.ops.aten
LARGEST_KERNEL, MOST_WEIGHTS_OF_A_CHANNEL = 2048, 65535
SAMPLING = (0, 0, False)  # of grid_sampler_2d: bilinear, zeros outside, corners not aligned


@op("DeformableConv2d")
def deformable_conv2d(
    x: Tensor,
    weight: Tensor,
    offset: Tensor,
    bias: Tensor | None,
    kernel_size: Ints,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    groups: int,
    deformable_groups: int,
    modulated: bool,
    out: Tensor,
    deformed: Tensor,
) -> None:
    """deformed: what the kernel reads, [batch, channels, rows * kernel rows, columns * kernel columns]."""
    places = _Places(kernel_size, stride, padding, dilation, groups, deformable_groups, modulated)
    places.check(x, weight, offset)
    values, mask = places.read(x, offset)
    read = places.laid_out(values if mask is None else values * mask)
    write(deformed, read)
    shift = None if bias is None else bias.float()
    write(out, torch.conv2d(read, weight.float(), shift, stride=kernel_size, groups=groups))


@op("DeformableConv2dBackward")
def deformable_conv2d_backward(
    x: Tensor,
    grad_output: Tensor,
    deformed: Tensor,
    weight: Tensor,
    offset: Tensor,
    kernel_size: Ints,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    groups: int,
    deformable_groups: int,
    modulated: bool,
    grad_input: Tensor,
    grad_weight: Tensor,
    grad_offset: Tensor,
    grad_bias: Tensor,
) -> None:
    """The gradients of DeformableConv2d; `deformed` is its second output."""
    places = _Places(kernel_size, stride, padding, dilation, groups, deformable_groups, modulated)
    places.check(x, weight, offset)
    whole = kernel_size, [0, 0], [1, 1], False, [0, 0], groups, [True, True, True]
    grads = aten.convolution_backward(grad_output.float(), deformed.float(), weight.float(), [weight.shape[0]], *whole)
    write(grad_weight, grads[1])
    write(grad_bias, grads[2])
    values, mask = places.read(x, offset)
    grad = places.by_place(grads[0])
    parts = [] if mask is None else [(grad * values).sum(2, keepdim=True)]
    grad_values = grad if mask is None else grad * mask
    images, grid = places.images(x), places.grid(x, offset)
    flat = grad_values.flatten(0, 1).reshape(*images.shape[:2], *grid.shape[1:3])
    grad_images, grad_grid = aten.grid_sampler_2d_backward(flat, images, grid, *SAMPLING, [True, True])
    write(grad_input, grad_images.view(x.shape))
    batch = x.shape[0]
    shape = batch, deformable_groups, 1, *grad.shape[3:]
    height, width = x.shape[-2:]
    along = [grad_grid[..., 0] * (2 / width), grad_grid[..., 1] * (2 / height)]
    parts = [part.reshape(shape) for part in along] + parts
    # [batch, group, part, row, kernel row, column, kernel column] to the order of the offsets
    together = torch.cat(parts, 2).permute(0, 2, 1, 4, 6, 3, 5)
    write(grad_offset, together.reshape(offset.shape))


@dataclass(frozen=True)
class _Places:
    """Where the kernel's elements read the image."""

    kernel: Ints
    stride: Ints
    padding: Ints
    dilation: Ints
    groups: int
    deformable_groups: int
    modulated: bool

    def check(self, x: Tensor, weight: Tensor, offset: Tensor) -> None:
        """Raise Illegal for what the documentation forbids."""
        for name, tensor in (("input", x), ("weight", weight), ("offset", offset)):
            check_dims(name, tensor, 4, 4)
            check_not_empty(name, tensor)
        if [len(v) for v in (self.kernel, self.stride, self.padding, self.dilation)] != [2, 4, 4, 4]:
            raise Illegal("the lengths of kernel_size, stride, padding, dilation", "others", "2, 4, 4, 4")
        if (*self.stride[:2], *self.dilation[:2]) != (1, 1, 1, 1):
            raise Illegal("stride and dilation", (self.stride, self.dilation), "1 along batch and channels")
        elements = self.kernel[0] * self.kernel[1]
        check_shape("weight", weight, (weight.shape[0], x.shape[1] // self.groups, *self.kernel))
        if elements > LARGEST_KERNEL or elements * weight.shape[1] > MOST_WEIGHTS_OF_A_CHANNEL:
            raise Illegal("kernel_size", self.kernel, f"of {LARGEST_KERNEL} elements at most")
        if x.shape[1] % self.deformable_groups:
            raise Illegal("deformable_groups", self.deformable_groups, f"a divisor of {x.shape[1]} channels")
        ends = [self.padding[0] + self.padding[1], self.padding[2] + self.padding[3]]
        size = [
            (length + end - (k - 1) * d - 1) // s + 1
            for length, end, k, d, s in zip(
                x.shape[2:], ends, self.kernel, self.dilation[2:], self.stride[2:], strict=True
            )
        ]
        parts = 3 if self.modulated else 2
        check_shape("offset", offset, (x.shape[0], self.deformable_groups * elements * parts, *size))

    def images(self, x: Tensor) -> Tensor:
        """A small image for each deformable group: [batch * groups, channels / groups, height, width]."""
        channels = x.shape[1] // self.deformable_groups
        return x.float().reshape(-1, channels, *x.shape[2:])

    def _parts(self, offset: Tensor) -> Tensor:
        """[part, batch, group, row, kernel row, column, kernel column]: parts x, y and mask."""
        parts = 3 if self.modulated else 2
        split = offset.float().reshape(offset.shape[0], parts, self.deformable_groups, *self.kernel, *offset.shape[2:])
        return split.permute(1, 0, 2, 5, 3, 6, 4)

    def grid(self, x: Tensor, offset: Tensor) -> Tensor:
        """What grid_sampler_2d takes: [batch * groups, rows * kernel rows, columns * kernel columns, 2]."""
        parts = self._parts(offset)
        rows, columns = offset.shape[2:]
        top = torch.arange(rows)[:, None] * self.stride[2] - self.padding[0]
        left = torch.arange(columns)[:, None] * self.stride[3] - self.padding[2]
        y = parts[1] + (top + torch.arange(self.kernel[0]) * self.dilation[2])[:, :, None, None]
        x_place = parts[0] + (left + torch.arange(self.kernel[1]) * self.dilation[3])
        height, width = x.shape[-2:]
        both = torch.stack([(2 * x_place + 1) / width - 1, (2 * y + 1) / height - 1], -1)
        return both.flatten(0, 1).reshape(-1, rows * self.kernel[0], columns * self.kernel[1], 2)

    def read(self, x: Tensor, offset: Tensor) -> tuple[Tensor, Tensor | None]:
        """Values [batch, group, channel, row, kernel row, column, kernel column], and the mask for them."""
        sampled = aten.grid_sampler_2d(self.images(x), self.grid(x, offset), *SAMPLING)
        mask = self._parts(offset)[2].unsqueeze(2) if self.modulated else None
        return self.by_place(sampled.reshape(x.shape[0], -1, *sampled.shape[2:])), mask

    def by_place(self, image: Tensor) -> Tensor:
        """[batch, channels, rows * kernel rows, columns * kernel columns] as `read` has it."""
        batch, channels, height, width = image.shape
        split = height // self.kernel[0], self.kernel[0], width // self.kernel[1], self.kernel[1]
        return image.reshape(batch, self.deformable_groups, channels // self.deformable_groups, *split)

    def laid_out(self, values: Tensor) -> Tensor:
        """The inverse of `by_place`."""
        batch, groups, channels, rows, kernel_rows, columns, kernel_columns = values.shape
        return values.reshape(batch, groups * channels, rows * kernel_rows, columns * kernel_columns)
