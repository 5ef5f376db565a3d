"""Joining, splitting, repeating and rearranging: Cat, Stack, Repeat, RepeatInterleave, Flip, Roll and others."""

from __future__ import annotations

import torch
from torch import Tensor

from gallium.vnpu.formats import convert
from gallium.vnpu.registry import Illegal, op
from gallium.vnpu.tensors import DTYPES, Blocked
from gallium.vnpu.writing import into, write

Matrix = Tensor | Blocked


@op("Cat")
def cat(tensors: tuple[Tensor, ...], dim: int, out: Tensor) -> None:
    """One after the other along a dimension, in the output's type."""
    into(torch.cat, out, tensors, dim)


@op("Stack")
def stack(tensors: tuple[Tensor, ...], dim: int, out: Tensor) -> None:
    """Side by side along a new dimension, in the output's type."""
    into(torch.stack, out, tensors, dim)


@op("ChunkCat")
def chunk_cat(tensors: tuple[Tensor, ...], dim: int, num_chunks: int, out: Tensor) -> None:
    """Each tensor cut into chunks along a dimension, the last one filled up with zeros; chunk by chunk side by side."""
    write(out, torch.ops.aten._chunk_cat(list(tensors), dim, num_chunks))


@op("SplitWithSize")
def split_with_size(self: Tensor, split_sizes: tuple[int, ...], dim: int, outs: tuple[Tensor, ...]) -> None:
    """Pieces of the given sizes along a dimension."""
    for out, piece in zip(outs, torch.split(self, list(split_sizes), dim), strict=True):
        write(out, piece)


@op("Repeat")
def repeat(self: Tensor, repeats: tuple[int, ...], out: Tensor) -> None:
    """The whole tensor, repeated along each dimension."""
    shape = (1,) * (len(repeats) - self.dim()) + tuple(self.shape)
    if out.shape != tuple(n * size for n, size in zip(repeats, shape, strict=True)):
        raise Illegal("the output's shape", list(out.shape), "that of self times the repeats")
    if out.numel():
        split = [x for pair in zip(repeats, shape, strict=True) for x in pair]
        out.view(split).copy_(self.reshape([x for size in shape for x in (1, size)]))


@op("RepeatInterleaveIntWithDim")
def repeat_interleave_int(self: Tensor, repeats: int, dim: int, output_size: int, out: Tensor) -> None:
    """Each slice `repeats` times in a row."""
    source = self.reshape(1) if self.dim() == 0 else self
    dim %= source.dim()
    if output_size != source.shape[dim] * repeats:
        raise Illegal("output_size", output_size, f"the length of the result, {source.shape[dim] * repeats}")
    if output_size:
        torch.unflatten(out, dim, (source.shape[dim], repeats)).copy_(source.unsqueeze(dim + 1))


@op("RepeatInterleaveInt")
def repeat_interleave_int_flat(self: Tensor, repeats: int, output_size: int, out: Tensor) -> None:
    """Each element `repeats` times in a row."""
    repeat_interleave_int(self.reshape(-1), repeats, 0, output_size, out)


@op("RepeatInterleaveWithDim")
def repeat_interleave(self: Tensor, repeats: Tensor, dim: int, output_size: int, out: Tensor) -> None:
    """Each slice as often in a row as `repeats` says for it."""
    write(out, torch.repeat_interleave(self, repeats.reshape(-1), dim, output_size=output_size))


@op("RepeatInterleave")
def repeat_interleave_flat(self: Tensor, repeats: Tensor, output_size: int, out: Tensor) -> None:
    """Each element as often in a row as `repeats` says for it."""
    write(out, torch.repeat_interleave(self.reshape(-1), repeats.reshape(-1), output_size=output_size))


@op("RepeatInterleaveTensor")
def repeat_interleave_places(repeats: Tensor, total: int, out: Tensor) -> None:
    """Each place in `repeats` as often in a row as the number there says."""
    write(out, torch.repeat_interleave(repeats, output_size=total))


@op("RepeatInterleaveGrad")
def repeat_interleave_grad(grad: Tensor, repeats: Tensor, dim: int, out: Tensor) -> None:
    """Sums of the gradient over the copies of each slice."""
    out.zero_()
    out.index_add_(dim, torch.repeat_interleave(repeats.reshape(-1)), grad.to(out.dtype))


@op("Flip")
def flip(self: Tensor, dims: tuple[int, ...], out: Tensor) -> None:
    """Backwards along the given dimensions."""
    write(out, torch.flip(self, dims))


@op("Roll")
def roll(self: Tensor, shifts: tuple[int, ...], dims: tuple[int, ...] | None, out: Tensor) -> None:
    """Shifted around; without dimensions, over the flattened tensor."""
    write(out, torch.roll(self, shifts, dims or ()))


@op("ChannelShuffle")
def channel_shuffle(self: Tensor, groups: int, out: Tensor) -> None:
    """Channels (dimension 1) of `groups` groups, dealt out in turn."""
    write(out, torch.channel_shuffle(self, groups))


@op("ConfusionTranspose")
def confusion_transpose(
    self: Tensor, perm: tuple[int, ...], shape: tuple[int, ...], transpose_first: bool, out: Tensor
) -> None:
    """Permute and reshape, in this order or the other."""
    write(out, self.permute(perm).reshape(shape) if transpose_first else self.reshape(shape).permute(perm))


@op("TransformBiasRescaleQkv")
def transform_bias_rescale_qkv(qkv: Tensor, bias: Tensor, heads: int, q: Tensor, k: Tensor, v: Tensor) -> None:
    """A projection plus bias, cut into query, key and value by heads; the query is scaled for attention."""
    parts = torch.ops.aten._transform_bias_rescale_qkv(qkv.contiguous(), bias.contiguous(), heads)
    for out, part in zip((q, k, v), parts, strict=True):
        write(out, part)


@op("Cast")
def cast(self: Tensor, dtype: int, out: Tensor) -> None:
    """The same numbers in the type `dtype`."""
    if DTYPES.get(dtype) != out.dtype:
        raise Illegal("dtype", dtype, f"the code of the output's type, {out.dtype}")
    write(out, self)


@op("NpuFormatCast")
def format_cast(self: Matrix, out: Matrix) -> None:
    """A copy into another format."""
    convert(self, out)


@op("UnfoldGrad")
def unfold_grad(grad: Tensor, input_sizes: tuple[int, ...], dim: int, size: int, step: int, out: Tensor) -> None:
    """Gradient of Tensor.unfold: overlapping windows summed."""
    write(out, torch.ops.aten.unfold_backward(grad, input_sizes, dim, size, step))
