"""Changes of format, type and order of dimensions through CANN's older interface."""

from __future__ import annotations

from torch import Tensor

from gallium.vnpu.aclop import aclop
from gallium.vnpu.refusals import Illegal
from gallium.vnpu.tensors import DTYPES
from gallium.vnpu.writing import write


@aclop("Identity", "TransData")
def identity(out: Tensor, /, x: Tensor) -> None:
    """A copy, which changes the format if the output has another one."""
    write(out, x)


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
