"""/v1/chat/completions over a scripted model: whole and streamed answers say the same."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from tests.server.fakes import FakeAssembly, says

HI = [{"role": "user", "content": "hi"}]
USAGE = {"include_usage": True}
STRING = {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}
TOOLS = [
    {"type": "function", "function": {"name": "get_weather", "parameters": STRING}},
    {"type": "function", "function": {"name": "get_time"}},
]
CALLS = (
    "I look.</think>Wait.<tool_call>get_weather<arg_key>city</arg_key><arg_value>Köln \"am\" Rhein</arg_value>"
    "<arg_key>days</arg_key><arg_value>2</arg_value></tool_call><tool_call>get_time</tool_call>"
)  # fmt: skip


async def chat(client: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    answer = await client.post("/v1/chat/completions", json={"messages": HI, **fields})
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    assert body["id"] == answer.headers["x-request-id"]
    return body


async def chunks(client: httpx.AsyncClient, **fields: Any) -> list[dict[str, Any]]:
    answer = await client.post("/v1/chat/completions", json={"messages": HI, "stream": True, **fields})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    *events, done, end = answer.text.split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    return [json.loads(event.removeprefix("data: ")) for event in events]


def joined(stream: list[dict[str, Any]], index: int = 0) -> dict[str, Any]:
    """The message that a client puts together."""
    message: dict[str, Any] = {"content": "", "reasoning_content": "", "tool_calls": {}}
    for chunk in stream:
        for choice in (c for c in chunk["choices"] if c["index"] == index):
            delta = choice["delta"]
            for name in ("content", "reasoning_content"):
                message[name] += delta.get(name, "")
            for call in delta.get("tool_calls", ()):
                known = message["tool_calls"].setdefault(call["index"], {"arguments": ""})
                known |= {name: call[name] for name in ("id", "type") if name in call}
                known["arguments"] += call["function"]["arguments"]
                known["name"] = known.get("name", "") + call["function"].get("name", "")
    return message


async def test_a_whole_answer(fake: FakeAssembly, client: httpx.AsyncClient) -> None:
    fake.runner.script = says("hm</think>Grüße 👋!")
    body = await chat(client, model="fake-glm")
    (choice,) = body["choices"]
    assert choice["message"] == {
        "role": "assistant", "content": "Grüße 👋!", "refusal": None, "reasoning_content": "hm"
    }  # fmt: skip
    assert (choice["finish_reason"], choice["logprobs"]) == ("stop", None)
    assert body["object"] == "chat.completion" and body["id"].startswith("chatcmpl-")
    assert body["system_fingerprint"].startswith("gallium-") and "fake-glm/float32" in body["system_fingerprint"]
    prompt = len(fake.engine.seen[0][0])
    completion = len(b"hm") + 1 + len("Grüße 👋!".encode()) + 1
    assert body["usage"] == {
        "prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": 0},
    }  # fmt: skip


PREDICTED = "def f(x):\n    return x + 1\n" * 4


@pytest.mark.parametrize(
    ("said", "accepted"),
    [(PREDICTED, len(PREDICTED)), (PREDICTED.replace("return", "yield"), 80), ("no", 0), ("", 0)],
)
async def test_a_prediction_shortens_the_work_and_is_counted(
    fake: FakeAssembly, client: httpx.AsyncClient, said: str, accepted: int
) -> None:
    fake.runner.script = says("</think>" + said)
    plain = await chat(client, n=2)
    assert "completion_tokens_details" not in plain["usage"]
    before = fake.settled().steps
    parts = [{"type": "text", "text": PREDICTED[:20]}, {"type": "text", "text": PREDICTED[20:]}]
    for content in (PREDICTED, parts):
        body = await chat(client, n=2, prediction={"type": "content", "content": content})
        assert body["choices"] == plain["choices"]
        counts = body["usage"]["completion_tokens_details"]
        assert sum(counts.values()) == 2 * len(PREDICTED)
        assert counts["accepted_prediction_tokens"] >= 2 * accepted
        assert counts["accepted_prediction_tokens"] <= 2 * min(len(said), len(PREDICTED))
    stats = fake.settled()
    if accepted:
        assert stats.steps - before < 2 * len(said) and stats.accepted_tokens > len(said)
    stream = await chunks(client, prediction={"type": "content", "content": PREDICTED}, stream_options=USAGE)
    assert joined(stream)["content"] == said
    assert sum(stream[-1]["usage"]["completion_tokens_details"].values()) == len(PREDICTED)


async def test_a_streamed_answer(fake: FakeAssembly, client: httpx.AsyncClient) -> None:
    fake.runner.script = says("hm</think>Grüße 👋!")
    stream = await chunks(client)
    assert stream[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert stream[-1]["choices"] == [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}]
    assert all(c["choices"][0]["finish_reason"] is None for c in stream[:-1])
    assert all("usage" not in c and c["object"] == "chat.completion.chunk" for c in stream)
    assert len({c["id"] for c in stream}) == 1
    message = joined(stream)
    assert (message["reasoning_content"], message["content"]) == ("hm", "Grüße 👋!")


async def test_usage_in_a_stream(fake: FakeAssembly, client: httpx.AsyncClient) -> None:
    fake.runner.script = says("</think>Hello")
    stream = await chunks(client, stream_options={"include_usage": True})
    whole = await chat(client)
    assert all(c["usage"] is None for c in stream[:-1])
    assert stream[-1]["choices"] == []
    assert stream[-1]["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]


async def test_cached_tokens_are_reported(fake: FakeAssembly, client: httpx.AsyncClient) -> None:
    long = [{"role": "user", "content": "the same long beginning " * 4}]
    await chat(client, messages=long)
    body = await chat(client, messages=long)
    details = body["usage"]["prompt_tokens_details"]
    assert 0 < details["cached_tokens"] < body["usage"]["prompt_tokens"]


async def test_tool_calls(fake: FakeAssembly, client: httpx.AsyncClient) -> None:
    fake.runner.script = says(CALLS, "<|observation|>")
    body = await chat(client, tools=TOOLS)
    (choice,) = body["choices"]
    assert choice["finish_reason"] == "tool_calls"
    message = choice["message"]
    assert (message["content"], message["reasoning_content"]) == ("Wait.", "I look.")
    calls = [(c["type"], c["function"]["name"], json.loads(c["function"]["arguments"])) for c in message["tool_calls"]]
    assert calls == [("function", "get_weather", {"city": 'Köln "am" Rhein', "days": 2}), ("function", "get_time", {})]
    assert len({c["id"] for c in message["tool_calls"]}) == 2

    stream = await chunks(client, tools=TOOLS)
    streamed = joined(stream)
    assert (streamed["content"], streamed["reasoning_content"]) == ("Wait.", "I look.")
    assert [streamed["tool_calls"][i]["arguments"] for i in (0, 1)] == [
        c["function"]["arguments"] for c in message["tool_calls"]
    ]
    assert [streamed["tool_calls"][i]["name"] for i in (0, 1)] == ["get_weather", "get_time"]
    last = stream[-1]["choices"][0]
    assert (last["delta"], last["finish_reason"]) == ({}, "tool_calls")  # never with arguments in the same chunk
    with_id = [c for s in stream for c in s["choices"][0]["delta"].get("tool_calls", ()) if "id" in c]
    assert len(with_id) == 2  # id and name are sent once per call


async def test_calls_only_leave_the_content_null(fake: FakeAssembly, client: httpx.AsyncClient) -> None:
    fake.runner.script = says("</think><tool_call>get_time</tool_call>", "<|observation|>")
    (choice,) = (await chat(client, tools=TOOLS))["choices"]
    assert choice["message"]["content"] is None
    assert "reasoning_content" not in choice["message"]


async def test_without_tools_nothing_is_a_call(fake: FakeAssembly, client: httpx.AsyncClient) -> None:
    fake.runner.script = says("</think><tool_call>get_time</tool_call>")
    for fields in ({}, {"tools": TOOLS, "tool_choice": "none"}):
        (choice,) = (await chat(client, **fields))["choices"]
        assert choice["message"]["content"] == "<tool_call>get_time</tool_call>"
        assert choice["finish_reason"] == "stop"


async def test_half_a_call_is_not_announced_as_one_to_run(fake: FakeAssembly, client: httpx.AsyncClient) -> None:
    fake.runner.script = says("</think><tool_call>get_weather<arg_key>city</arg_key><arg_value>Kö")
    (choice,) = (await chat(client, tools=TOOLS))["choices"]
    assert choice["finish_reason"] == "stop"
    (choice,) = (await chat(client, tools=TOOLS, max_tokens=20))["choices"]
    assert choice["finish_reason"] == "length"


async def test_logprobs_cover_every_token_once(fake: FakeAssembly, client: httpx.AsyncClient) -> None:
    fake.runner.script = says(CALLS, "<|observation|>")
    fields = {"tools": TOOLS, "logprobs": True, "top_logprobs": 2}
    (choice,) = (await chat(client, **fields))["choices"]
    entries = choice["logprobs"]["content"]
    assert b"".join(bytes(e["bytes"]) for e in entries).decode() == CALLS  # the end token is not part of it
    assert all(len(e["top_logprobs"]) == 2 and e["logprob"] < 0 for e in entries)
    stream = await chunks(client, **fields)
    streamed = [e for c in stream for e in (c["choices"][0]["logprobs"] or {"content": []})["content"]]
    assert streamed == entries


async def test_several_choices(fake: FakeAssembly, client: httpx.AsyncClient) -> None:
    fake.runner.script = says("</think>same")
    body = await chat(client, n=3)
    assert [(c["index"], c["message"]["content"]) for c in body["choices"]] == [(i, "same") for i in range(3)]
    prompt = len(fake.engine.seen[0][0])
    assert body["usage"]["prompt_tokens"] == prompt  # counted once
    assert body["usage"]["completion_tokens"] == 3 * 6
    stream = await chunks(client, n=3)
    assert [joined(stream, i)["content"] for i in range(3)] == ["same"] * 3
    assert sum(c["choices"][0]["finish_reason"] == "stop" for c in stream) == 3


async def test_stop_and_length(fake: FakeAssembly, client: httpx.AsyncClient) -> None:
    fake.runner.script = says("</think>one two three")
    (choice,) = (await chat(client, stop="two"))["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("one ", "stop")
    (choice,) = (await chat(client, max_completion_tokens=4))["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("one", "length")


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"messages": [{"role": "user", "content": "x" * 2000}]}, "messages", "context_length_exceeded"),
        ({"max_tokens": 5000}, "max_tokens", "context_length_exceeded"),
        ({"max_completion_tokens": 5000}, "max_completion_tokens", "context_length_exceeded"),
        ({"stop_token_ids": [9999]}, "stop_token_ids", "invalid_value"),
        ({"logit_bias": {"9999": 1}}, "logit_bias", "invalid_value"),
        ({"temperature": -1}, "temperature", "invalid_value"),
        ({"unknown": 1}, "unknown", "unknown_parameter"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
async def test_refusals_come_before_the_queue(
    fake: FakeAssembly, client: httpx.AsyncClient, fields: dict[str, Any], param: str, code: str, stream: bool
) -> None:
    answer = await client.post("/v1/chat/completions", json={"messages": HI, "stream": stream, **fields})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (400, param, code)
    assert error["type"] == "invalid_request_error" and error["message"].endswith(".")
    assert fake.engine.stats().steps == 0


async def test_an_unknown_model(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/chat/completions", json={"messages": HI, "model": "gpt-4o"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
    assert "fake-glm" in answer.json()["error"]["message"]


async def test_the_engine_dies_in_the_middle(fake: FakeAssembly, client: httpx.AsyncClient) -> None:
    fake.runner.fail = True
    answer = await client.post("/v1/chat/completions", json={"messages": HI, "stream": True})
    *_, failure, done, _ = answer.text.split("\n\n")
    assert done == "data: [DONE]"
    assert json.loads(failure.removeprefix("data: "))["error"]["code"] == "engine_dead"
    for stream in (False, True):
        answer = await client.post("/v1/chat/completions", json={"messages": HI, "stream": stream})
        assert (answer.status_code, answer.json()["error"]["type"]) == (503, "server_error")
