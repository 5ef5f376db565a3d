"""What runs in the engine for a request, and the stream that shows it: ends, errors, silence, clients that leave."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, MutableMapping
from typing import Any

import pytest
from tests.server.fakes import FakeAssembly, says

from gallium.errors import ContextTooLong, EngineDead
from gallium.server.generation import DisconnectedError, Generation, attended
from gallium.server.sse import DONE, KEEP_ALIVE, EventStream, event
from gallium.types import Delta, SamplingParams


def generation(fake: FakeAssembly, *prompts: str, **params: Any) -> Generation:
    return Generation(fake.engine, [list(p.encode()) for p in prompts], SamplingParams(**params), set())


async def collect(running: Generation) -> dict[tuple[int, int], str]:
    texts: dict[tuple[int, int], str] = {}
    async for batch in running.batches():
        for number, delta in batch:
            key = (number, delta.index)
            texts[key] = texts.get(key, "") + delta.text
    return texts


async def test_prompts_and_choices_are_kept_apart(fake: FakeAssembly) -> None:
    texts = await collect(generation(fake, "abc", "xy", n=2))
    assert texts == {(0, 0): "abc", (0, 1): "abc", (1, 0): "xy", (1, 1): "xy"}


async def test_no_prompts_end_at_once(fake: FakeAssembly) -> None:
    assert await collect(generation(fake)) == {}


async def test_a_refused_prompt_cancels_the_others(fake: FakeAssembly) -> None:
    registry: set[Generation] = set()
    with pytest.raises(ContextTooLong):
        Generation(fake.engine, [[97], [98] * 2000], SamplingParams(), registry)
    assert registry == set()


async def test_silence_is_reported(fake: FakeAssembly) -> None:
    fake.runner.gate = threading.Semaphore(0)
    running = generation(fake, "ab")
    batches = running.batches(0.01)
    assert await anext(batches) == []
    assert await anext(batches) == []
    fake.runner.gate.release(3)
    texts = [delta.text async for batch in batches for _, delta in batch]
    assert "".join(texts) == "ab"


async def test_many_deltas_come_in_few_batches(fake: FakeAssembly) -> None:
    running = generation(fake, "a" * 50)
    while fake.engine.stats().generated_tokens < 51:
        await asyncio.to_thread(fake.settled)
    batch: list[tuple[int, Delta]] = await anext(running.batches())
    assert len(batch) == 51
    running.close()


async def test_abort_ends_with_the_error(fake: FakeAssembly) -> None:
    fake.runner.script = lambda prompt: [97] * 900
    running = generation(fake, "ab")
    running.abort(EngineDead("over."))
    with pytest.raises(EngineDead, match="over"):
        await collect(running)
    running.close()


def test_a_last_delta_may_come_after_the_end_of_the_event_loop(
    fake: FakeAssembly, caplog: pytest.LogCaptureFixture
) -> None:
    fake.runner.gate = threading.Semaphore(0)

    async def begin_and_leave() -> None:
        generation(fake, "ab").close()

    asyncio.run(begin_and_leave())
    fake.settled()
    assert caplog.text == ""


async def test_somebody_elses_cancel_is_an_error(fake: FakeAssembly) -> None:
    fake.runner.script = lambda prompt: [97] * 900
    running = generation(fake, "ab")
    running._handles[0].cancel()
    with pytest.raises(EngineDead, match="early"):
        await collect(running)
    running.close()


async def test_a_client_that_leaves_frees_the_blocks(fake: FakeAssembly) -> None:
    fake.runner.script = lambda prompt: [97] * 900
    running = generation(fake, "ab")
    left = asyncio.Event()

    async def receive() -> MutableMapping[str, Any]:
        await left.wait()
        return {"type": "http.disconnect"}

    with pytest.raises(DisconnectedError):
        async with attended(running, receive):
            async for _ in running.batches():
                left.set()
    stats = fake.settled()
    assert stats.free_blocks == stats.total_blocks
    assert stats.generated_tokens < 900


class Wire:
    """An ASGI connection that a test can look into."""

    def __init__(self, leave_after: int = 10**9) -> None:
        self.body = b""
        self.ended = False
        self._left = asyncio.Event()
        self._leave_after = leave_after

    async def receive(self) -> MutableMapping[str, Any]:
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: MutableMapping[str, Any]) -> None:
        self.body += message.get("body", b"")
        self.ended = message["type"] == "http.response.body" and not message["more_body"]
        if len(self.body) >= self._leave_after:
            self._left.set()


async def stream(
    fake: FakeAssembly, frames: AsyncGenerator[bytes, None], running: Generation, wire: Wire | None = None
) -> Wire:
    wire = wire or Wire()
    await EventStream(frames, running, {})({"type": "http"}, wire.receive, wire.send)
    return wire


async def texts_of(running: Generation, patience: float | None = None) -> AsyncGenerator[bytes, None]:
    async for batch in running.batches(patience):
        yield b"".join(event(delta.text) for _, delta in batch) or KEEP_ALIVE


async def test_a_stream_ends_with_done(fake: FakeAssembly) -> None:
    running = generation(fake, "a\nb")
    wire = await stream(fake, texts_of(running), running)
    assert wire.body == b'data: "a"\n\ndata: "\\n"\n\ndata: "b"\n\ndata: ""\n\n' + DONE
    assert wire.ended


async def test_a_failure_becomes_an_event(fake: FakeAssembly, caplog: pytest.LogCaptureFixture) -> None:
    async def fails(error: Exception) -> AsyncGenerator[bytes, None]:
        yield event("so far")
        raise error

    for error, code in ((EngineDead("it is over."), b"engine_dead"), (ZeroDivisionError("secret"), b"internal_error")):
        fake.runner.script = lambda prompt: [97] * 900
        running = generation(fake, "ab")
        wire = await stream(fake, fails(error), running)
        first, failure, done, _ = wire.body.split(b"\n\n")
        assert (first, done) == (b'data: "so far"', b"data: [DONE]")
        assert code in failure and b"secret" not in failure
        assert wire.ended
    assert "secret" in caplog.text


async def test_a_stream_whose_client_leaves_stops(fake: FakeAssembly) -> None:
    fake.runner.script = lambda prompt: [97] * 900
    running = generation(fake, "ab")
    wire = await stream(fake, texts_of(running), running, Wire(leave_after=100))
    assert DONE not in wire.body and not wire.ended
    assert fake.settled().generated_tokens < 900


async def test_a_quiet_stream_says_that_it_lives(fake: FakeAssembly) -> None:
    fake.runner.gate = threading.Semaphore(0)
    fake.runner.script = says("x")
    running = generation(fake, "ab")
    gate = fake.runner.gate
    asyncio.get_running_loop().call_later(0.1, gate.release, 2)
    wire = await stream(fake, texts_of(running, patience=0.01), running)
    assert wire.body.startswith(KEEP_ALIVE * 2)
    assert wire.body.endswith(DONE)
