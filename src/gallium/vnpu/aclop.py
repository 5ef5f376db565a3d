"""Bodies of the older interface of single operators, whose calls have inputs by position and attributes by name."""

from __future__ import annotations

import functools
import inspect
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from gallium.vnpu.cube import check_cube
from gallium.vnpu.formats import convert
from gallium.vnpu.refusals import Illegal, Unsupported
from gallium.vnpu.registry import Body, register
from gallium.vnpu.tensors import DTYPES, Blocked, DynamicOutput, dense

# How torch_npu asks for a scheduling of operators on its stream for data preprocessing: no meaning for the result.
SCHEDULING = frozenset({"_performance_prior", "_exclude_engines"})

call_counts: Counter[str] = Counter()  # how often each operator was called in this process


def aclop(
    *names: str,
    cube: bool = False,
    unused: Mapping[str, str] | None = None,
    dynamic: Sequence[str] = (),
) -> Callable[[Body], Body]:
    """Decorator: the function is the body of these operators, `def body(outputs, /, inputs, *, attributes)`.

    An input or attribute with a default may be left out of a call, and an input of a type `| None` may be empty; what
    the function does not take is refused. Tensors in FRACTAL_NZ format come as ordinary ones. Keyword arguments as of
    `registry.op`.
    """

    def decorate(body: Body) -> Body:
        for name in names:
            register(f"aclop.{name}", bound(name, body, cube=cube, dynamic=dynamic), unused=unused)
        return body

    return decorate


def bound(name: str, body: Body, *, cube: bool = False, dynamic: Sequence[str] = ()) -> Body:
    """What the library calls for the operator: it takes a call as native/vnpu/aclop.cpp passes it."""
    bind = _Binding(body, cube, dynamic)

    @functools.wraps(body)
    def run(inputs: tuple[Any, ...], outputs: tuple[Any, ...], places: tuple[int, ...], *attributes: Any) -> None:
        call_counts[name] += 1
        bind(inputs, outputs, places, attributes)

    return run


class _Binding:
    """Puts a call's values to the parameters of a body, by the kinds of its parameters."""

    def __init__(self, body: Body, cube: bool, dynamic: Sequence[str]) -> None:
        parameters = inspect.signature(body).parameters.values()
        self.body, self.cube = body, cube
        self.outputs = [p.name for p in parameters if p.kind is p.POSITIONAL_ONLY]
        self.inputs = [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
        self.any_number = any(p.kind is p.VAR_POSITIONAL for p in parameters)
        self.attributes = {p.name: p.default is p.empty for p in parameters if p.kind is p.KEYWORD_ONLY}
        self.needed = [name for name, needed in self.attributes.items() if needed]
        self.dynamic = [self.outputs.index(name) for name in dynamic]

    def __call__(
        self, inputs: tuple[Any, ...], outputs: tuple[Any, ...], places: tuple[int, ...], flat: tuple[Any, ...]
    ) -> None:
        self._check_tensors(inputs, outputs)
        if self.cube:
            check_cube(outputs)  # among the inputs may be shapes
        if self.dynamic:
            outputs = self._with_dynamic(outputs, places)
        rooms = tuple(torch.empty(out.shape, dtype=out.dtype) if isinstance(out, Blocked) else out for out in outputs)
        given = (dense(x) if isinstance(x, Blocked) else x for x in inputs)
        self.body(*rooms, *given, **self._named(flat))
        for room, out in zip(rooms, outputs, strict=True):
            if isinstance(out, Blocked):
                convert(room, out)

    def _check_tensors(self, inputs: tuple[Any, ...], outputs: tuple[Any, ...]) -> None:
        if len(outputs) != len(self.outputs):
            raise Unsupported("the number of outputs", len(outputs), str(len(self.outputs)))
        if len(inputs) > len(self.inputs) and not self.any_number:
            raise Unsupported("the number of inputs", len(inputs), f"at most {len(self.inputs)}")
        for position, parameter in enumerate(self.inputs):
            missing = position >= len(inputs) and parameter.default is parameter.empty
            if missing or (position < len(inputs) and inputs[position] is None and not _optional(parameter)):
                raise Illegal(parameter.name, None, "given")

    def _with_dynamic(self, outputs: tuple[Any, ...], places: tuple[int, ...]) -> tuple[Any, ...]:
        if not places:
            raise Illegal("the call", "aclopCompileAndExecute", "aclopCompileAndExecuteV2, which gives a shape back")
        made = list(outputs)
        for position in self.dynamic:
            if isinstance(outputs[position], Blocked):
                raise Unsupported(f"the format of {self.outputs[position]}", "FRACTAL_NZ", "ordinary formats")
            made[position] = DynamicOutput(places[position], outputs[position])
        return tuple(made)

    def _named(self, flat: tuple[Any, ...]) -> dict[str, Any]:
        values = {name: _decoded(kind, value) for name, kind, value in _triples(flat) if name not in SCHEDULING}
        for name, value in values.items():
            if name not in self.attributes:
                raise Unsupported(f"attribute {name}", value, ", ".join(self.attributes) or "no attributes")
        for name in self.needed:
            if name not in values:
                raise Illegal(f"attribute {name}", None, "given")
        return values


def _optional(parameter: inspect.Parameter) -> bool:
    return "None" in str(parameter.annotation)


def _triples(flat: tuple[Any, ...]) -> Iterator[tuple[str, str, Any]]:
    return zip(flat[0::3], flat[1::3], flat[2::3], strict=True)


def _decoded(kind: str, value: Any) -> Any:
    """An attribute's value from what C++ passes (native/vnpu/aclop_attributes.h has the letters)."""
    if kind == "D":
        if value not in DTYPES:
            raise Unsupported("dtype code", value, ", ".join(map(str, DTYPES)))
        return DTYPES[value]
    if kind == "B":
        return tuple(bool(x) for x in value)
    if kind == "N":
        return tuple(_lists(value))
    return value


def _lists(flat: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Lists that follow each other, each after its length."""
    start = 0
    while start < len(flat):
        end = start + 1 + flat[start]
        yield flat[start + 1 : end]
        start = end
