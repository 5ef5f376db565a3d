"""The tools of a request as the parser of calls needs them: names, and each argument's type by its JSON schema.

GLM writes an argument's value as raw text if it is a string and as JSON otherwise, so that only the schema tells
`5` the number from "5" the text.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

JSON_TYPES = frozenset({"string", "number", "integer", "boolean", "array", "object", "null"})
_MAX_DEPTH = 16


class ToolSet:
    """The tools that a request offers. Tools that are no functions have no name and are left out."""

    def __init__(self, tools: Iterable[Mapping[str, Any]] | None) -> None:
        self._parameters: dict[str, Mapping[str, Any]] = {}
        for tool in tools or ():
            function = tool.get("function", tool)
            name = function.get("name") if isinstance(function, Mapping) else None
            if isinstance(name, str) and name:
                parameters = function.get("parameters")
                self._parameters[name] = parameters if isinstance(parameters, Mapping) else {}

    def __bool__(self) -> bool:
        return bool(self._parameters)

    def __contains__(self, name: str) -> bool:
        return name in self._parameters

    @property
    def names(self) -> Iterable[str]:
        """The names of the functions."""
        return self._parameters.keys()

    def properties(self, name: str) -> Mapping[str, Any]:
        """The arguments that the function's schema names."""
        found = self._parameters.get(name, {}).get("properties")
        return found if isinstance(found, Mapping) else {}

    def types(self, name: str, key: str) -> frozenset[str]:
        """The JSON types that the argument may have: all of them if the schema does not say."""
        schema = self.properties(name).get(key)
        return frozenset(_types(schema, self._parameters.get(name, {}), 0)) & JSON_TYPES or JSON_TYPES


def _types(schema: Any, root: Mapping[str, Any], depth: int) -> Iterator[str]:
    if not isinstance(schema, Mapping) or depth > _MAX_DEPTH:
        yield from JSON_TYPES
        return
    said = schema.get("type")
    if isinstance(said, str):
        yield said
    elif isinstance(said, Sequence):
        yield from (one for one in said if isinstance(one, str))
    elif isinstance(schema.get("enum"), Sequence) and schema["enum"]:
        yield from (json_type(value) for value in schema["enum"])
    elif "const" in schema:
        yield json_type(schema["const"])
    elif isinstance(schema.get("$ref"), str):
        yield from _types(_resolve(schema["$ref"], root), root, depth + 1)
    elif choices := next((schema[word] for word in ("anyOf", "oneOf", "allOf") if schema.get(word)), None):
        for choice in choices if isinstance(choices, Sequence) else ():
            yield from _types(choice, root, depth + 1)
    else:
        yield from JSON_TYPES


def _resolve(reference: str, root: Mapping[str, Any]) -> Any:
    """A reference within the same schema (`#/$defs/Name`); None for any other."""
    if not reference.startswith("#/"):
        return None
    found: Any = root
    for step in reference[2:].split("/"):
        found = found.get(step.replace("~1", "/").replace("~0", "~")) if isinstance(found, Mapping) else None
    return found


def json_type(value: Any) -> str:
    """The JSON schema word for a Python value."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int):
        return "integer"
    if isinstance(value, float):
        return "number"
    if isinstance(value, str):
        return "string"
    return "array" if isinstance(value, list | tuple) else "object"


def _fits(value: Any, types: frozenset[str]) -> bool:
    kind = json_type(value)
    return kind in types or (kind == "integer" and "number" in types) or (kind == "number" and "integer" in types)


def _refuse(word: str) -> NoReturn:
    raise ValueError(f"{word} is not JSON")


def quote(text: str) -> str:
    """`text` as a JSON string, non-ASCII kept."""
    return json.dumps(text, ensure_ascii=False)


def is_object(text: str) -> bool:
    """Whether `text` is one JSON object."""
    try:
        return isinstance(json.loads(text, parse_constant=_refuse), dict)
    except (ValueError, RecursionError):
        return False


def value_as_json(raw: str, types: frozenset[str]) -> str:
    """The JSON text of an argument that the model wrote as `raw`.

    Of the allowed types, what `raw` is as JSON; forgiven are a value in quotes of its own (JSON in a JSON string) and
    Python's way of writing it. Otherwise it is kept as a string: a client sees what the model wrote.
    """
    if types == {"string"}:
        return quote(raw)
    text = raw.strip()
    for candidate in (text, _unquoted(text)):
        made = _as_json(candidate, types - {"string"})
        if made is not None:
            return made
    return quote(raw)


def _as_json(text: str | None, types: frozenset[str]) -> str | None:
    if not text:
        return None
    try:
        value = json.loads(text, parse_constant=_refuse)
        return text if _fits(value, types) else None  # verbatim: no digit of a number is lost
    except (ValueError, RecursionError):
        pass
    try:
        value = json.loads(text, strict=False, parse_constant=_refuse)
    except (ValueError, RecursionError):
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
            return None
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False) if _fits(value, types) else None
    except (TypeError, ValueError, RecursionError):
        return None


def _unquoted(text: str) -> str | None:
    if not text.startswith('"'):
        return None
    try:
        inner = json.loads(text)
    except ValueError:
        return None
    return inner.strip() if isinstance(inner, str) else None
