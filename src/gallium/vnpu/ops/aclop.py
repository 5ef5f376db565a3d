"""The operators of CANN's older interface that torch_npu still uses: changes of format and type."""

from __future__ import annotations

from torch import Tensor

from gallium.vnpu.formats import convert
from gallium.vnpu.registry import op
from gallium.vnpu.tensors import Blocked
from gallium.vnpu.writing import write


@op("aclop.Identity", "aclop.TransData")
def identity(x: Tensor | Blocked, out: Tensor | Blocked) -> None:
    """A copy; between formats, a conversion."""
    convert(x, out)


@op("aclop.Cast")
def cast(x: Tensor, out: Tensor) -> None:
    """A copy into another type."""
    write(out, x)
