"""What the server refuses, as OpenAI's client reports it: the right error, naming the field. Its other endpoints."""

from __future__ import annotations

from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI
from tests.api.serving import PATIENCE_S, Served
from tests.api.test_chat import HI, MODEL, TOOLS, ask
from tests.api.test_completions import complete

from gallium import LLM

ROOM = 16384


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"extra_body": {"guided_json": {}}}, "guided_json"),
        ({"extra_body": {"nonsense": 1}}, "nonsense"),
        ({"extra_body": {"messages": [{"role": "user", "content": "hi", "mood": "good"}]}}, "messages[0].mood"),
        ({"tools": TOOLS, "tool_choice": "required"}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "get_weather"}}}, "tool_choice"),
        ({"tools": [{"type": "function", "function": {"name": "f", "strict": True}}]}, "tools[0].function.strict"),
        ({"tools": TOOLS, "parallel_tool_calls": False}, "parallel_tool_calls"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"modalities": ["audio"]}, "modalities[0]"),
        ({"store": True}, "store"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"n": 0}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"max_tokens": "many"}, "max_tokens"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "robot", "content": "hi"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]},
         "messages[0].content[0].type"),
        ({"extra_body": {"chat_template_kwargs": {"nonsense": 1}}}, "chat_template_kwargs.nonsense"),
        ({"reasoning_effort": "high"}, "reasoning_effort"),
    ],
)  # fmt: skip
def test_a_field_is_named(client: OpenAI, fields: dict[str, Any], param: str, stream: bool) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, stream=stream, **fields)
    assert (caught.value.param, caught.value.type) == (param, "invalid_request_error")
    assert isinstance(caught.value.body, dict) and caught.value.body["message"].endswith(".")


@pytest.mark.parametrize("field", ["suffix", "best_of"])
def test_a_field_of_completions_is_named(client: OpenAI, field: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        complete(client, **{field: {"suffix": "x", "best_of": 2}[field]})
    assert caught.value.param == field


@pytest.mark.parametrize("stream", [False, True])
def test_a_context_that_is_too_long(client: OpenAI, stream: bool) -> None:
    with pytest.raises(openai.BadRequestError, match=f"the context of {ROOM} tokens") as caught:
        complete(client, prompt=[71] * (ROOM + 1), stream=stream)
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "prompt")
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, messages=[{"role": "user", "content": "x" * (ROOM + 1)}], stream=stream)
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "messages")
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, max_completion_tokens=ROOM, stream=stream)
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "max_completion_tokens")


def test_an_unknown_model(client: OpenAI) -> None:
    for refused in (lambda: ask(client, model="gpt-4o"), lambda: client.models.retrieve("gpt-4o")):
        with pytest.raises(openai.NotFoundError, match=MODEL) as caught:
            refused()
        assert caught.value.code == "model_not_found"


def test_a_wrong_key(server: Served) -> None:
    with OpenAI(base_url=server.url + "/v1", api_key="wrong", max_retries=0, timeout=PATIENCE_S) as client:
        for refused in (lambda: ask(client), lambda: ask(client, stream=True), client.models.list):
            with pytest.raises(openai.AuthenticationError) as caught:
                refused()
            assert caught.value.code == "invalid_api_key"


def test_models(client: OpenAI) -> None:
    (card,) = client.models.list().data
    assert (card.id, card.object, card.owned_by) == (MODEL, "model", "gallium")
    assert client.models.retrieve(MODEL) == card


def test_health_needs_no_key(server: Served) -> None:
    body = server.health()
    assert (body["status"], body["reason"], body["model"]) == ("ok", None, MODEL)
    assert (body["architecture"], body["precision"], body["emulated"]) == ("glm4_moe", "float32", False)


def test_tokenize_shows_what_the_model_sees(client: OpenAI, server: Served, llm: LLM) -> None:
    def post(path: str, body: dict[str, Any]) -> Any:
        headers = {"authorization": f"Bearer {client.api_key}"}
        answer = httpx.post(server.url + path, json=body, headers=headers, timeout=PATIENCE_S)
        assert answer.status_code == 200, answer.text
        return answer.json()

    body = post("/tokenize", {"prompt": "Grüße 🙂"})
    assert body["tokens"] == llm.tokenizer.encode("Grüße 🙂")
    assert (body["count"], body["max_model_len"]) == (len(body["tokens"]), ROOM)
    assert post("/detokenize", {"tokens": body["tokens"]}) == {"prompt": "Grüße 🙂"}
    seen = post("/tokenize", {"messages": HI, "tools": TOOLS})
    assert seen["count"] == ask(client, tools=TOOLS).usage.prompt_tokens


def test_every_request_is_a_line_in_the_log(client: OpenAI, server: Served) -> None:
    client.models.list()
    server.wait_for_line(" GET /v1/models 200 ", " s")
    httpx.get(server.url + "/no%0asuch place", timeout=PATIENCE_S)
    server.wait_for_line(" GET /no%0Asuch%20place 401 ")
