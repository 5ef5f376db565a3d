"""Many clients at once, and clients that leave."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from tests.api.serving import Served
from tests.api.test_completions import MODEL, PROMPT, complete

LONG = 16000  # tokens: nobody in these tests waits for so many


def assert_freed(server: Served, generated_before: int, cancelled: int) -> None:
    """Nothing is left of the `cancelled` answers, and they were not computed to their end."""
    engine = server.settled()["engine"]
    assert engine["free_blocks"] == engine["total_blocks"]
    assert engine["generated_tokens"] - generated_before < cancelled * LONG


@pytest.mark.parametrize("n", [1, 2])
def test_a_stream_that_is_closed_is_cancelled(client: OpenAI, server: Served, n: int) -> None:
    before = server.settled()["engine"]["generated_tokens"]
    with complete(client, stream=True, max_tokens=LONG, n=n) as stream:
        running: set[int] = set()
        while len(running) < n:
            running.add(next(stream).choices[0].index)
        busy = server.health()
        engine = busy["engine"]
        assert busy["open_requests"] == 1
        assert engine["running"] + engine["waiting"] == n  # one may have lost its blocks to the other
        assert engine["free_blocks"] < engine["total_blocks"]
    assert_freed(server, before, n)
    server.wait_for_line(" POST /v1/completions 200 ", " (the client left)")


def test_a_whole_answer_that_nobody_waits_for_is_cancelled(client: OpenAI, server: Served) -> None:
    before = server.settled()["engine"]["generated_tokens"]
    with pytest.raises(openai.APITimeoutError):
        complete(client, max_tokens=LONG, timeout=0.3)
    assert_freed(server, before, 1)


def test_a_body_that_never_ends_leaves_nothing_behind(client: OpenAI, server: Served) -> None:
    def half() -> Any:
        yield b'{"prompt": "abc", '
        raise ConnectionAbortedError

    headers = {"authorization": f"Bearer {client.api_key}", "content-type": "application/json"}
    with pytest.raises(ConnectionAbortedError):
        httpx.post(server.url + "/v1/completions", content=half(), headers=headers)
    assert server.settled()["status"] == "ok"


async def test_sixteen_streams_say_what_each_would_alone(async_client: AsyncOpenAI, server: Served) -> None:
    async def alone(number: int) -> str:
        answer = await async_client.completions.create(**fields(number))
        return answer.choices[0].text

    async def streamed(number: int) -> str:
        stream = await async_client.completions.create(**fields(number), stream=True)
        return "".join([chunk.choices[0].text async for chunk in stream])

    def fields(number: int) -> dict[str, Any]:
        prompt = PROMPT * (number % 3) + "abc"[number % 3 :] + " " * number
        return {"model": MODEL, "prompt": prompt, "max_tokens": 20 + number, "temperature": number % 2, "seed": number}

    expected = [await alone(number) for number in range(16)]
    assert await asyncio.gather(*(streamed(number) for number in range(16))) == expected
    assert len(set(expected)) == 16
