"""Messages, tools and template options: what reaches the template, and what is refused by name."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from tests.server.fakes import GLM_TEMPLATE, PLAIN_TEMPLATE, FakeAssembly, fake_assembly

from gallium.errors import InvalidRequest, TemplateError
from gallium.server.conversation import render, template_options
from gallium.server.wire import ChatRequest

HI = [{"role": "user", "content": "hi"}]
CALL = {"id": "c1", "type": "function", "function": {"name": "get_time", "arguments": '{"city": "Köln"}'}}
TOOL = {"type": "function", "function": {"name": "get_time", "parameters": {"type": "object", "properties": {}}}}
PREFIX = "[gMASK]<sop>"


def text(fake: FakeAssembly, messages: list[Any], **fields: Any) -> str:
    return render(fake.real(), msgspec.convert({"messages": messages, **fields}, ChatRequest)).text


def refused(fake: FakeAssembly, messages: list[Any], **fields: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        text(fake, messages, **fields)
    assert caught.value.param is not None
    return caught.value


def test_developer_is_system(fake: FakeAssembly) -> None:
    messages = [{"role": "developer", "content": "be kind"}, *HI]
    assert text(fake, messages) == PREFIX + "<|system|>be kind<|user|>hi<|assistant|><think>"


def test_text_parts_are_joined(fake: FakeAssembly) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert text(fake, [{"role": "user", "content": parts}]) == PREFIX + "<|user|>ab<|assistant|><think>"


def test_a_loop_of_calls_and_results(fake: FakeAssembly) -> None:
    messages = [
        *HI,
        {"role": "assistant", "content": None, "tool_calls": [CALL], "refusal": None, "audio": None, "annotations": []},
        {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "noon"}]},
    ]
    assert text(fake, messages).endswith(
        "<|assistant|><tool_call>get_time<arg_key>city</arg_key><arg_value>Köln</arg_value></tool_call>"
        "<|observation|><tool_response>noon</tool_response><|assistant|><think>"
    )


def test_tools_reach_the_template_as_they_were_sent(fake: FakeAssembly) -> None:
    tool = {"function": {"description": "时间", "name": "now"}, "type": "function"}
    assert '{"function": {"description": "时间", "name": "now"}, "type": "function"}' in text(fake, HI, tools=[tool])
    assert "# Tools" not in text(fake, HI, tools=[tool], tool_choice="none")
    assert "# Tools" not in text(fake, HI, tools=[])


def test_template_options(fake: FakeAssembly) -> None:
    assert text(fake, HI, chat_template_kwargs={"enable_thinking": False}).endswith("<|assistant|></think>")
    assert text(fake, HI, add_generation_prompt=False).endswith("<|user|>hi")
    assert text(fake, HI, reasoning_effort="none").endswith("<|assistant|></think>")


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, "content[0].type"),
        ({"role": "user", "content": [{"type": "text"}]}, "content[0].text"),
        ({"role": "user", "content": [{"type": "text", "text": "x", "cache_control": 1}]}, "content[0].cache_control"),
        ({"role": "user"}, "content"),
        ({"role": "assistant"}, "content"),
        ({"role": "user", "content": "x", "tool_calls": [CALL]}, "tool_calls"),
        ({"role": "system", "content": "x", "reasoning_content": "y"}, "reasoning_content"),
        ({"role": "tool", "content": "x"}, "tool_call_id"),
        ({"role": "user", "content": "x", "tool_call_id": "c1"}, "tool_call_id"),
        ({"role": "assistant", "tool_calls": [CALL | {"function": {"name": "f", "arguments": "{"}}]},
         "tool_calls[0].function.arguments"),
        ({"role": "assistant", "tool_calls": [CALL | {"function": {"name": "f", "arguments": "[]"}}]},
         "tool_calls[0].function.arguments"),
    ],
)  # fmt: skip
def test_a_wrong_message_is_refused_by_name(fake: FakeAssembly, message: dict[str, Any], param: str) -> None:
    error = refused(fake, [*HI, message])
    assert error.param == f"messages[1].{param}"
    assert error.param in error.message


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tool_choice": "required", "tools": [TOOL]}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}, "tools": [TOOL]}, "tool_choice"),
        ({"parallel_tool_calls": False}, "parallel_tool_calls"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"store": True}, "store"),
        ({"tools": [{"type": "retrieval"}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [TOOL, {"type": "function", "function": {"name": "a b"}}]}, "tools[1].function.name"),
        ({"tools": [{"type": "function", "function": {"name": "f", "strict": True}}]}, "tools[0].function.strict"),
        ({"tools": [{"type": "function", "function": {"name": "f", "wild": 1}}]}, "tools[0].function.wild"),
        ({"reasoning_effort": "high"}, "reasoning_effort"),
        ({"chat_template_kwargs": {"mood": 1}}, "chat_template_kwargs.mood"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs.messages"),
    ],
)  # fmt: skip
def test_what_cannot_be_honoured_is_refused_by_name(fake: FakeAssembly, fields: dict[str, Any], param: str) -> None:
    assert refused(fake, HI, **fields).param == param


def test_no_messages(fake: FakeAssembly) -> None:
    assert refused(fake, []).param == "messages"


def test_text_is_the_default_format(fake: FakeAssembly) -> None:
    text(fake, HI, response_format={"type": "text"}, parallel_tool_calls=True, store=False)


def test_a_template_without_a_place_for_tools() -> None:
    assembly = fake_assembly(PLAIN_TEMPLATE)
    assert refused(assembly, HI, tools=[TOOL]).param == "tools"
    assert text(assembly, HI, tools=[TOOL], tool_choice="none") == "user: hi\n"
    assembly.engine.shutdown()


def test_no_template() -> None:
    assembly = fake_assembly(None)
    with pytest.raises(TemplateError, match="/v1/completions"):
        text(assembly, HI)
    assembly.engine.shutdown()


def test_a_lone_surrogate_is_refused(fake: FakeAssembly) -> None:
    assert refused(fake, [{"role": "user", "content": "\ud800"}]).param == "messages"


@pytest.mark.parametrize(
    ("effort", "source", "expected"),
    [
        ("high", "{% if reasoning_effort == 'high' %}", "high"),
        ("medium", "{% if reasoning_effort == 'high' %}", "high"),
        ("low", "{% if reasoning_effort == 'low' %}{% elif reasoning_effort == 'high' %}", "low"),
        ("xhigh", '{{ reasoning_effort or "max" }}', "max"),
    ],
)  # fmt: skip
def test_reasoning_effort_in_the_words_of_the_template(effort: str, source: str, expected: str) -> None:
    assert template_options(source, None, effort) == {"reasoning_effort": expected}


@pytest.mark.parametrize(
    ("effort", "source"), [("max", "{{ reasoning_effort == 'high' }}"), ("high", GLM_TEMPLATE), ("x", "")]
)
def test_an_effort_that_the_template_does_not_know(effort: str, source: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        template_options(source, None, effort)
    assert caught.value.param == "reasoning_effort"
