"""Counting and placing values in bins: Histc, Bincount, Bucketize, SearchSorted."""

from __future__ import annotations

import torch
from torch import Tensor

from gallium.vnpu.registry import op
from gallium.vnpu.writing import into, write

Number = bool | int | float | complex


@op("Histc")
def histc(self: Tensor, bins: int, low: Number, high: Number, out: Tensor) -> None:
    """Counts in `bins` equal bins from low to high; other values are left out. Integers too, unlike PyTorch's CPU kernel."""
    if self.is_floating_point():
        into(torch.histc, out, self, bins, low, high)
    else:
        write(out, torch.histc(self.double(), bins, low, high))
