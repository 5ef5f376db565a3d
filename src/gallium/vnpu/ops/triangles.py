"""Triangular parts: Tril, Triu."""

from __future__ import annotations

import torch
from torch import Tensor

from gallium.vnpu.registry import op
from gallium.vnpu.writing import into


@op("Triu")
def triu(self: Tensor, diagonal: int, out: Tensor) -> None:
    """The part on and above a diagonal."""
    into(torch.triu, out, self, diagonal)


@op("Tril")
def tril(self: Tensor, diagonal: int, out: Tensor) -> None:
    """The part on and below a diagonal."""
    into(torch.tril, out, self, diagonal)
