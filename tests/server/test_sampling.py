"""Sampling fields: names, defaults, and combinations that cannot be."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from gallium.errors import InvalidRequest
from gallium.server.sampling import chat_params, completion_params
from gallium.server.wire import ChatRequest, CompletionRequest
from gallium.types import SamplingParams


def chat(**fields: Any) -> SamplingParams:
    return chat_params(msgspec.convert({"messages": [], **fields}, ChatRequest))


def completion(**fields: Any) -> SamplingParams:
    return completion_params(msgspec.convert({"prompt": "x", **fields}, CompletionRequest))


def test_defaults_are_those_of_openai() -> None:
    assert chat() == SamplingParams()
    assert completion() == SamplingParams(max_tokens=16)


def test_every_field_arrives() -> None:
    fields: dict[str, Any] = {
        "temperature": 0.5, "top_p": 0.9, "n": 2, "seed": -7, "presence_penalty": 0.1, "frequency_penalty": 0.2,
        "logit_bias": {3: 4.0}, "top_k": 5, "min_p": 0.05, "repetition_penalty": 1.1, "min_tokens": 2, "max_tokens": 9,
        "ignore_eos": True, "include_stop": True, "skip_special_tokens": False,
    }  # fmt: skip
    expected = SamplingParams(**fields, stop=("a", "b"), stop_token_ids=(1,), logprobs=3)
    more = {"stop": ["a", "b"], "stop_token_ids": [1]}
    assert chat(**fields, **more, logprobs=True, top_logprobs=3) == expected
    assert completion(**fields, **more, logprobs=3) == expected


def test_both_names_of_max_tokens() -> None:
    assert chat(max_completion_tokens=5).max_tokens == 5
    assert chat(max_completion_tokens=5, max_tokens=5).max_tokens == 5
    with pytest.raises(InvalidRequest, match="differ"):
        chat(max_completion_tokens=5, max_tokens=6)


def test_logprobs_of_the_chat() -> None:
    assert chat(logprobs=True).logprobs == 0
    assert chat(logprobs=False, top_logprobs=0).logprobs is None


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": -1}, "max_completion_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"stop": ""}, "stop"),
        ({"stop": ["x"] * 65}, "stop"),
        ({"seed": 2**64}, "seed"),
        ({"logit_bias": {1: 101}}, "logit_bias"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        chat(**fields)
    assert caught.value.param == param


def test_zero_tokens_only_with_echo() -> None:
    assert completion(max_tokens=0, echo=True).max_tokens == 1  # the caller does not ask for it then
    with pytest.raises(InvalidRequest, match="echo"):
        completion(max_tokens=0)


def test_best_of_must_be_n() -> None:
    completion(best_of=1)
    completion(best_of=3, n=3)
    with pytest.raises(InvalidRequest, match="best_of"):
        completion(best_of=2)
