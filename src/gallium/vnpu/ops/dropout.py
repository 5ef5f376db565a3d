"""Dropout. Masks have one bit for each element, the lowest of a byte first; 1 keeps the element."""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

from gallium.vnpu.checks import check_floating
from gallium.vnpu.ops.random import generator, graph_generator
from gallium.vnpu.registry import Illegal, op, refuse_given
from gallium.vnpu.writing import into, write

_PLACES = torch.arange(8, dtype=torch.uint8, device="cpu")
_PROBABILITY_TYPE = "the type in which the NPU compares; the chosen bits differ from an NPU's anyway"


def pack_bits(bits: Tensor, out: Tensor) -> None:
    """Write bools `[n]` into bytes of eight; the bits after the last are 0."""
    padded = torch.nn.functional.pad(bits.to(torch.uint8), (0, out.numel() * 8 - bits.numel()))
    write(out, (padded.view(-1, 8) << _PLACES).sum(-1, dtype=torch.uint8).view(out.shape))


def unpack_bits(packed: Tensor, count: int) -> Tensor:
    """The first bits of bytes, as bools `[count]`."""
    return (packed.reshape(-1, 1) >> _PLACES).bitwise_and_(1).view(-1)[:count].bool()


def keep_mask(count: int, p: float, random: Generator, out: Tensor) -> None:
    """A mask that drops each of `count` elements with probability p."""
    if not 0 <= p <= 1:
        raise Illegal("p", p, "a probability")
    if out.numel() * 8 < count:
        raise Illegal("the mask's size", f"{out.numel()} bytes", f"enough for {count} bits")
    pack_bits(torch.rand(count, generator=random, dtype=torch.float32, device="cpu") >= p, out)


@op("DropoutGenMask")
def gen_mask(shape: tuple[int, ...], p: float, seed: int, offset: int, mask: Tensor) -> None:
    """A mask for a tensor of this shape."""
    keep_mask(math.prod(shape), p, generator(seed, offset), mask)


@op("DropoutGenMaskV2", unused={"probability_type": _PROBABILITY_TYPE})
def gen_mask_v2(shape: tuple[int, ...], p: float, seed: int, offset: int, probability_type: int, mask: Tensor) -> None:
    """A mask for a tensor of this shape."""
    keep_mask(math.prod(shape), p, generator(seed, offset), mask)


@op("DropoutGenMaskV2Tensor", unused={"probability_type": _PROBABILITY_TYPE})
def gen_mask_graph(
    shape: tuple[int, ...],
    p: float,
    seed: Tensor,
    offset: Tensor,
    offset_in_graph: int,
    probability_type: int,
    mask: Tensor,
) -> None:
    """DropoutGenMaskV2 in graphs."""
    keep_mask(math.prod(shape), p, graph_generator(seed, offset, offset_in_graph), mask)


def drop(x: Tensor, mask: Tensor, scale: float, out: Tensor) -> None:
    """The elements that the mask keeps, scaled; zero for the others."""
    check_floating("self", x)  # op-plugin gives the output the type of self
    if mask.numel() * 8 < x.numel():
        raise Illegal("the mask's size", f"{mask.numel()} bytes", f"enough for {x.numel()} bits")
    kept = unpack_bits(mask, x.numel()).view(x.shape)
    into(torch.mul, out, x, scale)
    torch.where(kept, out, out.new_zeros(()), out=out)


def scale_of(p: float) -> float:
    """What keeps the mean when elements are dropped with probability p."""
    return 1 / (1 - p) if p < 1 else 0.0


@op("DropoutDoMask")
def do_mask(self: Tensor, mask: Tensor, p: float, out: Tensor) -> None:
    """Dropout with a mask that is given."""
    drop(self, mask, scale_of(p), out)


@op("DropoutV3Grad")
def dropout_grad(grad_output: Tensor, mask: Tensor, scale: float, grad_input: Tensor) -> None:
    """The gradient of DropoutV3; unlike DropoutDoMask it is given 1 / (1 - p)."""
    drop(grad_output, mask, scale, grad_input)


@op("DropoutV3")
def dropout(
    self: Tensor, noise_shape: Tensor | None, p: float, seed: int, offset: int, out: Tensor, mask: Tensor
) -> None:
    """Dropout that makes its mask."""
    refuse_given(noise_shape=noise_shape)
    keep_mask(self.numel(), p, generator(seed, offset), mask)
    drop(self, mask, scale_of(p), out)


@op("DropoutV3Tensor")
def dropout_graph(
    self: Tensor,
    noise_shape: Tensor | None,
    p: float,
    seed: Tensor,
    offset: Tensor,
    offset_in_graph: int,
    out: Tensor,
    mask: Tensor,
) -> None:
    """DropoutV3 in graphs."""
    refuse_given(noise_shape=noise_shape)
    keep_mask(self.numel(), p, graph_generator(seed, offset, offset_in_graph), mask)
    drop(self, mask, scale_of(p), out)
