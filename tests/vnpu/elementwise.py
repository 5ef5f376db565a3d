"""Inputs of many layouts, and the comparison of a function on the NPU with the same on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tests.vnpu.support import called
from torch import Tensor

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
INTEGERS = (torch.int32, torch.int64, torch.int8, torch.uint8, torch.int16)

# Applied on each device, so that strides and offsets arrive there as they are.
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "dense": lambda x: x,
    "transposed": lambda x: x.t(),
    "strided": lambda x: x[::2, 1:],
    "empty": lambda x: x[:0],
    "scalar": lambda x: x[2, 3],
    "four dimensions": lambda x: x.reshape(2, 3, 5, 1).permute(3, 1, 0, 2),
}


def values(dtype: torch.dtype, low: float = -3, high: float = 3) -> Tensor:
    """`[6, 5]` numbers between low and high, with both ends."""
    if dtype == torch.bool:
        return torch.rand(6, 5) < 0.5
    x = torch.rand(6, 5, dtype=torch.float64) * (high - low) + low
    x[0, 0], x[5, 4] = low, high
    if dtype.is_complex:
        return torch.complex(x, x.flip(0)).to(dtype)
    if dtype.is_floating_point:
        return x.to(dtype)
    return (x.abs() if dtype == torch.uint8 else x).round().to(dtype)


def npu(x: Any) -> Any:
    """The same on the NPU: tensors, and tensors in lists; other things as they are."""
    if isinstance(x, Tensor):
        return x.npu()
    return [npu(item) for item in x] if isinstance(x, list) else x


def laid_out(x: Any, layout: Callable[[Tensor], Tensor]) -> Any:
    return layout(x) if isinstance(x, Tensor) and x.dim() == 2 else x


def agree(function: Callable[..., Any], *args: Any, calls: str, **keywords: Any) -> None:
    """The function gives the same on both devices for all layouts of its `[6, 5]` tensors, by the function `calls`."""
    copies = [npu(x) for x in args]
    with called() as names:
        for name, layout in LAYOUTS.items():
            expected = function(*(laid_out(x, layout) for x in args), **keywords)
            got = function(*(laid_out(x, layout) for x in copies), **keywords)
            same(got, expected, name)
    assert calls in names


def agree_inplace(function: Callable[..., Any], *args: Any, calls: str, **keywords: Any) -> None:
    """As `agree`, for a function that changes its first argument; what lies around a view must stay as it was."""
    with called() as names:
        for name, layout in LAYOUTS.items():
            first, copy = args[0].clone(), args[0].npu()
            function(layout(first), *(laid_out(x, layout) for x in args[1:]), **keywords)
            function(layout(copy), *(laid_out(npu(x), layout) for x in args[1:]), **keywords)
            same(copy, first, name)
    assert calls in names


def same(got: Any, expected: Any, message: str = "") -> None:
    """Equal within the usual tolerance of their type; lists and tuples by element."""
    if isinstance(expected, Tensor):
        assert got.device.type == "npu", message
        torch.testing.assert_close(got.cpu(), expected, equal_nan=True, msg=lambda text: f"{message}: {text}")
        return
    assert len(got) == len(expected), message
    for one, other in zip(got, expected, strict=True):
        same(one, other, message)
