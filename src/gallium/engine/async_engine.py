"""The engine as others see it: submit, stream, score, cancel, from any thread."""

from __future__ import annotations

import atexit
import itertools
import queue
import weakref
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from gallium.engine.blocks import BlockManager
from gallium.engine.loop import EngineLoop
from gallium.engine.ngrams import PredictedText
from gallium.engine.request import Choice, Job, OnDelta, Request, Scoring
from gallium.engine.runner import Runner
from gallium.engine.sampling import SamplingState, check_token_ids, choice_seed, fresh_seed
from gallium.engine.scheduler import Scheduler
from gallium.engine.speculate import MODEL_PRIOR, Drafter, Trust
from gallium.engine.stopping import NoText, Stopper, TextSource
from gallium.errors import ContextTooLong, EngineDead, GalliumError, InvalidRequest
from gallium.ops.handles import FloatArray
from gallium.types import Delta, SamplingParams

if TYPE_CHECKING:
    import asyncio

    from gallium.engine.draft_model import DraftModel

SCORING_CHUNK = 128  # rows of logits in memory twice: at most this many per step


class EngineLimits(NamedTuple):
    """The numbers an engine is made with."""

    num_blocks: int
    block_size: int
    max_context: int  # tokens of prompt and answer together
    max_batch: int  # of each lane, as are the blocks and the tokens of a step
    max_step_tokens: int
    prefix_cache: bool
    vocab_size: int  # ids that the tokenizer uses; those beyond are never drawn
    head_rows: int  # ids that the model accepts: vocab_size and padding
    lanes: int = 1  # groups with a cache of their own, whose steps run together
    lookup: bool = False  # whether the text itself is asked for drafts


class EngineStats(NamedTuple):
    """A snapshot of the engine, for health checks and metrics: sums over its lanes."""

    running: int
    waiting: int
    total_blocks: int
    free_blocks: int  # used by no sequence
    cached_blocks: int  # of the free ones: hold a prefix that can be shared again
    preemptions: int
    prefix_hit_tokens: int
    prompt_tokens: int
    generated_tokens: int
    steps: int
    restarts: int  # of its processes, after one was lost
    drafted_tokens: int  # computed before it was known that they are right
    accepted_tokens: int  # of these, those that were
    drafts: dict[str, dict[str, int]]  # the same by where they came from: prediction, ngram or model


class RequestHandle:
    """A submitted request."""

    def __init__(self, loop: EngineLoop, number: int) -> None:
        self._loop = loop
        self.number = number

    def cancel(self) -> None:
        """End the request: its open choices finish as "cancelled", its blocks are free for the next step."""
        with suppress(EngineDead):  # then it ended with the engine
            self._loop.post(lambda: self._loop.cancel(self.number))


class Engine:
    """Serves one model. Thread-safe; the device is touched by the engine's own thread only."""

    def __init__(
        self,
        runner: Runner,
        limits: EngineLimits,
        *,
        eos_ids: Sequence[int] = (),
        detokenizer: Callable[[SamplingParams], TextSource] = lambda params: NoText(),
        draft_model: DraftModel | None = None,
    ) -> None:
        if draft_model is not None and limits.lanes > 1:
            raise ValueError("a draft model serves one lane")
        capacity = limits.num_blocks * limits.block_size
        if limits.max_context > capacity:
            raise ValueError(f"a context of {limits.max_context} tokens in a cache of {capacity}")
        self._limits = limits
        self._eos_ids = frozenset(token_id for token_id in eos_ids if token_id < limits.vocab_size)
        self._detokenizer = detokenizer
        self._numbers = itertools.count()
        lanes: list[Scheduler[Job]] = [
            Scheduler(
                BlockManager(limits.num_blocks, limits.block_size),
                max_batch=limits.max_batch,
                max_step_tokens=limits.max_step_tokens,
                prefix_cache=limits.prefix_cache,
            )
            for _ in range(limits.lanes)
        ]
        self._loop = EngineLoop(runner, lanes, vocab_size=limits.vocab_size, draft_model=draft_model)
        self._draft_skill = None if draft_model is None else Trust(MODEL_PRIOR)

    # -- life ---------------------------------------------------------------------

    def start(self) -> None:
        """Start the engine's thread. It is stopped at the interpreter's exit if nobody does so before."""
        self._loop.start()
        atexit.register(_stop_at_exit, weakref.ref(self._loop))

    def shutdown(self) -> None:
        """Stop after the current step; open requests get EngineDead."""
        self._loop.stop()

    @property
    def status(self) -> Literal["ok", "restarting", "dead"]:
        """Whether requests are answered; while the engine restarts, they wait."""
        if not self._loop.running:
            return "dead"
        return "ok" if self._loop.restarting is None else "restarting"

    @property
    def healthy(self) -> bool:
        """Whether requests are answered."""
        return self.status == "ok"

    @property
    def failure(self) -> str | None:
        """Why the engine does not answer, or not yet; else None."""
        return self._loop.failure or self._loop.restarting

    @property
    def max_context(self) -> int:
        """The most tokens that a prompt and its answer may have together."""
        return self._limits.max_context

    # -- requests -------------------------------------------------------------------

    def submit(
        self,
        prompt_token_ids: Sequence[int],
        params: SamplingParams,
        on_delta: OnDelta,
        *,
        prediction: Sequence[int] = (),
    ) -> RequestHandle:
        """Queue a request. `on_delta` is called in the engine's thread and must return quickly.

        `prediction` are tokens that the answer may have; it comes sooner then, and is the same.
        Each of the `n` choices ends with a Delta that has a finish_reason; a GalliumError ends all of them.
        Raises InvalidRequest, ContextTooLong or EngineDead, and then nothing was queued.
        """
        prompt = self._checked_prompt(prompt_token_ids)
        check_token_ids(params, self._limits.vocab_size, self._eos_ids)
        room = self._room(len(prompt), params)
        predicted = PredictedText(prediction) if prediction else None
        seed = fresh_seed() if params.seed is None else params.seed
        request = Request(next(self._numbers), params, on_delta)
        for index in range(params.n):
            request.choices.append(
                Choice(
                    arrival=(request.number, index),
                    tokens=list(prompt),
                    max_computed=len(prompt) + room - 1,
                    request=request,
                    sampling=SamplingState(
                        params, prompt, choice_seed(seed, index), self._limits.vocab_size, self._eos_ids
                    ),
                    stopper=Stopper(params, self._eos_ids, room, self._detokenizer(params)),
                    drafter=self._drafter(len(prompt), predicted),
                )
            )
        self._loop.post(lambda: self._loop.open_request(request))
        return RequestHandle(self._loop, request.number)

    def stream(self, prompt_token_ids: Sequence[int], params: SamplingParams) -> DeltaStream:
        """Submit now and iterate over the deltas in the running event loop; closing cancels the request."""
        return DeltaStream(self, prompt_token_ids, params)

    def logits(self, prompt_token_ids: Sequence[int]) -> FloatArray:
        """Raw logits `[tokens, vocab]` of every position; waits for them. No prefix is reused."""
        prompt = self._checked_prompt(prompt_token_ids)
        if len(prompt) > self.max_context:
            raise self._too_long(len(prompt), None)
        answer: queue.SimpleQueue[FloatArray | GalliumError] = queue.SimpleQueue()
        scoring = Scoring(
            arrival=(next(self._numbers), 0),
            tokens=prompt,
            max_computed=len(prompt),
            max_chunk=SCORING_CHUNK,
            reuse_prefix=False,
            deliver=answer.put,
        )
        self._loop.post(lambda: self._loop.open_scoring(scoring))
        try:
            result = answer.get()
        except BaseException:  # Ctrl-C
            RequestHandle(self._loop, scoring.arrival[0]).cancel()
            raise
        if isinstance(result, GalliumError):
            raise result
        return result

    def stats(self) -> EngineStats:
        """How the engine stands; may be a moment old."""
        lanes = self._loop.lanes
        return EngineStats(
            running=sum(len(lane.running) for lane in lanes),
            waiting=sum(len(lane.waiting) for lane in lanes),
            total_blocks=sum(lane.blocks.num_blocks for lane in lanes),
            free_blocks=sum(lane.blocks.num_free for lane in lanes),
            cached_blocks=sum(lane.blocks.num_idle for lane in lanes),
            preemptions=sum(lane.num_preemptions for lane in lanes),
            prefix_hit_tokens=sum(lane.prefix_hit_tokens for lane in lanes),
            prompt_tokens=self._loop.prompt_tokens,
            generated_tokens=self._loop.generated_tokens,
            steps=self._loop.steps,
            restarts=self._loop.restarts,
            drafted_tokens=sum(count.drafted for count in self._loop.drafts.values()),
            accepted_tokens=sum(count.accepted for count in self._loop.drafts.values()),
            drafts={kind: asdict(count) for kind, count in self._loop.drafts.items()},
        )

    def _drafter(self, prompt_len: int, prediction: PredictedText | None) -> Drafter | None:
        lookup = self._limits.lookup or prediction is not None  # such an answer repeats itself and the prompt, too
        if not lookup and self._draft_skill is None:
            return None
        return Drafter(
            prompt_len=prompt_len,
            vocab_size=self._limits.vocab_size,
            prediction=prediction,
            lookup=lookup,
            model=self._draft_skill,
        )

    # -- checks -----------------------------------------------------------------------

    def _checked_prompt(self, ids: Sequence[int]) -> list[int]:
        if len(ids) == 0:
            raise InvalidRequest("the prompt is empty: it needs at least one token.", "prompt")
        try:
            array: np.ndarray[Any, Any] = np.asarray(ids)
        except ValueError:  # lists of different lengths
            array = np.empty((0, 0))
        if array.ndim != 1 or array.dtype.kind not in "iu":
            raise InvalidRequest("a prompt must be a flat list of integer token ids.", "prompt")
        low, high, rows = int(array.min()), int(array.max()), self._limits.head_rows
        if low < 0 or high >= rows:
            wrong = low if low < 0 else high
            raise InvalidRequest(f"the prompt has token id {wrong}, but ids are 0 to {rows - 1}.", "prompt")
        prompt: list[int] = array.tolist()
        return prompt

    def _room(self, prompt_len: int, params: SamplingParams) -> int:
        """How many tokens an answer may have at most."""
        room = self.max_context - prompt_len
        wanted = params.max_tokens
        if room < max(1, wanted or 1, params.min_tokens):
            raise self._too_long(prompt_len, max(wanted or 1, params.min_tokens))
        return room if wanted is None else wanted

    def _too_long(self, prompt_len: int, wanted: int | None) -> ContextTooLong:
        asked = "" if wanted is None else f" and {wanted} token{'s' * (wanted != 1)} of answer"
        return ContextTooLong(
            f"a prompt of {prompt_len} tokens{asked} does not fit the context of {self.max_context} tokens: "
            "shorten the prompt or ask for fewer tokens.",
            "prompt" if wanted in (None, 1) else "max_tokens",
        )


class DeltaStream(AsyncIterator[Delta]):
    """The deltas of one request, in order, all choices mixed. Made by Engine.stream inside an event loop."""

    def __init__(self, engine: Engine, prompt_token_ids: Sequence[int], params: SamplingParams) -> None:
        import asyncio  # whoever calls this has it already; an answer on a terminal never needs it

        self._left = params.n  # choices still open; first, so that __del__ finds it if submit raises
        self._handle: RequestHandle | None = None
        self._queue: asyncio.Queue[Delta | GalliumError] = asyncio.Queue()
        events = asyncio.get_running_loop()
        put = self._queue.put_nowait

        def on_delta(delta: Delta | GalliumError) -> None:
            events.call_soon_threadsafe(put, delta)

        self._handle = engine.submit(prompt_token_ids, params, on_delta)

    def __aiter__(self) -> DeltaStream:
        return self

    async def __anext__(self) -> Delta:
        if self._left == 0:
            raise StopAsyncIteration
        delta = await self._queue.get()
        if isinstance(delta, GalliumError):
            self._left = 0
            raise delta
        self._left -= delta.finish_reason is not None
        return delta

    def cancel(self) -> None:
        """End the request; the deltas that follow say "cancelled"."""
        if self._handle is not None and self._left:
            self._handle.cancel()

    async def aclose(self) -> None:
        """Cancel what is still open and end the iteration."""
        self.cancel()
        self._left = 0

    def __del__(self) -> None:
        self.cancel()


def _stop_at_exit(loop: weakref.ref[EngineLoop]) -> None:
    alive = loop()
    if alive is not None:
        alive.stop()
