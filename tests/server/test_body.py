"""Every fault of a body becomes an error that names the field."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from gallium.server.body import parse
from gallium.server.failures import RefusedRequest
from gallium.server.wire import UNSUPPORTED, ChatRequest, CompletionRequest

HI = [{"role": "user", "content": "hi"}]


def refusal(kind: type, body: Any) -> RefusedRequest:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    with pytest.raises(RefusedRequest) as caught:
        parse(raw, kind)
    assert caught.value.param is None or caught.value.param in caught.value.message
    return caught.value


@pytest.mark.parametrize(
    "field",
    ["functions", "function_call", "audio", "web_search_options", "moderation", "thinking", "suffixes",
     "best_of", "guided_json", "continue_final_message", "chat_template", "max_token", "prompt", "documents"],
)  # fmt: skip
def test_a_chat_field_that_is_not_honoured_is_refused_by_name(field: str) -> None:
    error = refusal(ChatRequest, {"messages": HI, field: {"a": 1}})
    assert error.param == field
    assert error.http_status == 400
    assert error.code in ("unsupported_parameter", "unknown_parameter")


@pytest.mark.parametrize(
    "field", ["suffix", "messages", "tools", "response_format", "prompt_logprobs", "max_completion_tokens"]
)
def test_a_completion_field_that_is_not_honoured_is_refused_by_name(field: str) -> None:
    assert refusal(CompletionRequest, {"prompt": "x", field: "y"}).param == field


def test_a_reason_is_given_where_there_is_one() -> None:
    assert "use tools" in refusal(ChatRequest, {"messages": HI, "functions": []}).message


def test_null_is_the_same_as_absent() -> None:
    optional = set(ChatRequest.__struct_fields__) - {"messages"}
    wire = parse(json.dumps({"messages": HI, **dict.fromkeys(optional)}).encode(), ChatRequest)
    assert wire == parse(json.dumps({"messages": HI}).encode(), ChatRequest)
    assert set(UNSUPPORTED) <= set(ChatRequest.__struct_fields__) | set(CompletionRequest.__struct_fields__)


@pytest.mark.parametrize(
    ("prediction", "param"),
    [
        ({"content": "x"}, "prediction.type"),
        ({"type": "tokens", "content": "x"}, "prediction.type"),
        ({"type": "content", "content": 7}, "prediction.content"),
        ({"type": "content", "content": [{"type": "image_url", "text": "x"}]}, "prediction.content[0].type"),
        ({"type": "content", "content": "x", "more": 1}, "prediction.more"),
        ("x", "prediction"),
    ],
)
def test_a_prediction_that_is_none_is_refused(prediction: Any, param: str) -> None:
    assert refusal(ChatRequest, {"messages": HI, "prediction": prediction}).param == param


def test_a_prediction_is_text_or_parts_of_text() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    for content in ("ab", parts):
        raw = json.dumps({"messages": HI, "prediction": {"type": "content", "content": content}}).encode()
        wire = parse(raw, ChatRequest)
        assert wire.prediction is not None and wire.prediction.text == "ab"


def test_fields_that_change_nothing_are_accepted() -> None:
    harmless = {
        "user": "u", "metadata": {"a": "b"}, "store": False, "service_tier": "auto", "safety_identifier": "s",
        "prompt_cache_key": "k", "modalities": ["text"], "verbosity": "medium",
    }  # fmt: skip
    parse(json.dumps({"messages": HI, **harmless}).encode(), ChatRequest)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": HI, "temperature": "hot"}, "temperature"),
        ({"messages": HI, "stream": 1}, "stream"),
        ({"messages": HI, "n": True}, "n"),
        ({"messages": HI, "logit_bias": {"x": 1}}, "logit_bias"),
        ({"messages": HI, "stop": [1]}, "stop[0]"),
        ({"messages": HI, "service_tier": "flex"}, "service_tier"),
        ({"messages": HI, "modalities": ["audio"]}, "modalities[0]"),
        ({"messages": HI, "stream_options": {"continuous_usage_stats": True}}, "stream_options.continuous_usage_stats"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": "x", "mood": 1}]}, "messages[0].mood"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"id": "1"}]}]}, "messages[0].tool_calls[0].function"),
        ({"messages": "hi"}, "messages"),
        ({}, "messages"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_found_where_it_stands(body: Any, param: str) -> None:
    assert refusal(ChatRequest, body).param == param


@pytest.mark.parametrize(
    "raw",
    [b"", b"{", b"nonsense", b'{"messages": []} more', b'{"messages": "\xff"}', b'{"messages": "\\ud800"}',
     b"[" * 100_000, b'{"messages": NaN}', b'\xef\xbb\xbf{"messages": []}'],
)  # fmt: skip
def test_what_is_not_json_is_refused(raw: bytes) -> None:
    assert refusal(ChatRequest, raw).code in ("invalid_json", "invalid_type")


def test_json_that_is_no_object_is_refused() -> None:
    assert "the body" in refusal(ChatRequest, [1]).message


async def test_media_type_and_size(client: httpx.AsyncClient) -> None:
    body = b'{"prompt": "x"}'
    for media in ("text/plain", "application/x-www-form-urlencoded", ""):
        answer = await client.post("/v1/completions", content=body, headers={"content-type": media})
        assert answer.status_code == 415, media
        assert answer.json()["error"]["code"] == "unsupported_media_type"
    answer = await client.post(
        "/v1/completions", content=body, headers={"content-type": "Application/JSON; charset=utf-8"}
    )
    assert answer.status_code == 200

    async def endless() -> Any:
        while True:
            yield b" " * 2**20

    json_type = {"content-type": "application/json"}
    for content in (b" " * (16 * 2**20 + 1), endless()):
        answer = await client.post("/v1/completions", content=content, headers=json_type)
        assert answer.status_code == 413
        assert answer.json()["error"]["code"] == "request_too_large"
