"""Sixteen clients with many requests, some of which they cancel: a history drawn from a seed."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

from openai import AsyncOpenAI
from tests.api.serving import Served

CLIENTS, REQUESTS = 16, 200
PROMPTS = ("What is gravity?", "Tell me of the sea. " * 8, "天气怎么样？ 🙂", "Count to ten.")


@dataclass(frozen=True)
class Wish:
    """One request, and after how many chunks its client leaves; None: it stays."""

    fields: dict[str, Any]
    chat: bool
    leaves_after: int | None


def wishes(seed: int, most_tokens: int) -> Iterator[Wish]:
    """REQUESTS of them."""
    draw = random.Random(seed)
    for number in range(REQUESTS):
        fields = {
            "max_tokens": draw.randint(1, most_tokens),
            "temperature": draw.choice([0.0, 1.0]),
            "seed": number,
            "n": draw.choice([1, 1, 1, 2]),
        }
        chat, prompt = draw.random() < 0.5, draw.choice(PROMPTS)
        fields |= {"messages": [{"role": "user", "content": prompt}]} if chat else {"prompt": prompt}
        yield Wish(fields, chat, draw.randint(0, 5) if draw.random() < 0.3 else None)


async def ask(client: AsyncOpenAI, model: str, wish: Wish) -> str:
    """Send one wish; how it ended: "left", or the finish reasons of its choices, which must all have one."""
    endpoint: Any = client.chat.completions if wish.chat else client.completions
    usage = {"include_usage": True}
    async with await endpoint.create(model=model, stream=True, stream_options=usage, **wish.fields) as stream:
        return await followed(stream, wish)


async def followed(stream: AsyncIterator[Any], wish: Wish) -> str:
    """Read a stream as far as the client wishes."""
    ends: dict[int, str] = {}
    usage = None
    seen = 0
    async for chunk in stream:
        if seen == wish.leaves_after:
            return "left"
        seen += 1
        usage = chunk.usage or usage
        for choice in chunk.choices:
            assert choice.index not in ends, "a chunk came after the end of its choice"
            if choice.finish_reason is not None:
                ends[choice.index] = choice.finish_reason
    assert len(ends) == wish.fields["n"] and usage is not None
    assert 0 < usage.completion_tokens <= wish.fields["n"] * wish.fields["max_tokens"]
    return " ".join(sorted(set(ends.values())))


async def soak(server: Served, client: AsyncOpenAI, *, seed: int, most_tokens: int) -> Counter[str]:
    """All wishes from CLIENTS clients at once; how many ended how."""
    (model,) = [card.id async for card in client.models.list()]
    queue = list(wishes(seed, most_tokens))
    ends: Counter[str] = Counter()

    async def work() -> None:
        while queue:
            ends[await ask(client, model, queue.pop())] += 1

    await asyncio.gather(*(work() for _ in range(CLIENTS)))
    return ends


def assert_nothing_left(server: Served) -> None:
    """The server is as it was before."""
    body = server.settled()
    assert body["status"] == "ok"
    assert body["engine"]["free_blocks"] == body["engine"]["total_blocks"]
