"""Readers of one call's arguments: where a value ends, what stands in a name's place, and whole JSON objects."""

from __future__ import annotations

import json

import pytest
from tests.text.answers import TOOLS, Answer, one_by_one

from gallium.text.calls import ObjectReader, read_name
from gallium.text.tools_glm import ToolSet

OFFERED = ToolSet(TOOLS)


def arguments_of(written, tool="get_weather"):
    """The arguments of one call, as JSON."""
    made = one_by_one("glm47", f"<tool_call>{tool}{written}</tool_call>")
    assert (made.content, made.unfinished) == ("", None)
    ((name, arguments),) = made.calls
    assert name == tool
    return json.loads(arguments)


def pair(key, value):
    return f"<arg_key>{key}</arg_key><arg_value>{value}</arg_value>"


@pytest.mark.parametrize(
    "value",
    [
        "</arg_value>",
        "a</arg_value> b",
        "a</arg_value></arg_key>",
        "</tool_call>",
        "<tool_call>get_time</tool_call>",
        "<arg_key>",
        "<arg_key>city</arg_key>",
        "write <arg_value>5</arg_value >",
        "<think>no</think>",
        "\n  indented\n",
        "",
    ],
)
def test_tags_within_a_string_are_text(value):
    assert arguments_of(pair("city", value) + pair("days", 2)) == {"city": value, "days": 2}


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (pair("city", "P") + "days</arg_key><arg_value>2</arg_value>", {"city": "P", "days": 2}),
        ("<arg_key>city</arg_key><arg_value>P" + pair("days", 2), {"city": "P", "days": 2}),
        ("<arg_key> city </arg_key>\n\n<arg_value>P</arg_value>", {"city": "P"}),
        (pair("days", " 2 "), {"days": 2}),
        (pair("units", "null"), {"units": None}),
        (pair("units", "metric"), {"units": "metric"}),
        (pair("unheard_of", "5") + pair("天", "词"), {"unheard_of": 5, "天": "词"}),
        (pair("city", "a") + pair("city", "b"), {"city": "b"}),
        ("\n" + pair("city", "P") + "\n", {"city": "P"}),
    ],
)
def test_arguments(written, expected):
    assert arguments_of(written) == expected


def test_value_without_its_end_ends_with_the_call():
    call = "<tool_call>get_weather<arg_key>city</arg_key><arg_value>{}</tool_call>"
    assert one_by_one("glm47", call.format("Paris") + call.format("Rome")) == Answer(
        calls=(("get_weather", '{"city": "Paris"}'), ("get_weather", '{"city": "Rome"}'))
    )


def test_call_without_its_end_ends_with_the_next():
    open_call = "<tool_call>get_weather" + pair("city", "Paris")
    assert [arguments for _, arguments in one_by_one("glm45", open_call * 3).calls] == ['{"city": "Paris"}'] * 3


def test_name_runs_into_its_first_key():
    text = "<tool_call>get_weathercity</arg_key><arg_value>Paris</arg_value></tool_call>"
    assert one_by_one("glm47", text).calls == (("get_weather", '{"city": "Paris"}'),)


@pytest.mark.parametrize(
    ("text", "final", "found"),
    [
        ("get_time</tool_call>", False, ("get_time", "</tool_call>")),
        ("\n get_time\n</tool_call>", False, ("get_time", "</tool_call>")),
        ("get_time<tool_call>", False, ("get_time", "<tool_call>")),
        ("get{", False, ("get", "{")),
        ("get\n", True, ("get", "")),
        ("", False, None),
        ("ge", False, None),
        ("get", False, None),
        ("get_", False, None),
        ("get\n</", False, None),
        ("get", True, False),
        ("ge", True, False),
        ("got", False, False),
        ("get it", False, False),
        ("get <b>", False, False),
        ("GET", False, False),
    ],
)
def test_names(text, final, found):
    assert read_name(text, OFFERED, final) == found


@pytest.mark.parametrize(
    ("text", "delta", "rest", "complete"),
    [
        ("{} x", "{}", " x", True),
        ('{"a": {"b": [1, "}"]}}\nget_time', '{"a": {"b": [1, "}"]}}', "\nget_time", True),
        ('{"a": "\\"}"}', '{"a": "\\"}"}', "", True),
        ('{"a": "1\n2\t3"}', '{"a": "1\\n2\\t3"}', "", True),
        ("{\n  }", "{\n  }", "", True),
        ("{a: 1}", "{a: 1}", "", False),
        ('{"a": [1}}', '{"a": [1}}', "", False),
    ],
)
def test_object_reader(text, delta, rest, complete):
    reader = ObjectReader()
    progress = reader.read(text, False)
    assert (progress.delta, progress.rest, progress.done, reader.complete) == (delta, rest, True, complete)


def test_object_reader_passes_on_what_comes():
    reader = ObjectReader()
    assert [reader.read(piece, False).delta for piece in ('{"a": "', "1\n", '2"')] == ['{"a": "', "1\\n", '2"']
    assert reader.read("", True).done and not reader.complete
