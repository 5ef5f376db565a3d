"""Messages as templates want them: contents, calls, reasoning, and GLM-4's dialect; the caller's stay as they are."""

from __future__ import annotations

import copy
import json

import pytest

from gallium.errors import InvalidRequest
from gallium.text.messages import flatten_content, prepare_messages, to_glm4_dialect

PARTS = [{"type": "text", "text": "a"}, {"type": "input_text", "text": "b"}, "c", {"type": "output_text", "text": "d"}]
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": [1, "天"]}'}}
TOOLS = [{"type": "function", "function": {"name": "f"}}]


def test_messages_of_the_caller_are_not_changed():
    messages = [
        {"role": "user", "content": PARTS},
        {"role": "assistant", "content": None, "tool_calls": [CALL], "reasoning": "R", "name": "kept"},
        {"role": "tool", "tool_call_id": "1", "content": PARTS},
    ]
    before = copy.deepcopy(messages)
    made = prepare_messages(messages, wants_parts=True)
    to_glm4_dialect(made, TOOLS)
    assert messages == before
    assert [message["content"] for message in made] == [
        [{"type": "text", "text": "abcd"}],
        [{"type": "text", "text": ""}],
        "abcd",
    ]  # fmt: skip - a tool's result is a string even for templates that read parts
    assert made[1]["tool_calls"][0]["function"] == {"name": "f", "arguments": {"x": [1, "天"]}}
    assert made[1]["reasoning_content"] == "R" and made[1]["name"] == "kept"


def test_own_reasoning_content_wins():
    message = {"role": "assistant", "content": "A", "reasoning_content": "R1", "reasoning": "R2"}
    assert prepare_messages([message])[0]["reasoning_content"] == "R1"


def test_calls_without_a_function_object():
    (made,) = prepare_messages([{"role": "assistant", "tool_calls": [{"name": "f", "arguments": None}]}])
    assert made["tool_calls"] == [{"name": "f", "arguments": {}}]


@pytest.mark.parametrize(("content", "text"), [(None, ""), ("x", "x"), ([], ""), (PARTS, "abcd")])
def test_flat_content(content, text):
    assert flatten_content(content) == text


@pytest.mark.parametrize(
    ("content", "says"), [(b"x"[0], "must be a text"), ([{"type": "text"}], "'text'"), ([{"text": "x"}], "None")]
)
def test_content_that_is_no_text(content, says):
    with pytest.raises(InvalidRequest, match=says):
        flatten_content(content, "messages[3]")


def test_glm4_dialect():
    messages = prepare_messages([
        {"role": "user", "content": "U"},
        {"role": "assistant", "content": "A", "tool_calls": [CALL, CALL]},
        {"role": "tool", "content": "r", "tool_call_id": "1"},
    ])  # fmt: skip
    made = to_glm4_dialect(messages, TOOLS)
    call = {"role": "assistant", "metadata": "f", "content": '{"x": [1, "天"]}'}
    assert made == [
        {"role": "system", "content": "", "tools": TOOLS},
        {"role": "user", "content": "U"},
        {"role": "assistant", "content": "A"},
        *(call, call),
        {"role": "observation", "content": "r", "tool_call_id": "1"},
    ]
    assert json.loads(made[3]["content"]) == json.loads(CALL["function"]["arguments"])
    assert to_glm4_dialect(messages, None)[0]["role"] == "user"
    system = [{"role": "system", "content": "S"}]
    assert to_glm4_dialect(system, TOOLS) == [{"role": "system", "content": "S", "tools": TOOLS}]
