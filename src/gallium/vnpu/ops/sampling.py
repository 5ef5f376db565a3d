"""Drawing tokens: multinomial sampling, and limits by rank and probability."""

from __future__ import annotations

import torch
from torch import Tensor

from gallium.vnpu.ops.random import generator, graph_generator
from gallium.vnpu.registry import op
from gallium.vnpu.writing import into


@op("Multinomial")
def multinomial(self: Tensor, num_samples: int, replacement: bool, seed: int, offset: int, out: Tensor) -> None:
    """Indices drawn with the weights of each row."""
    into(torch.multinomial, out, self, num_samples, replacement, generator=generator(seed, offset))


@op("MultinomialTensor")
def multinomial_graph(
    self: Tensor,
    num_samples: int,
    replacement: bool,
    seed: Tensor,
    offset: Tensor,
    offset_in_graph: int,
    out: Tensor,
) -> None:
    """Multinomial in graphs."""
    random = graph_generator(seed, offset, offset_in_graph)
    into(torch.multinomial, out, self, num_samples, replacement, generator=random)
