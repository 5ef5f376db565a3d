"""The life of an engine and of its requests: cancellation, death, shutdown, listeners, streams."""

from __future__ import annotations

import asyncio
import threading
from contextlib import aclosing

import numpy as np
import pytest
from tests.engine.conftest import MakeEngine
from tests.engine.fakes import Answer, answer, pretend_engine

from gallium.engine.async_engine import Engine
from gallium.errors import EngineDead, InvalidRequest
from gallium.types import Delta, SamplingParams

PROMPT = "Tell me about the element gallium."


# -- cancellation and death ----------------------------------------------------------------------


def test_a_cancelled_request_ends_and_frees_its_blocks(make_engine: MakeEngine) -> None:
    engine, runner = make_engine()
    runner.gate = threading.Semaphore(3)
    long = Answer(engine, PROMPT, SamplingParams(max_tokens=50, n=3, ignore_eos=True))
    other = Answer(engine, "abc", SamplingParams(max_tokens=3, ignore_eos=True))
    long.next()
    long.handle.cancel()
    long.handle.cancel()
    for _ in range(50):
        runner.gate.release()
    long.wait()
    assert {long.last(i).finish_reason for i in range(3)} == {"cancelled"}
    assert other.wait().last().finish_reason == "length"
    steps = len(runner.steps)
    assert steps < 20
    assert engine.stats().free_blocks == engine.stats().total_blocks
    long.handle.cancel()  # long over
    assert answer(engine, "abc", max_tokens=1).deltas


def test_a_cancelled_request_gives_its_held_back_text(make_engine: MakeEngine) -> None:
    engine, runner = make_engine()
    text = answer(engine, "abc", temperature=0, max_tokens=5, ignore_eos=True).text()
    runner.gate = threading.Semaphore(2)
    held = Answer(engine, "abc", SamplingParams(temperature=0, stop=(text + "!",), ignore_eos=True))
    assert [held.next().text, held.next().text] == ["", ""]
    held.handle.cancel()
    runner.gate.release()
    assert held.wait().text().startswith(text[:2])


def test_a_failing_step_ends_every_open_request_and_the_engine(make_engine: MakeEngine) -> None:
    engine, runner = make_engine(max_batch=2)
    runner.fail_at, runner.gate = 3, threading.Semaphore(0)
    answers = [Answer(engine, PROMPT, SamplingParams(max_tokens=50, ignore_eos=True)) for _ in range(4)]
    runner.gate.release(10)
    for a in answers:
        with pytest.raises(EngineDead, match="RuntimeError: the device caught fire"):
            a.wait()
    assert not engine.healthy and "caught fire" in str(engine.failure)
    with pytest.raises(EngineDead):
        engine.submit([1], SamplingParams(), lambda delta: None)
    with pytest.raises(EngineDead):
        engine.logits([1])
    answers[0].handle.cancel()  # no error


def test_logits_get_the_engines_death(make_engine: MakeEngine) -> None:
    engine, runner = make_engine()
    runner.fail_at = 0
    with pytest.raises(EngineDead):
        engine.logits([1, 2, 3])


def test_shutdown_answers_everybody(make_engine: MakeEngine) -> None:
    engine, runner = make_engine()
    assert engine.healthy and engine.failure is None
    runner.gate = threading.Semaphore(1)
    open_one = Answer(engine, PROMPT, SamplingParams(ignore_eos=True))
    threading.Timer(0.05, runner.gate.release, [100]).start()
    engine.shutdown()
    with pytest.raises(EngineDead, match="shut down"):
        open_one.wait()
    assert not engine.healthy
    engine.shutdown()


def test_an_engine_that_never_ran_answers_too() -> None:
    engine, _ = pretend_engine()
    assert not engine.healthy
    early = Answer(engine, "abc", SamplingParams())
    engine.shutdown()
    with pytest.raises(EngineDead):
        early.wait()


def test_a_listener_that_raises_loses_only_its_own_request(
    make_engine: MakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    engine, _ = make_engine()

    def broken(delta: object) -> None:
        raise ValueError("no")

    engine.submit(list(PROMPT.encode()), SamplingParams(n=2, ignore_eos=True), broken)
    assert len(answer(engine, "abc", max_tokens=9, ignore_eos=True).tokens()) == 9
    assert engine.healthy
    assert "is cancelled" in caplog.text


# -- streams ------------------------------------------------------------------------------------------


async def test_stream_gives_the_deltas_in_order(make_engine: MakeEngine) -> None:
    engine, _ = make_engine()
    params = SamplingParams(seed=2, max_tokens=6, ignore_eos=True, n=2)
    deltas = [d async for d in engine.stream(list(b"abc"), params)]
    expected = Answer(engine, "abc", params).wait()
    for i in range(2):
        assert [t for d in deltas if d.index == i for t in d.token_ids] == expected.tokens(i)


async def test_closing_a_stream_cancels_the_request(make_engine: MakeEngine) -> None:
    engine, _ = make_engine()
    async with aclosing(engine.stream(list(b"abc"), SamplingParams(ignore_eos=True))) as stream:
        await anext(stream)
    with pytest.raises(StopAsyncIteration):
        await anext(stream)
    dropped = engine.stream(list(b"abc"), SamplingParams(ignore_eos=True))
    await anext(dropped)
    del dropped
    await until_idle(engine)


async def test_stream_refuses_at_once_and_tells_of_death(make_engine: MakeEngine) -> None:
    engine, runner = make_engine()
    with pytest.raises(InvalidRequest):
        engine.stream([], SamplingParams())
    runner.fail_at = 2
    seen: list[Delta] = []
    with pytest.raises(EngineDead):
        async for delta in engine.stream(list(b"abc"), SamplingParams(ignore_eos=True)):
            seen.append(delta)
    assert len(seen) == 2


async def test_many_clients_with_random_cancels(make_engine: MakeEngine) -> None:
    engine, _ = make_engine(num_blocks=30, max_step_tokens=11)
    rng = np.random.default_rng(0)

    async def client(number: int) -> int:
        count, leave = 0, int(rng.integers(1, 40))
        params = SamplingParams(seed=number, max_tokens=int(rng.integers(1, 30)), n=int(rng.integers(1, 3)))
        async with aclosing(engine.stream([65] * int(rng.integers(1, 40)), params)) as stream:
            async for _ in stream:
                count += 1
                if count == leave:
                    break
        return count

    counts = await asyncio.gather(*(client(number) for number in range(60)))
    assert all(counts)
    await until_idle(engine)


async def until_idle(engine: Engine) -> None:
    """Wait until the engine has nothing to do; a bounded time."""
    for _ in range(500):
        stats = engine.stats()
        if stats.running == stats.waiting == 0:
            return
        await asyncio.sleep(0.01)
    raise AssertionError("the engine is still busy")
