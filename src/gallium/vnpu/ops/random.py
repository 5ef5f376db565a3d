"""Random numbers, from PyTorch's CPU generator seeded with the NPU generator's seed and offset.

The same seed and offset give the same numbers, other ones others; they are not those of an NPU. The variants called
`...Tensor` are for graphs: seed and offset lie in device memory, so that each replay gives new numbers.
"""

from __future__ import annotations

from torch import Generator, Tensor

from gallium.vnpu.registry import op

_WORD = (1 << 64) - 1


def generator(seed: int, offset: int) -> Generator:
    """A generator for one operator. Its seed has 32 bits, so both numbers are mixed (splitmix64)."""
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


@op("InplaceNormal")
def normal_inplace(self: Tensor, mean: float, std: float, seed: int, offset: int) -> None:
    """Normal numbers."""
    self.normal_(mean, std, generator=generator(seed, offset))


@op("InplaceNormalTensor")
def normal_inplace_graph(
    self: Tensor, mean: float, std: float, seed: Tensor, offset: Tensor, offset_in_graph: int
) -> None:
    """InplaceNormal in graphs."""
    self.normal_(mean, std, generator=graph_generator(seed, offset, offset_in_graph))


@op("InplaceUniform")
def uniform_inplace(self: Tensor, low: float, high: float, seed: int, offset: int) -> None:
    """Uniform numbers of [low, high)."""
    self.uniform_(low, high, generator=generator(seed, offset))


@op("InplaceUniformTensor")
def uniform_inplace_graph(
    self: Tensor, low: float, high: float, seed: Tensor, offset: Tensor, offset_in_graph: int
) -> None:
    """InplaceUniform in graphs."""
    self.uniform_(low, high, generator=graph_generator(seed, offset, offset_in_graph))
