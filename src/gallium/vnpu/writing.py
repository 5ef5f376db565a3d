"""How operator bodies write their outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from gallium.vnpu.refusals import Illegal


def into(function: Callable[..., Any], out: Tensor, *args: Any, **keywords: Any) -> None:
    """`function(*args, out=out, **keywords)`, which must not give `out` another shape."""
    before = out.shape
    function(*args, out=out, **keywords)
    if out.shape != before:
        wanted = out.shape
        out.resize_(before)  # tensors are shared views: their shape must stay
        raise Illegal("the output's shape", list(before), f"{list(wanted)}")


def into_all(function: Callable[..., Any], outs: Sequence[Tensor], *args: Any, **keywords: Any) -> None:
    """As `into`, for a function with several outputs."""
    before = [out.shape for out in outs]
    function(*args, out=tuple(outs), **keywords)
    for out, shape in zip(outs, before, strict=True):
        if out.shape != shape:
            wanted = out.shape
            out.resize_(shape)  # tensors are shared views: their shape must stay
            raise Illegal("the output's shape", list(shape), f"{list(wanted)}")


def write(out: Tensor, value: Tensor) -> None:
    """Copy `value`, cast to the output's dtype. Raises Illegal for another shape."""
    if out.shape != value.shape:
        raise Illegal("the output's shape", list(out.shape), f"{list(value.shape)}")
    out.copy_(value)
