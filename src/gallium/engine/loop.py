"""The engine's thread: the only one that touches the device. Takes commands, runs steps, delivers results.

Nothing here waits by polling: the thread sleeps on a condition until there is a command or work. An exception
anywhere in a step ends the engine: every open request is told (EngineDead), and later ones are refused.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from gallium.engine.request import Choice, Job, Request, Scoring, State
from gallium.engine.runner import Runner, StepResult
from gallium.engine.sampling import sampler_inputs, token_logprob
from gallium.engine.scheduler import Scheduler
from gallium.engine.step_builder import Batch, build
from gallium.errors import EngineDead, GalliumError
from gallium.types import Delta, TokenLogprob

log = logging.getLogger("gallium.engine")
Command: TypeAlias = Callable[[], None]


class EngineLoop:
    """Owns scheduler and runner; everything below `post` happens in its thread."""

    def __init__(self, runner: Runner, scheduler: Scheduler[Job], *, vocab_size: int) -> None:
        self._runner = runner
        self.scheduler = scheduler
        self._vocab_size = vocab_size  # ids that can be drawn
        self._wake = threading.Condition()
        self._inbox: deque[Command] = deque()
        self._open: dict[int, Request] = {}
        self._scoring: dict[int, Scoring] = {}
        self._stopping = False
        self._failure: str | None = None
        self._thread: threading.Thread | None = None
        self.steps = 0
        self.generated_tokens = 0
        self.prompt_tokens = 0

    # -- any thread ---------------------------------------------------------------

    @property
    def failure(self) -> str | None:
        """Why the engine does not answer, or None."""
        return self._failure

    @property
    def running(self) -> bool:
        """Whether the thread serves requests."""
        return self._thread is not None and self._thread.is_alive() and self._failure is None

    def start(self) -> None:
        """Start the thread; once."""
        if self._thread is not None:
            raise RuntimeError("the engine's loop was started twice")
        self._thread = threading.Thread(target=self._serve, name="gallium-engine", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread after the current step; open requests get EngineDead. Safe to call again."""
        with self._wake:
            self._stopping = True
            self._failure = self._failure or "it was shut down"
            self._wake.notify()
        thread = self._thread
        if thread is None:
            self._die("it was shut down")
        elif thread is not threading.current_thread():
            thread.join()

    def post(self, command: Command) -> None:
        """Run `command` in the loop's thread before the next step. Raises EngineDead if there is none."""
        with self._wake:
            if self._failure is not None:
                raise EngineDead(f"the engine does not answer: {self._failure}.")
            self._inbox.append(command)
            self._wake.notify()

    # -- commands: the loop's thread ------------------------------------------------

    def open_request(self, request: Request) -> None:
        """Queue a request's choices."""
        self._open[request.number] = request
        request.open_choices = len(request.choices)
        self.scheduler.add(request.choices[0], request.choices[1:])

    def open_scoring(self, scoring: Scoring) -> None:
        """Queue a prompt whose logits are wanted."""
        self._scoring[scoring.arrival[0]] = scoring
        self.scheduler.add(scoring)

    def cancel(self, number: int) -> None:
        """End what is left of a request; its blocks are free for the next step. Unknown ones ended."""
        request = self._open.pop(number, None)
        if request is not None:
            for choice in request.choices:
                if choice.state is not State.FINISHED:
                    self.scheduler.remove(choice)
                    held = choice.stopper.flush()
                    self._tell(request, Delta(choice.index, (), held, finish_reason="cancelled"))
        scoring = self._scoring.pop(number, None)
        if scoring is not None:
            self.scheduler.remove(scoring)

    # -- the loop's thread ------------------------------------------------------------

    def _serve(self) -> None:
        try:
            while self._take_commands():
                if self.scheduler.has_work:
                    self._step()
        except BaseException as cause:  # whatever it was, nobody may be left waiting
            log.exception("the engine died")
            self._die(f"a step failed with {type(cause).__name__}: {cause}")
        else:
            self._die("it was shut down")

    def _take_commands(self) -> bool:
        """Wait for something to do; False when told to stop."""
        with self._wake:
            while not self._inbox and not self._stopping and not self.scheduler.has_work:
                self._wake.wait()
            if self._stopping:
                return False
            commands, self._inbox = self._inbox, deque()
        for command in commands:
            command()
        return True

    def _step(self) -> None:
        schedule = self.scheduler.schedule()
        if not schedule.items:
            raise RuntimeError("nothing could be scheduled although there is work")
        batch = build(schedule.items, self.scheduler.blocks.block_size)
        how = None
        if batch.draws:
            states = [choice.sampling for choice in batch.draws]
            how = sampler_inputs(states, [len(choice.tokens) for choice in batch.draws], self._vocab_size)
        want = bool(batch.scored) or any(c.request.params.logprobs is not None for c in batch.draws)
        result = self._runner.run(batch.step, how, want)
        self.scheduler.commit(schedule)
        self.steps += 1
        self._deliver(batch, result)

    def _deliver(self, batch: Batch, result: StepResult) -> None:
        for row, (choice, token_id) in enumerate(zip(batch.draws, result.tokens, strict=True)):
            if choice.state is State.FINISHED:
                continue  # a callback of this very step cancelled it
            logprobs: tuple[TokenLogprob, ...] = ()
            if choice.request.params.logprobs is not None and result.logits is not None:
                raw = result.logits[row, : self._vocab_size]
                logprobs = (token_logprob(raw, token_id, choice.request.params.logprobs),)
            self._accept(choice, token_id, logprobs)
        row = len(batch.draws)
        for scoring, count in batch.scored:
            assert result.logits is not None
            scoring.rows.append(result.logits[row : row + count].copy())
            row += count
            if scoring.remaining == 0:
                self._finish_scoring(scoring)

    def _accept(self, choice: Choice, token_id: int, logprobs: tuple[TokenLogprob, ...]) -> None:
        """One more token of one choice."""
        first = len(choice.tokens) == choice.prompt_len
        choice.tokens.append(token_id)
        choice.sampling.accept(token_id)
        self.generated_tokens += 1
        if first and choice.index == 0:
            self.prompt_tokens += choice.prompt_len
        outcome = choice.stopper.push(token_id)
        request = choice.request
        if outcome.finish_reason is not None:
            self.scheduler.remove(choice)
            request.open_choices -= 1
            if request.open_choices == 0:
                del self._open[request.number]
        delta = Delta(
            choice.index,
            (token_id,),
            outcome.text,
            logprobs,
            outcome.finish_reason,
            outcome.stop_reason,
            (choice.cached_tokens or 0) if first else 0,
        )
        self._tell(request, delta)

    def _finish_scoring(self, scoring: Scoring) -> None:
        self.scheduler.remove(scoring)
        self._scoring.pop(scoring.arrival[0], None)
        scoring.deliver(np.concatenate(scoring.rows))

    def _tell(self, request: Request, delta: Delta | GalliumError) -> None:
        """Deliver. A listener that raises loses its request, and nobody else's."""
        try:
            request.on_delta(delta)
        except Exception:
            log.exception("the listener of request %d failed; the request is cancelled", request.number)
            request.on_delta = _nobody
            if request.number in self._open:
                self.cancel(request.number)

    def _die(self, why: str) -> None:
        """Tell everybody that there will be no answer, now and later."""
        with self._wake:
            self._failure = self._failure or why
            commands, self._inbox = self._inbox, deque()
        for command in commands:  # registers what was posted too late, so that it is told as well
            try:
                command()
            except Exception:
                log.exception("a command failed while the engine was ending")
        dead = EngineDead(f"the engine stopped before the answer was complete: {self._failure}.")
        requests, self._open = list(self._open.values()), {}
        scorings, self._scoring = list(self._scoring.values()), {}
        for request in requests:
            self._tell(request, dead)
        for scoring in scorings:
            scoring.deliver(dead)


def _nobody(delta: Delta | GalliumError) -> None:
    """Where the deltas of a failed listener go."""
