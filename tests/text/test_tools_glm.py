"""The tools of a request: names, argument types by their schemas, and values as JSON."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gallium.text.tools_glm import JSON_TYPES, ToolSet, is_object, quote, value_as_json


def types_of(schema, **more):
    parameters = {"type": "object", "properties": {"x": schema}, **more}
    return ToolSet([{"function": {"name": "f", "parameters": parameters}}]).types("f", "x")


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({"type": "string"}, {"string"}),
        ({"type": ["string", "null"]}, {"string", "null"}),
        ({"enum": ["a", "b"]}, {"string"}),
        ({"enum": [1, 2.5, None, True, [], {}]}, {"integer", "number", "null", "boolean", "array", "object"}),
        ({"const": 3}, {"integer"}),
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, {"integer", "null"}),
        ({"oneOf": [{"type": "string"}, {"enum": [1]}]}, {"string", "integer"}),
        ({"allOf": [{"$ref": "#/$defs/Name"}]}, {"string"}),
        ({"$ref": "#/$defs/a~1b"}, {"boolean"}),
        ({"$ref": "#/$defs/absent"}, JSON_TYPES),
        ({"$ref": "https://example.org/schema"}, JSON_TYPES),
        ({"$ref": "#/$defs/loop"}, JSON_TYPES),
        ({"type": "martian"}, JSON_TYPES),
        ({"anyOf": {"type": "string"}}, JSON_TYPES),
        ({}, JSON_TYPES),
        (True, JSON_TYPES),
        (None, JSON_TYPES),
    ],
)
def test_types(schema, expected):
    definitions = {"Name": {"type": "string"}, "a/b": {"type": "boolean"}, "loop": {"$ref": "#/$defs/loop"}}
    assert types_of(schema, **{"$defs": definitions}) == expected


def test_unknown_tools_and_arguments_may_be_anything():
    tools = ToolSet([{"function": {"name": "f", "parameters": {"properties": {"x": {"type": "string"}}}}}])
    assert tools.types("f", "y") == tools.types("g", "x") == JSON_TYPES
    assert dict(tools.properties("g")) == {}


@pytest.mark.parametrize(
    ("tools", "names"),
    [
        (None, []),
        ([], []),
        ([{"type": "function", "function": {"name": "f"}}, {"name": "g", "parameters": None}], ["f", "g"]),
        ([{"type": "web_search"}, {"function": "f"}, {"function": {"name": ""}}, {"function": {"name": 3}}], []),
        ([{"function": {"name": "f", "parameters": "x"}}, {"name": "g", "parameters": {"properties": []}}], ["f", "g"]),
    ],
)
def test_names(tools, names):
    found = ToolSet(tools)
    assert list(found.names) == names and bool(found) == bool(names)
    assert all(name in found and not found.properties(name) for name in names)


@pytest.mark.parametrize(
    ("raw", "types", "made"),
    [
        # a string is what stands there, whatever it looks like
        ('"5" <b>\n', {"string"}, '"\\"5\\" <b>\\n"'),
        (" null ", {"string"}, '" null "'),
        # of several types, what it is as JSON
        ("5", {"integer"}, "5"),
        ("5", {"integer", "string"}, "5"),
        ("five", {"integer", "string"}, '"five"'),
        ("null", {"string", "null"}, "null"),
        ("None", {"string", "null"}, "null"),
        ("true", {"boolean"}, "true"),
        ("True", {"boolean"}, "true"),
        ("5", {"number"}, "5"),
        ("5.0", {"integer"}, "5.0"),
        ("12345678901234567890.10", {"number"}, "12345678901234567890.10"),
        (' {"a": [1, "天"]}\n', {"object"}, '{"a": [1, "天"]}'),
        ("{'a': None, 'b': (1, 2)}", {"object"}, '{"a": null, "b": [1, 2]}'),
        ('{"a": "line\nbreak"}', {"object"}, '{"a": "line\\nbreak"}'),
        ('["a"]', set(JSON_TYPES), '["a"]'),
        ("word", set(JSON_TYPES), '"word"'),
        # JSON within a JSON string
        ('"{\\"a\\": 1}"', {"object"}, '{"a": 1}'),
        ('"7"', {"integer"}, "7"),
        # what fits no allowed type is shown as it was written
        ("five", {"integer"}, '"five"'),
        ("[1]", {"object"}, '"[1]"'),
        ("{1, 2}", {"object"}, '"{1, 2}"'),
        ("NaN", {"number"}, '"NaN"'),
        ("1e999 or so", {"number"}, '"1e999 or so"'),
        ("", {"integer"}, '""'),
        ('"', {"integer"}, '"\\""'),
    ],
)
def test_values(raw, types, made):
    assert value_as_json(raw, frozenset(types)) == made


@pytest.mark.parametrize("raw", ["[" * 100_000, "(" * 1000, "9" * 10_000, "-" * 100_000 + "1", '{"a":' * 5000])
def test_hostile_values_are_kept_as_text(raw):
    assert json.loads(value_as_json(raw, frozenset({"object", "array"}))) == raw


@given(raw=st.text(), types=st.sets(st.sampled_from(sorted(JSON_TYPES)), min_size=1))
def test_every_value_is_json(raw, types):
    value = json.loads(value_as_json(raw, frozenset(types)))
    if types == {"string"}:
        assert value == raw


@pytest.mark.parametrize(
    ("text", "verdict"),
    [("{}", True), (' {"a": 1} ', True), ("[]", False), ("{", False), ("{a: 1}", False), ('{"a": NaN}', False),
     ('{"a":' * 100_000, False), ("", False)],
)  # fmt: skip
def test_objects(text, verdict):
    assert is_object(text) is verdict


def test_quoting_keeps_what_is_not_ascii():
    assert quote('天气 "😀"\n') == '"天气 \\"😀\\"\\n"'
