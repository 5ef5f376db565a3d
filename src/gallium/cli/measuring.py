"""Times a running engine: prompts, and decoding in batches. Random token ids, no text."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from gallium.errors import GalliumError, UsageError
from gallium.types import Delta, SamplingParams

if TYPE_CHECKING:
    from gallium.engine.async_engine import Engine

Arrivals: TypeAlias = queue.SimpleQueue[tuple[int, float, Delta | GalliumError]]


class Stopwatch:
    """Sends requests to one engine and notes when their tokens come."""

    def __init__(self, engine: Engine, vocab_size: int) -> None:
        self._engine = engine
        self._vocab_size = vocab_size
        self._rng = np.random.default_rng(0)

    def prefill(self, tokens: int) -> float:
        """Seconds from submitting a prompt of so many tokens to its first token."""
        start = time.perf_counter()
        (times,) = self._run(1, tokens, 1)
        return times[0] - start

    def decode(self, batch: int, context: int, new_tokens: int) -> float:
        """Tokens per second of all sequences together, while all of them are decoding.

        A sequence starts with `context` tokens. What comes before the last first token, and after the first last
        one, does not count. Raises UsageError if nothing is left then.
        """
        streams = self._run(batch, context, new_tokens)
        begin, end = max(times[0] for times in streams), min(times[-1] for times in streams)
        if begin >= end:
            raise UsageError(f"{batch} sequences were never all decoding at once: ask for more --new-tokens.")
        return sum(begin < when <= end for times in streams for when in times) / (end - begin)

    def _run(self, batch: int, prompt_tokens: int, new_tokens: int) -> list[list[float]]:
        prompts = self._rng.integers(0, self._vocab_size, (batch, prompt_tokens)).tolist()
        return answer_times(self._engine, prompts, new_tokens)


def answer_times(engine: Engine, prompts: Sequence[Sequence[int]], new_tokens: int) -> list[list[float]]:
    """When each token of each prompt's greedy answer came, by `time.perf_counter`. Raises what ended an answer."""
    params = SamplingParams(temperature=0, max_tokens=new_tokens, ignore_eos=True)
    arrived: Arrivals = queue.SimpleQueue()
    times: list[list[float]] = [[] for _ in prompts]
    handles = [engine.submit(prompt, params, _stamped(i, arrived)) for i, prompt in enumerate(prompts)]
    left = len(prompts)
    try:
        while left:
            number, when, delta = arrived.get()
            if isinstance(delta, GalliumError):
                raise delta
            times[number] += [when] * len(delta.token_ids)
            left -= delta.finish_reason is not None
    except BaseException:
        for handle in handles:
            handle.cancel()
        raise
    return times


def _stamped(number: int, arrived: Arrivals) -> Callable[[Delta | GalliumError], None]:
    return lambda delta: arrived.put((number, time.perf_counter(), delta))
