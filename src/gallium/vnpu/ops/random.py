"""Random numbers, from PyTorch's CPU generator seeded with the NPU generator's seed and offset.

The same seed and offset give the same numbers, other ones others; they are not those of an NPU. The variants called
`...Tensor` are for graphs: seed and offset lie in device memory, so that each replay gives new numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor

from gallium.vnpu.ops._factories import Number
from gallium.vnpu.registry import Body, op, register
from gallium.vnpu.writing import into

_WORD = (1 << 64) - 1
_rrelu = torch.ops.aten.rrelu_with_noise.out


def generator(seed: int, offset: int) -> Generator:
    """A generator for one operator. PyTorch uses 32 bits of its seed only, so both numbers are mixed (splitmix64)."""
    mixed = 0
    for word in (seed, offset):
        mixed = (mixed + word + 0x9E3779B97F4A7C15) & _WORD
        mixed = ((mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9) & _WORD
        mixed = ((mixed ^ mixed >> 27) * 0x94D049BB133111EB) & _WORD
        mixed ^= mixed >> 31
    return Generator().manual_seed(mixed & 0xFFFFFFFF)


def graph_generator(seed: Tensor, offset: Tensor, offset_in_graph: int) -> Generator:
    """A generator from what a graph keeps on the device."""
    return generator(int(seed.item()), int(offset.item()) + offset_in_graph)


def _eager(method: Callable[..., Any]) -> Body:
    """(self, two parameters of the distribution, seed, offset)."""

    def body(self: Tensor, first: float, second: float, seed: int, offset: int) -> None:
        method(self, first, second, generator=generator(seed, offset))

    return body


def _in_graph(method: Callable[..., Any]) -> Body:
    """(self, two parameters of the distribution, seed, offset, offset within the graph)."""

    def body(self: Tensor, first: float, second: float, seed: Tensor, offset: Tensor, offset_in_graph: int) -> None:
        method(self, first, second, generator=graph_generator(seed, offset, offset_in_graph))

    return body


for _name, _method in (("Normal", Tensor.normal_), ("Uniform", Tensor.uniform_), ("Random", Tensor.random_)):
    register(f"Inplace{_name}", _eager(_method))
    register(f"Inplace{_name}Tensor", _in_graph(_method))


@op("InplaceRandomWithoutFromTo")
def random_inplace(self: Tensor, seed: int, offset: int) -> None:
    """Integers over the range of the type; for floats, those that it has exactly."""
    self.random_(generator=generator(seed, offset))


@op("InplaceRandomWithoutFromToTensor")
def random_inplace_graph(self: Tensor, seed: Tensor, offset: Tensor, offset_in_graph: int) -> None:
    """InplaceRandomWithoutFromTo in graphs."""
    self.random_(generator=graph_generator(seed, offset, offset_in_graph))


@op("InplaceBernoulli", "InplaceBernoulliTensor")
def bernoulli_inplace(self: Tensor, p: Tensor | float, seed: int, offset: int) -> None:
    """1 with probability p, which may differ by element."""
    self.bernoulli_(p, generator=generator(seed, offset))


@op("NormalFloatFloat", "NormalFloatTensor", "NormalTensorFloat", "NormalTensorTensor")
def normal(mean: Tensor | float, std: Tensor | float, seed: int, offset: int, out: Tensor) -> None:
    """Normal numbers; mean and standard deviation may differ by element."""
    out.normal_(0.0, 1.0, generator=generator(seed, offset))
    out.mul_(std).add_(mean)


@op("Randperm")
def randperm(n: int, seed: int, offset: int, out: Tensor) -> None:
    """0 to n - 1 in random order."""
    into(torch.randperm, out, n, generator=generator(seed, offset), dtype=out.dtype)


@op("RReluWithNoise")
def rrelu(
    self: Tensor, noise: Tensor, lower: Number, upper: Number, training: bool, seed: int, offset: int, out: Tensor
) -> None:
    """LeakyRelu with random slopes, which go into noise; when not training, with the middle slope."""
    into(_rrelu, out, self, noise, lower, upper, training, generator(seed, offset))


@op("InplaceRReluWithNoise")
def rrelu_inplace(
    self: Tensor, noise: Tensor, lower: Number, upper: Number, training: bool, seed: int, offset: int
) -> None:
    """RReluWithNoise in place."""
    into(_rrelu, self, self, noise, lower, upper, training, generator(seed, offset))
