"""A fault in a step of a live server: everybody is told, health turns red, and the process goes on answering."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI
from tests.api.serving import BACKEND, PATIENCE_S
from tests.server.fakes import Live, live

from gallium.engine.assembly import Assembly, assemble
from gallium.engine.runner import ModelRunner
from gallium.settings import EngineSettings

STREAMS, WHOLE = 6, 6


@pytest.fixture
def fault(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Once this is set, the next step fails."""
    broken = threading.Event()
    run = ModelRunner.run

    def fragile(self: ModelRunner, *args: Any) -> Any:
        if broken.is_set():
            raise MemoryError("the memory bank is gone")
        return run(self, *args)

    monkeypatch.setattr(ModelRunner, "run", fragile)
    return broken


@pytest.fixture
def assembly(folder: Path) -> Iterator[Assembly]:
    made = assemble(str(folder), EngineSettings(backend=BACKEND, kv_memory=64 * 2**20))
    yield made
    made.close()


@pytest.fixture
def server(assembly: Assembly, fault: threading.Event) -> Iterator[Live]:
    with live(assembly) as running:
        yield running


async def test_the_engine_dies(server: Live, assembly: Assembly, fault: threading.Event) -> None:
    long: dict[str, Any] = {"model": assembly.label, "prompt": "abc", "max_tokens": 16000}
    started = asyncio.Semaphore(0)

    async def streamed() -> str:
        answer = await client.completions.create(**long, stream=True)
        with pytest.raises(openai.APIError, match="the memory bank is gone") as caught:
            async for _ in answer:
                started.release()
        return str(caught.value.code)

    async def whole() -> str:
        with pytest.raises(openai.InternalServerError, match="the memory bank is gone") as caught:
            await client.completions.create(**long)
        assert caught.value.status_code == 503
        return str(caught.value.code)

    async with AsyncOpenAI(base_url=server.url + "/v1", api_key="-", max_retries=0, timeout=PATIENCE_S) as client:
        answers = [asyncio.create_task(streamed()) for _ in range(STREAMS)]
        answers += [asyncio.create_task(whole()) for _ in range(WHOLE)]
        while assembly.engine.stats().running < STREAMS + WHOLE:
            await started.acquire()
        fault.set()
        assert await asyncio.gather(*answers) == ["engine_dead"] * (STREAMS + WHOLE)

        async with httpx.AsyncClient(base_url=server.url) as probe:  # and the process still answers
            health = await probe.get("/health")
            assert (health.status_code, health.json()["status"]) == (503, "dead")
            assert "the memory bank is gone" in health.json()["reason"]
            assert health.json()["open_requests"] == 0
        assert [card.id async for card in client.models.list()] == [assembly.label]
        for stream in (False, True):
            with pytest.raises(openai.InternalServerError) as caught:
                await client.completions.create(**long, stream=stream)
            assert (caught.value.status_code, caught.value.code) == (503, "engine_dead")
