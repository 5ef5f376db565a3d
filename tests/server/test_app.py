"""Routes, keys, cross-origin requests, health, models, tokenisation, and what happens on a bug."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from tests.server.fakes import FakeAssembly, fake_assembly

from gallium.engine.assembly import Draft
from gallium.errors import UsageError
from gallium.server.app import create_app
from gallium.server.settings import ServerSettings


@asynccontextmanager
async def served(fake: FakeAssembly, **settings: Any) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(fake.real(), ServerSettings(**settings))
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


async def test_models(fake: FakeAssembly) -> None:
    async with served(fake, served_name="zai-org/glm-edge") as client:
        body = (await client.get("/v1/models")).json()
        (card,) = body["data"]
        assert (body["object"], card["object"], card["id"]) == ("list", "model", "zai-org/glm-edge")
        assert (card["root"], card["max_model_len"], card["owned_by"]) == ("fake-glm", 1000, "gallium")
        assert (await client.get("/v1/models/zai-org/glm-edge")).json() == card
        missing = await client.get("/v1/models/fake-glm")
        assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")


async def test_health(fake: FakeAssembly) -> None:
    fake.emulated = True
    fake.draft = Draft("small", "int4", 1000)
    async with served(fake) as client:
        answer = await client.get("/health")
        body = answer.json()
        assert answer.status_code == 200
        assert (body["status"], body["model"], body["backend"], body["precision"]) == (
            "ok",
            "fake-glm",
            "pretend",
            "float32",
        )
        assert body["emulated"] is True
        assert (
            body["draft"] == {"label": "small", "precision": "int4", "kv_bytes": 1000} and body["kv_bytes"] == 1 << 20
        )
        assert body["engine"]["drafts"]["model"] == {"drafted": 0, "accepted": 0}
        assert body["engine"]["free_blocks"] == body["engine"]["total_blocks"] == 256
        model = (await client.post("/v1/completions", json={"prompt": "a"})).json()
        assert model["system_fingerprint"].endswith("/emulated")
        fake.engine.shutdown()
        answer = await client.get("/health")
        assert (answer.status_code, answer.json()["status"]) == (503, "dead")
        assert "shut down" in answer.json()["reason"]
        answer = await client.post("/v1/completions", json={"prompt": "a"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_dead")


async def test_tokenize(fake: FakeAssembly) -> None:
    async with served(fake) as client:
        body = (await client.post("/tokenize", json={"prompt": "hé", "return_token_strs": True})).json()
        assert body == {
            "count": 3,
            "max_model_len": 1000,
            "tokens": [104, 0xC3, 0xA9],
            "token_strs": ["h", "\ufffd", "\ufffd"],
        }
        messages = [{"role": "user", "content": "hi"}]
        body = (await client.post("/tokenize", json={"messages": messages, "add_generation_prompt": False})).json()
        text = (await client.post("/detokenize", json={"tokens": body["tokens"]})).json()["prompt"]
        assert text == "[gMASK]<sop><|user|>hi"
        skipped = {"tokens": body["tokens"], "skip_special_tokens": True}
        assert (await client.post("/detokenize", json=skipped)).json()["prompt"] == "hi"


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": []}, "prompt"),
        ("/tokenize", {"prompt": "a", "tools": []}, "tools"),
        ("/tokenize", {"messages": [], "add_special_tokens": True}, "add_special_tokens"),
        ("/tokenize", {"prompt": "a", "x": 1}, "x"),
        ("/detokenize", {"tokens": [1, 999]}, "tokens[1]"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": [], "model": 5}, "model"),
    ],
)  # fmt: skip
async def test_tokenize_refusals(fake: FakeAssembly, path: str, body: dict[str, Any], param: str) -> None:
    async with served(fake) as client:
        answer = await client.post(path, json=body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


async def test_unknown_places_and_methods(fake: FakeAssembly) -> None:
    async with served(fake) as client:
        answer = await client.get("/v1/nothing")
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
        answer = await client.get("/v1/chat/completions")
        assert (answer.status_code, answer.json()["error"]["code"]) == (405, "method_not_allowed")
        assert answer.headers["allow"] == "POST"


async def test_the_key(fake: FakeAssembly) -> None:
    async with served(fake, api_key="geheim-ü") as client:
        assert (await client.get("/health")).status_code == 200
        wrong: list[dict[str, str | bytes]] = [
            {}, {"authorization": "Bearer nope"}, {"authorization": "Basic geheim"}, {"authorization": "geheim"},
            {"authorization": b"Bearer \xff"},
        ]  # fmt: skip
        for headers in wrong:
            answer = await client.get("/v1/models", headers=headers)  # type: ignore[arg-type]
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
            assert answer.headers["www-authenticate"] == "Bearer"
        headers = {"authorization": "bearer geheim-ü".encode()}
        assert (await client.get("/v1/models", headers=headers)).status_code == 200  # type: ignore[arg-type]


async def test_other_origins_are_kept_out_unless_named(fake: FakeAssembly) -> None:
    ask = {"origin": "https://app.example", "access-control-request-method": "POST"}
    async with served(fake) as client:
        answer = await client.get("/v1/models", headers={"origin": "https://app.example"})
        assert "access-control-allow-origin" not in answer.headers
        assert (await client.options("/v1/chat/completions", headers=ask)).status_code == 405
    async with served(fake, cors_origins=("https://app.example",), api_key="k") as client:
        answer = await client.options("/v1/chat/completions", headers=ask)  # a preflight has no key
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == "https://app.example"


async def test_a_bug_tells_nothing_of_the_inside(fake: FakeAssembly, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(text: str, **named: Any) -> list[int]:
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(fake.tokenizer, "encode", broken)
    async with served(fake) as client:
        answer = await client.post("/v1/completions", json={"prompt": "a"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
    assert "secret" not in answer.text


@pytest.mark.parametrize(
    "wrong", [{"api_key": " "}, {"served_name": ""}, {"max_body_bytes": 0}, {"keep_alive_s": 0}, {"grace_s": -1}]
)
def test_settings_that_cannot_work(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        ServerSettings(**wrong)


async def test_a_model_without_a_template_can_still_complete() -> None:
    fake = fake_assembly(None)
    async with served(fake) as client:
        answer = await client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "a"}]})
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "template_error")
        assert (await client.post("/v1/completions", json={"prompt": "a"})).status_code == 200
    fake.engine.shutdown()
