"""Which Python function is which operator of CANN. Bodies register themselves with `op`; the loader hands them to C."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from gallium.vnpu.refusals import Illegal, Refusal, Unsupported, only, refuse_given

__all__ = [
    "Body",
    "Illegal",
    "Operator",
    "Refusal",
    "Unsupported",
    "only",
    "op",
    "operators",
    "refuse_given",
    "register",
]

Body = Callable[..., None]
F = TypeVar("F", bound=Body)


@dataclass(frozen=True)
class Operator:
    """One emulated function.

    name: without the prefix aclnn ("Adds"), or with another interface's ("atb.PagedAttention").
    cube: runs on the matrix unit, which has no float64 and no 64-bit integers.
    unused: parameters that the body does not read, each with the reason why they mean nothing here.
    dynamic: outputs whose shape is known only after running.
    """

    name: str
    body: Body
    cube: bool = False
    unused: Mapping[str, str] = field(default_factory=dict)
    dynamic: Sequence[str] = ()


_operators: dict[str, Operator] = {}


def register(
    name: str,
    body: Body,
    *,
    cube: bool = False,
    unused: Mapping[str, str] | None = None,
    dynamic: Sequence[str] = (),
) -> None:
    """Make `body` the function `name`. Raises ValueError if it has one already."""
    if name in _operators:
        raise ValueError(f"{name} has two bodies: {_operators[name].body} and {body}")
    _operators[name] = Operator(name, body, cube, unused or {}, dynamic)


def op(*names: str, **facts: Any) -> Callable[[F], F]:
    """Decorator: the function is the body of these operators. Keyword arguments as of `register`."""

    def decorate(body: F) -> F:
        for name in names:
            register(name, body, **facts)
        return body

    return decorate


def operators() -> Mapping[str, Operator]:
    """All registered operators by name; import gallium.vnpu.ops first."""
    return _operators
