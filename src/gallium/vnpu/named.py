"""Operators with many versions: the parameters of each, by their names in the signature table, fill one class.

tests/vnpu/test_coverage_guard.py checks that the class reads every field.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any, Protocol

from gallium.vnpu.registry import register
from gallium.vnpu.signatures import table


class Arguments(Protocol):
    """A dataclass whose fields are parameters, and what to do with them."""

    def run(self) -> None:
        """Compute and write all outputs."""


def register_named(
    name: str,
    arguments: type[Arguments],
    *,
    same: Mapping[str, str] | None = None,
    cube: bool = True,
    unused: Mapping[str, str] | None = None,
) -> None:
    """Make `arguments(...).run()` the body of the operator; `same` maps a parameter's name to that of its field.

    unused: fields that mean nothing here, each with the reason, as of `registry.register`.
    """
    names = tuple((same or {}).get(parameter, parameter) for parameter in table()[name].parameters)
    known = {field.name: field for field in fields(arguments)}  # type: ignore[arg-type]
    unknown = set(names) - set(known)
    missing = {f for f, field in known.items() if field.default is MISSING and f not in names}
    if unknown or missing or len(set(names)) != len(names):
        raise TypeError(f"{name}: {arguments.__name__} does not know {unknown}, and misses {missing}")

    def body(*values: Any) -> None:
        arguments(**dict(zip(names, values, strict=True))).run()

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    body.__signature__ = inspect.Signature([inspect.Parameter(n, kind) for n in names])  # type: ignore[attr-defined]
    body.arguments = arguments  # type: ignore[attr-defined]
    register(name, body, cube=cube, unused=unused)
