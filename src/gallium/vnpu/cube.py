"""Limits of the matrix unit (cube), common to all operators that run there."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from gallium.vnpu.refusals import Illegal

# The unit multiplies 16-bit and 32-bit floats, 8-bit and 4-bit integers, and on 950 8-bit floats.
_NOT_ON_CUBE = frozenset({torch.float64, torch.complex64, torch.complex128, torch.int16, torch.int32, torch.int64})


def check_cube(args: Iterable[Any]) -> None:
    """Raise Illegal for a first tensor of a type that the matrix unit does not have."""
    for value in args:
        if isinstance(value, torch.Tensor):
            if value.dtype in _NOT_ON_CUBE:
                raise Illegal("dtype", value.dtype, "one of the matrix unit: float16, bfloat16, float32 or int8")
            return
