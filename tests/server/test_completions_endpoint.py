"""/v1/completions over a scripted model that repeats its prompt."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from tests.server.fakes import EOS, VOCAB, FakeAssembly, fake_assembly, says

from gallium.server.app import create_app


async def complete(client: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    answer = await client.post("/v1/completions", json=fields)
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


async def refused(client: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    answer = await client.post("/v1/completions", json=fields)
    assert answer.status_code == 400, answer.text
    error: dict[str, Any] = answer.json()["error"]
    return error


async def streamed(client: httpx.AsyncClient, **fields: Any) -> list[dict[str, Any]]:
    answer = await client.post("/v1/completions", json={"stream": True, **fields})
    *events, done, _ = answer.text.split("\n\n")
    assert done == "data: [DONE]"
    return [json.loads(event.removeprefix("data: ")) for event in events]


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ("abc", ["abc"]),
        (["abc", "de"], ["abc", "de"]),
        ([97, 98], ["ab"]),
        ([[97, 98], [99]], ["ab", "c"]),
    ],
)  # fmt: skip
async def test_the_four_forms_of_a_prompt(client: httpx.AsyncClient, prompt: Any, texts: list[str]) -> None:
    body = await complete(client, prompt=prompt)
    assert body["object"] == "text_completion" and body["id"].startswith("cmpl-")
    assert [c["text"] for c in body["choices"]] == texts
    assert [c["index"] for c in body["choices"]] == list(range(len(texts)))
    assert {c["finish_reason"] for c in body["choices"]} == {"stop"}
    assert body["usage"]["prompt_tokens"] == sum(map(len, texts))
    stream = await streamed(client, prompt=prompt, stream_options={"include_usage": True})
    for index, text in enumerate(texts):
        pieces = [c["choices"][0] for c in stream[:-1] if c["choices"][0]["index"] == index]
        assert "".join(p["text"] for p in pieces) == text
        assert [p["finish_reason"] for p in pieces if p["finish_reason"]] == ["stop"]
    assert stream[-1]["usage"]["total_tokens"] == body["usage"]["total_tokens"]


async def test_choices_are_numbered_by_prompt(client: httpx.AsyncClient) -> None:
    body = await complete(client, prompt=["a", "b"], n=2)
    assert [(c["index"], c["text"]) for c in body["choices"]] == [(0, "a"), (1, "a"), (2, "b"), (3, "b")]


async def test_sixteen_tokens_unless_told_otherwise(client: httpx.AsyncClient) -> None:
    (choice,) = (await complete(client, prompt="x" * 40))["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("x" * 16, "length")


async def test_echo(client: httpx.AsyncClient) -> None:
    (choice,) = (await complete(client, prompt="abc", echo=True))["choices"]
    assert choice["text"] == "abcabc"
    stream = await streamed(client, prompt=[97, 98, 99], echo=True)
    assert "".join(c["choices"][0]["text"] for c in stream) == "abcabc"


async def test_the_prefix_of_the_tokenizer_is_not_echoed() -> None:
    assembly = fake_assembly(None, prefix=(EOS + 1,))
    transport = httpx.ASGITransport(create_app(assembly.real()))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        (choice,) = (await complete(client, prompt="abc", echo=True, logprobs=0))["choices"]
    assert assembly.engine.seen[0][0] == [EOS + 1, 97, 98, 99]
    assert choice["text"] == "abcabc"
    assert choice["logprobs"]["text_offset"] == [0, 0, 1, 2, 3, 4, 5]
    assembly.engine.shutdown()


async def test_logprobs(client: httpx.AsyncClient) -> None:
    (choice,) = (await complete(client, prompt="abc", logprobs=2))["choices"]
    lists = choice["logprobs"]
    assert lists["tokens"] == ["a", "b", "c"]
    assert lists["text_offset"] == [0, 1, 2]
    assert all(len(best) == 2 for best in lists["top_logprobs"])
    assert [best[token] for best, token in zip(lists["top_logprobs"], lists["tokens"], strict=True)] == lists[
        "token_logprobs"
    ]


async def test_echo_with_logprobs_scores_the_prompt(client: httpx.AsyncClient) -> None:
    (choice,) = (await complete(client, prompt="abc", echo=True, logprobs=1))["choices"]
    lists = choice["logprobs"]
    assert lists["tokens"] == list("abcabc")
    assert lists["text_offset"] == [0, 1, 2, 3, 4, 5]
    assert lists["token_logprobs"][0] is None and lists["top_logprobs"][0] is None
    # the scripted model expects the end after each part of the prompt, and the prompt again after the prompt
    assert all(value < -5 for value in lists["token_logprobs"][1:3])
    assert all(value > -1 for value in lists["token_logprobs"][3:])


async def test_scoring_alone(fake: FakeAssembly, client: httpx.AsyncClient) -> None:
    for fields in ({"prompt": "abc"}, {"prompt": [97, 98, 99]}):
        body = await complete(client, **fields, echo=True, logprobs=0, max_tokens=0)
        (choice,) = body["choices"]
        assert (choice["text"], choice["finish_reason"]) == ("abc", "length")
        assert len(choice["logprobs"]["tokens"]) == 3
        assert body["usage"]["completion_tokens"] == 0
    assert fake.engine.seen == []
    (chunk,) = await streamed(client, prompt="abc", echo=True, max_tokens=0)
    assert (chunk["choices"][0]["text"], chunk["choices"][0]["finish_reason"]) == ("abc", "length")


async def test_a_padding_id_in_a_scored_prompt_has_no_probability(client: httpx.AsyncClient) -> None:
    (choice,) = (await complete(client, prompt=[97, VOCAB + 1, 98], echo=True, logprobs=0, max_tokens=0))["choices"]
    assert choice["logprobs"]["token_logprobs"][1] == -9999.0
    assert choice["text"] == "ab"


async def test_a_prompt_that_is_too_long_to_score(client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gallium.server.scoring.MAX_LOGITS_BYTES", 4 * 280 * 4)
    assert (await refused(client, prompt="abcde", echo=True, logprobs=1))["param"] == "echo"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [], "echo": True, "max_tokens": 0}, "prompt"),
        ({"prompt": ["a", 1]}, "prompt[0]"),
        ({"prompt": [1, True]}, "prompt[0]"),
        ({"prompt": [[1], ["a"]]}, "prompt[1]"),
        ({"prompt": [1.5]}, "prompt[0]"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [300]}, "prompt"),
        ({"prompt": [2**70]}, "prompt"),
        ({"prompt": [300], "echo": True, "max_tokens": 0}, "prompt"),
        ({"prompt": {"text": "a"}}, "prompt"),
        ({"prompt": "a", "suffix": "b"}, "suffix"),
        ({"prompt": "a", "best_of": 2}, "best_of"),
        ({"prompt": "a", "logprobs": 21}, "logprobs"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens"),
        ({"prompt": ["a"] * 600, "n": 2}, "prompt"),
        ({"prompt": "a" * 1200}, "prompt"),
        ({"prompt": "a" * 1200, "echo": True, "logprobs": 0, "max_tokens": 0}, "prompt"),
        ({}, "prompt"),
    ],
)  # fmt: skip
async def test_refusals_name_the_field(client: httpx.AsyncClient, fields: dict[str, Any], param: str) -> None:
    error = await refused(client, **fields)
    assert error["param"] == param


async def test_one_long_prompt_refuses_all(fake: FakeAssembly, client: httpx.AsyncClient) -> None:
    fake.runner.script = says("ok")
    error = await refused(client, prompt=["short", "x" * 1200])
    assert error["code"] == "context_length_exceeded"
    assert (await complete(client, prompt="short"))["choices"][0]["text"] == "ok"
