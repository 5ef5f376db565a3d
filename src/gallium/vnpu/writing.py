"""How operator bodies write their outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from gallium.vnpu.refusals import Illegal


def into(function: Callable[..., Any], out: Tensor, *args: Any, **keywords: Any) -> None:
    """`function(*args, out=out, **keywords)`, which must not give `out` another shape or other strides."""
    shape, strides = out.shape, out.stride()
    try:
        function(*args, out=out, **keywords)
    except Exception:
        out.as_strided_(shape, strides, out.storage_offset())
        raise
    if out.shape != shape or out.stride() != strides:
        _put_back(out, shape, strides)


def into_all(function: Callable[..., Any], outs: Sequence[Tensor], *args: Any, **keywords: Any) -> None:
    """As `into`, for a function with several outputs."""
    before = [(out.shape, out.stride()) for out in outs]
    try:
        function(*args, out=tuple(outs), **keywords)
    except Exception:
        for out, (shape, strides) in zip(outs, before, strict=True):
            out.as_strided_(shape, strides, out.storage_offset())
        raise
    for out, (shape, strides) in zip(outs, before, strict=True):
        if out.shape != shape or out.stride() != strides:
            _put_back(out, shape, strides)


def _put_back(out: Tensor, shape: Sequence[int], strides: Sequence[int]) -> None:
    """Tensors are shared views: what they describe must stay, whatever an out= function makes of it."""
    found, found_strides = list(out.shape), list(out.stride())
    out.as_strided_(shape, strides, out.storage_offset())
    if found != list(shape):
        raise Illegal("the output's shape", list(shape), f"{found}")
    raise Illegal("the output's strides", list(strides), f"{found_strides}")


def write(out: Tensor, value: Tensor) -> None:
    """Copy `value`, cast to the output's dtype. Raises Illegal for another shape."""
    if out.shape != value.shape:
        raise Illegal("the output's shape", list(out.shape), f"{list(value.shape)}")
    out.copy_(value)
