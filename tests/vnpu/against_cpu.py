"""Runs a function on the virtual NPU and on the CPU and compares; the NPU's tensors are contiguous, then strided."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from tests.vnpu.support import called
from torch import Tensor

LIMITS = {torch.float16: 4e-3, torch.bfloat16: 3e-2, torch.float32: 2e-5, torch.complex64: 2e-5}


def strided(x: Tensor) -> Tensor:
    """The same numbers on the NPU with gaps between them, an offset, and the dimensions stored backwards."""
    if x.dim() == 0:
        return torch.stack([x, x]).npu()[1]
    room = torch.empty([2 * size + 1 for size in reversed(x.shape)], dtype=x.dtype).npu()
    view = room.permute(*reversed(range(x.dim())))[tuple(slice(1, None, 2) for _ in x.shape)]
    view.copy_(x.npu())
    return view


def agree(function: Callable[..., Any], *args: Any, runs: str | Iterable[str], limit: float | None = None) -> None:
    """Same result on both devices, for contiguous and for strided tensors, through the named CANN functions."""
    expected = flat(function(*map(copy, args)))
    wanted = {runs} if isinstance(runs, str) else set(runs)
    for place in (Tensor.npu, strided):
        with called() as names:
            actual = flat(function(*(moved(x, place) for x in args)))
        assert names >= wanted, f"{wanted} should run, but {names} did"
        assert len(actual) == len(expected)
        for result, reference in zip(actual, expected, strict=True):
            same(result, reference, limit)


def same(actual: Any, expected: Any, limit: float | None = None) -> None:
    """Equal shape and dtype, and numbers that differ as little as rounding of their type explains."""
    if not isinstance(expected, Tensor):
        assert actual == expected
        return
    assert actual.dtype == expected.dtype
    allowed = LIMITS.get(expected.dtype, 0.0) if limit is None else limit
    torch.testing.assert_close(actual.detach().cpu(), expected.detach(), rtol=allowed, atol=allowed, equal_nan=True)


def gradients(function: Callable[..., Any], *args: Tensor) -> list[Tensor]:
    """The result of a function, and the gradients of all floating-point arguments for one fixed gradient of it."""
    leaves = [x.detach().requires_grad_(x.is_floating_point()) for x in args]
    result = function(*leaves)
    weights = torch.linspace(-1, 2, result.numel(), dtype=torch.float32).reshape(result.shape).to(result)
    grads = torch.autograd.grad(result, [x for x in leaves if x.requires_grad], weights)
    return [result.detach(), *grads]


def moved(x: Any, place: Callable[[Tensor], Tensor]) -> Any:
    """Tensors, also those in lists, on the NPU."""
    if isinstance(x, Tensor):
        return place(x)
    return type(x)(moved(item, place) for item in x) if isinstance(x, list | tuple) else x


def copy(x: Any) -> Any:
    """So that a function that works in place does not change the next run's input."""
    return x.clone() if isinstance(x, Tensor) else x


def flat(result: Any) -> list[Any]:
    return list(result) if isinstance(result, list | tuple) else [result]
