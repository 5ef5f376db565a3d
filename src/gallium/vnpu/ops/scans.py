"""Running results along a dimension: Cumsum, Cumprod, Cummax, Cummin."""

from __future__ import annotations

import torch
from torch import Tensor

from gallium.vnpu.ops.reductions import typed
from gallium.vnpu.registry import op


@op("Cumsum")
def cumsum(self: Tensor, dim: int, dtype: int, out: Tensor) -> None:
    """The running sum, computed in the type `dtype`."""
    typed(torch.cumsum, out, dtype, self, dim)
