"""Changes of format, type and order of dimensions through CANN's older interface."""

from __future__ import annotations

from torch import Tensor

from gallium.vnpu.aclop import aclop
from gallium.vnpu.formats import convert
from gallium.vnpu.refusals import Illegal
from gallium.vnpu.tensors import DTYPES, Blocked
from gallium.vnpu.writing import write


@aclop("Identity", "TransData", blocked=True)
def identity(out: Tensor | Blocked, /, x: Tensor | Blocked) -> None:
    """A copy; between formats, a conversion."""
    convert(x, out)


@aclop("Cast")
def cast(out: Tensor, /, x: Tensor, *, dst_type: int) -> None:
    """A copy into another type."""
    if DTYPES.get(dst_type) != out.dtype:
        raise Illegal("dst_type", dst_type, f"the code of the output's type, {out.dtype}")
    write(out, x)


@aclop("Transpose")
def transpose(out: Tensor, /, x: Tensor, perm: Tensor) -> None:
    """torch.permute."""
    write(out, x.permute(perm.tolist()))
