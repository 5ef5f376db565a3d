"""Makes the bodies of operators that are one function of PyTorch: each shape of signature once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from gallium.vnpu.registry import Body, register
from gallium.vnpu.writing import into, write

Number = bool | int | float | complex
Function = Callable[..., Any]


def register_all(functions: Mapping[str, Function], factory: Callable[[Function], Body], prefix: str = "") -> None:
    """Give each operator of the table the body that the factory makes of its function."""
    for name, function in functions.items():
        register(prefix + name, factory(function))


def unary(function: Function) -> Body:
    """(self, out)."""

    def body(self: Tensor, out: Tensor) -> None:
        into(function, out, self)

    return body


def unary_inplace(function: Function) -> Body:
    """(self), from a function that has an output."""

    def body(self: Tensor) -> None:
        function(self, out=self)

    return body


def unary_written(function: Function) -> Body:
    """(self, out), from a function that makes its own result."""

    def body(self: Tensor, out: Tensor) -> None:
        write(out, function(self))

    return body


def binary(function: Function) -> Body:
    """(self, other, out); either may be a number."""

    def body(self: Tensor, other: Tensor | Number, out: Tensor) -> None:
        into(function, out, self, other)

    return body


def binary_inplace(function: Function) -> Body:
    """(self, other), from a function that has an output; other may be a number."""

    def body(self: Tensor, other: Tensor | Number) -> None:
        into(function, self, self, other)

    return body


def ternary(function: Function) -> Body:
    """(self, a, b, out)."""

    def body(self: Tensor, a: Any, b: Any, out: Tensor) -> None:
        into(function, out, self, a, b)

    return body


def ternary_inplace(function: Function) -> Body:
    """(self, a, b), from a function that has an output."""

    def body(self: Tensor, a: Any, b: Any) -> None:
        into(function, self, self, a, b)

    return body


def zero_dim(value: Number) -> Tensor:
    """A number as a tensor that does not widen its partner, with all its digits."""
    kind = torch.float64 if isinstance(value, float) else torch.complex128 if isinstance(value, complex) else None
    return torch.tensor(value, dtype=kind, device="cpu")
