"""One of four ranks is killed under a live server: clients get an error at once, and the next request is answered."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import httpx
import openai
import psutil
import pytest
from openai import AsyncOpenAI
from tests.api.serving import PATIENCE_S, Served, patiently, served

pytest.importorskip("torch")
STREAMS = 6
IN_TIME_S = 60.0  # at once, but for a busy machine: a rank that is only silent is lost after 600


def ranks_of(server: Served) -> list[psutil.Process]:
    """In the order in which they were started."""
    return psutil.Process(server.process.pid).children()


async def until_status(server: Served, status: str) -> httpx.Response:
    async with httpx.AsyncClient(base_url=server.url, timeout=PATIENCE_S) as probe:
        for _ in patiently(f"/health never says {status}"):
            answer = await probe.get("/health")
            if answer.json()["status"] == status:
                return answer
            await asyncio.sleep(0.02)
    raise AssertionError


async def test_one_of_four_ranks_is_killed(folder: Path) -> None:
    with served(
        str(folder), "--tp", "2", "--ep", "4", "--kv-memory", "16MiB", "--threads", "1", backend="torch"
    ) as server:
        started = asyncio.Semaphore(0)

        async def streamed(client: AsyncOpenAI, number: int) -> str:
            answer = await client.completions.create(
                model="tiny", prompt=[number], max_tokens=16000, stream=True, extra_body={"ignore_eos": True}
            )
            with pytest.raises(openai.APIError, match=r"rank 2 ended with signal 9 \(SIGKILL\)") as caught:
                async for _ in answer:
                    started.release()
            return str(caught.value.code)

        async with AsyncOpenAI(base_url=server.url + "/v1", api_key="-", max_retries=0, timeout=PATIENCE_S) as client:
            before = await client.completions.create(model="tiny", prompt="abc", max_tokens=5, temperature=0)
            streams = [asyncio.create_task(streamed(client, number)) for number in range(STREAMS)]
            while server.health()["engine"]["running"] < STREAMS:
                await started.acquire()
            assert len(ranks_of(server)) == 4
            os.kill(ranks_of(server)[2].pid, signal.SIGKILL)
            struck = time.monotonic()
            assert await asyncio.gather(*streams) == ["engine_dead"] * STREAMS
            assert time.monotonic() - struck < IN_TIME_S
            sick = await until_status(server, "restarting")
            assert sick.status_code == 503 and "rank 2 ended with signal 9" in sick.json()["reason"]
            after = await client.completions.create(model="tiny", prompt="abc", max_tokens=5, temperature=0)
            assert after.choices[0].text == before.choices[0].text
            well = await until_status(server, "ok")
            assert well.status_code == 200 and well.json()["engine"]["restarts"] == 1
            assert len(ranks_of(server)) == 4
            ranks = ranks_of(server)
    assert not any(rank.is_running() for rank in ranks)
    assert any("rank 2 ended with signal 9" in line for line in server.lines)
