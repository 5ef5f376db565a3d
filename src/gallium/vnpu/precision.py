"""In which precision bodies compute: 16-bit floats in float32, rounded once at the end."""

from __future__ import annotations

from typing import overload

import torch
from torch import Tensor

from gallium.vnpu.checks import HALVES


@overload
def wide(x: Tensor) -> Tensor: ...
@overload
def wide(x: None) -> None: ...
@overload
def wide(x: Tensor | None) -> Tensor | None: ...
def wide(x: Tensor | None) -> Tensor | None:
    """The tensor, in float32 if it is of a 16-bit float."""
    return x.float() if x is not None and x.dtype in HALVES else x


def cast(x: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """The tensor in this type, if there is one."""
    return None if x is None else x.to(dtype)
