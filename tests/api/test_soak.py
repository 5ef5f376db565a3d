"""200 requests of 16 clients that stream, three in ten of them cancelled: all end, and nothing is left behind."""

from __future__ import annotations

from openai import AsyncOpenAI
from tests.api.serving import Served
from tests.api.soaking import CLIENTS, REQUESTS, assert_nothing_left, soak

MIB = 2**20


async def test_a_soak(async_client: AsyncOpenAI, server: Served) -> None:
    await soak(server, async_client, seed=1, most_tokens=10)
    assert_nothing_left(server)
    before = server.memory()
    ends = await soak(server, async_client, seed=2, most_tokens=60)
    assert_nothing_left(server)
    assert ends.total() == REQUESTS and ends["left"] > CLIENTS
    assert server.memory() < before + 16 * MIB
