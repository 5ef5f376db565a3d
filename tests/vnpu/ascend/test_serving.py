"""The whole server on the virtual NPU, with OpenAI's own client: eight streams at once, labelled as emulated."""

from __future__ import annotations

import asyncio

from openai import AsyncOpenAI
from tests.api.serving import PATIENCE_S, served

OPTIONS = ("--virtual", "--precision", "bfloat16", "--kv-memory", "64MiB", "--max-context", "512")
QUESTIONS = [
    f"Name {number} things that are {colour}." for number in (2, 3) for colour in ("red", "blue", "old", "new")
]


async def ask(client: AsyncOpenAI, model: str, question: str) -> str:
    """One answer, streamed."""
    stream = await client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": question}],
        stream=True,
        max_tokens=6,
        temperature=0.8,
        seed=5,
    )
    return "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])


async def test_eight_streams_at_once() -> None:
    with served(*OPTIONS, backend="ascend") as server:
        health = server.health()
        assert (health["backend"], health["emulated"], health["precision"]) == ("ascend", True, "bfloat16")
        assert any("EMULATED" in line for line in server.lines)
        assert any("virtual Ascend910B2 x 1" in line for line in server.lines)
        async with AsyncOpenAI(base_url=server.url + "/v1", api_key="none", timeout=PATIENCE_S) as client:
            (model,) = [entry.id async for entry in await client.models.list()]
            answers = await asyncio.gather(*(ask(client, model, question) for question in QUESTIONS))
            assert len(set(answers)) == len(QUESTIONS) and all(answers)
