"""Every argument is honoured or refused: each parameter of each operator is read, or declared to mean nothing."""

from __future__ import annotations

import ast
import inspect
import textwrap
from functools import cache
from pathlib import Path

import pytest

from gallium.vnpu import attention, ops
from gallium.vnpu.registry import Operator, operators
from gallium.vnpu.signatures import table

ops.load()


def parameters(operator: Operator) -> list[str]:
    return list(inspect.signature(operator.body).parameters)


def read_names(operator: Operator) -> set[str]:
    if arguments := getattr(operator.body, "arguments", None):
        return fields_read(arguments)
    tree = ast.parse(textwrap.dedent(inspect.getsource(operator.body)))
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}


@cache
def fields_read(arguments: type) -> set[str]:
    """Of operators whose parameters fill a class (vnpu/named.py): the fields that its code reads.

    That is `self.x` in the class and `call.x` in the checks of the package.
    """
    own = "\n".join(textwrap.dedent(inspect.getsource(c)) for c in arguments.__mro__ if c.__module__ != "builtins")
    package = Path(inspect.getsourcefile(attention) or "").parent
    checks = "\n".join(path.read_text(encoding="utf-8") for path in package.glob("*_limits.py"))
    return attributes_of("self", own) | attributes_of("call", checks)


def attributes_of(name: str, source: str) -> set[str]:
    return {
        node.attr
        for node in ast.walk(ast.parse(source.replace("from __future__ import annotations", "")))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == name
    }


@pytest.mark.parametrize("name", sorted(operators()))
def test_every_parameter_is_read_or_declared_to_mean_nothing(name: str) -> None:
    operator = operators()[name]
    unread = set(parameters(operator)) - read_names(operator)
    assert unread == set(operator.unused), "read each parameter, or say in `unused` why it means nothing"
    assert all(len(reason) > 15 for reason in operator.unused.values())


@pytest.mark.parametrize("name", sorted(n for n in operators() if "." not in n))
def test_the_body_takes_what_the_signature_says(name: str) -> None:
    assert len(parameters(operators()[name])) == len(table()[name].kinds)
