"""New tensors from numbers: Arange, Range, Linspace, LogSpace, Eye."""

from __future__ import annotations

import torch
from torch import Tensor

from gallium.vnpu.registry import op
from gallium.vnpu.writing import into

Number = bool | int | float | complex


@op("Arange")
def arange(start: Number, end: Number, step: Number, out: Tensor) -> None:
    """Numbers from start up to, and without, end."""
    into(torch.arange, out, start, end, step)
