"""/v1/chat/completions with OpenAI's client: reasoning, content and tool calls of a GLM, whole and streamed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai import OpenAI, Stream
from openai.types.chat import ChatCompletionChunk
from tests.api.successors import CALL, CITY, CONTENT, REASONING, SCRIPT

from gallium import LLM

MODEL = "org/tiny"
HI: Any = [{"role": "user", "content": "hi"}]
TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather of a place.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]
ANSWER_TOKENS = len(SCRIPT) - 1


def ask(client: OpenAI, **fields: Any) -> Any:
    return client.chat.completions.create(**{"model": MODEL, "messages": HI, **fields})


def joined(stream: Stream[ChatCompletionChunk], index: int = 0) -> dict[str, Any]:
    """What a client puts together of one choice."""
    out: dict[str, Any] = {"content": "", "reasoning": "", "calls": {}, "finish": [], "usage": [], "tokens": b""}
    for chunk in stream:
        out["usage"] += [chunk.usage] if chunk.usage else []
        for choice in (c for c in chunk.choices if c.index == index):
            delta = choice.delta
            out["content"] += delta.content or ""
            out["reasoning"] += getattr(delta, "reasoning_content", None) or ""
            out["finish"] += [choice.finish_reason] if choice.finish_reason else []
            for entry in choice.logprobs.content or [] if choice.logprobs else []:
                out["tokens"] += bytes(entry.bytes or [])
            for call in delta.tool_calls or []:
                known = out["calls"].setdefault(call.index, {"name": "", "arguments": ""})
                known["name"] += call.function.name or "" if call.function else ""
                known["arguments"] += call.function.arguments or "" if call.function else ""
    return out


def test_an_answer(client: OpenAI, llm: LLM) -> None:
    answer = ask(client, tools=TOOLS, tool_choice="auto")
    (choice,) = answer.choices
    assert (choice.message.role, choice.message.content, choice.message.reasoning_content) == (
        "assistant", CONTENT, REASONING,
    )  # fmt: skip
    (call,) = choice.message.tool_calls
    assert (call.type, call.function.name) == ("function", "get_weather")
    assert json.loads(call.function.arguments) == {"city": CITY}
    assert choice.finish_reason == "tool_calls"
    assert answer.object == "chat.completion" and answer.id.startswith("chatcmpl-")
    assert answer.model == MODEL and answer.created > 1_700_000_000
    assert answer.system_fingerprint.startswith("gallium-")
    prompt = llm.tokenizer.encode(llm.assembly.template.render(HI, tools=TOOLS))  # type: ignore[union-attr]
    usage = answer.usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (len(prompt), ANSWER_TOKENS)
    assert usage.total_tokens == len(prompt) + ANSWER_TOKENS
    again = ask(client, tools=TOOLS)
    assert 0 < again.usage.prompt_tokens_details.cached_tokens < len(prompt)


def test_a_streamed_answer(client: OpenAI) -> None:
    with ask(client, tools=TOOLS, stream=True, stream_options={"include_usage": True}) as stream:
        chunks = list(stream)
    assert {c.object for c in chunks} == {"chat.completion.chunk"} and len({c.id for c in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    assert all(c.choices and c.usage is None for c in chunks[:-1])
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == ANSWER_TOKENS
    answer = joined(iter(chunks))  # type: ignore[arg-type]
    assert (answer["reasoning"], answer["content"]) == (REASONING, CONTENT)
    assert answer["calls"][0]["name"] == "get_weather" and json.loads(answer["calls"][0]["arguments"]) == {"city": CITY}
    assert answer["finish"] == ["tool_calls"]
    pieces = [c.choices[0].delta.content for c in chunks[:-1] if c.choices[0].delta.content]
    assert len(pieces) > 1 and "\ufffd" not in "".join(pieces)  # streamed, and never a part of a character


def test_the_client_accumulates_a_stream(client: OpenAI) -> None:
    with client.chat.completions.stream(model=MODEL, messages=HI, tools=TOOLS) as stream:
        for _ in stream:
            pass
        final = stream.get_final_completion()
    message = final.choices[0].message
    assert message.content == CONTENT
    assert message.tool_calls is not None and message.tool_calls[0].function.name == "get_weather"
    assert final.choices[0].finish_reason == "tool_calls"


def test_the_answer_goes_back_as_a_message(client: OpenAI) -> None:
    first = ask(client, tools=TOOLS).choices[0].message
    result = {"role": "tool", "tool_call_id": first.tool_calls[0].id, "content": "sunny"}
    second = ask(client, tools=TOOLS, messages=[*HI, first, result])
    assert second.choices[0].message.content == CONTENT
    dumped = ask(client, tools=TOOLS, messages=[*HI, first.model_dump(), result])
    assert dumped.usage.prompt_tokens == second.usage.prompt_tokens


@pytest.mark.parametrize("fields", [{}, {"tools": TOOLS, "tool_choice": "none"}, {"tools": []}])
def test_without_tools_nothing_is_a_call(client: OpenAI, fields: dict[str, Any]) -> None:
    (choice,) = ask(client, **fields).choices
    assert (choice.message.content, choice.message.tool_calls, choice.finish_reason) == (CONTENT + CALL, None, "stop")
    assert ask(client, **fields).usage.prompt_tokens == ask(client).usage.prompt_tokens


def test_thinking_can_be_turned_off(client: OpenAI) -> None:
    for fields in (
        {"extra_body": {"chat_template_kwargs": {"enable_thinking": False}}},
        {"reasoning_effort": "none"},
    ):
        message = ask(client, tools=TOOLS, **fields).choices[0].message
        assert message.content == CONTENT and not hasattr(message, "reasoning_content")
        assert joined(ask(client, tools=TOOLS, stream=True, **fields))["reasoning"] == ""


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_length(client: OpenAI, name: str) -> None:
    answer = ask(client, **{name: 4})
    (choice,) = answer.choices
    assert (choice.message.content, choice.finish_reason) == ("Let me", "length")
    assert answer.usage.completion_tokens == 4
    assert joined(ask(client, stream=True, **{name: 4}))["finish"] == ["length"]


@pytest.mark.parametrize("stop", ["look", ["nowhere", "look"]])
def test_stop(client: OpenAI, stop: Any) -> None:
    (choice,) = ask(client, stop=stop).choices
    assert (choice.message.content, choice.finish_reason) == ("Let me ", "stop")
    streamed = joined(ask(client, stop=stop, stream=True))
    assert (streamed["content"], streamed["finish"]) == ("Let me ", ["stop"])


def test_logprobs(client: OpenAI) -> None:
    (choice,) = ask(client, tools=TOOLS, logprobs=True, top_logprobs=3).choices
    entries = choice.logprobs.content
    said = b"".join(bytes(entry.bytes) for entry in entries)
    assert said.decode() == f"{REASONING}</think>{CONTENT}{CALL}"  # the end token is not a part of it
    assert choice.logprobs.refusal is None
    for entry in entries:
        assert len(entry.top_logprobs) == 3
        assert entry.top_logprobs[0].bytes == entry.bytes  # the script leaves no doubt
        assert -0.1 < entry.logprob <= 0 and entry.top_logprobs[1].logprob < -5
    smiley = [entry for entry in entries if entry.token == "\ufffd"]
    assert bytes(byte for entry in smiley for byte in entry.bytes).decode() == "🙂"
    streamed = joined(ask(client, tools=TOOLS, stream=True, logprobs=True))
    assert streamed["tokens"] == said
    assert all(entry.top_logprobs == [] for entry in ask(client, logprobs=True).choices[0].logprobs.content)


def test_several_choices(client: OpenAI) -> None:
    answer = ask(client, n=3)
    assert [(c.index, c.message.content) for c in answer.choices] == [(i, CONTENT + CALL) for i in range(3)]
    assert answer.usage.prompt_tokens == ask(client).usage.prompt_tokens
    assert answer.usage.completion_tokens == 3 * ANSWER_TOKENS
    with ask(client, n=3, stream=True) as stream:
        chunks = list(stream)
    for index in range(3):
        one = joined(iter(chunks), index)  # type: ignore[arg-type]
        assert (one["content"], one["finish"]) == (CONTENT + CALL, ["stop"])
