"""Changes of format, type and order of dimensions through CANN's older interface."""

from __future__ import annotations

import torch
from torch import Tensor

from gallium.vnpu.aclop import aclop
from gallium.vnpu.refusals import Illegal
from gallium.vnpu.tensors import DTYPES, DynamicOutput
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


@aclop("Slice")
def slice_(out: Tensor, /, x: Tensor, offsets: Tensor, size: Tensor) -> None:
    """The part of x of that size at these offsets."""
    for dim, (start, length) in enumerate(zip(offsets.tolist(), size.tolist(), strict=True)):
        x = x.narrow(dim, start, length)
    write(out, x)


@aclop("ReverseV2")
def reverse(out: Tensor, /, x: Tensor, axis: Tensor) -> None:
    """torch.flip."""
    write(out, x.flip(axis.tolist()))


@aclop("Pad")
def pad(out: Tensor, /, x: Tensor, paddings: Tensor) -> None:
    """x with zeros around it: a pair of counts for each dimension."""
    counts = paddings.flatten().tolist()
    pairs = [counts[i : i + 2] for i in range(0, len(counts), 2)]
    write(out, torch.nn.functional.pad(x, [n for pair in reversed(pairs) for n in pair]))


@aclop("NonZero", dynamic=("out",))
def nonzero(out: DynamicOutput, /, x: Tensor, *, transpose: bool = False) -> None:
    """torch.nonzero: [n, dimensions], or the other way round."""
    places = torch.nonzero(x)
    out.settle(places.T if transpose else places)


@aclop("MaskedSelect", dynamic=("out",))
def masked_select(out: DynamicOutput, /, x: Tensor, mask: Tensor) -> None:
    """torch.masked_select."""
    out.settle(torch.masked_select(x, mask))
