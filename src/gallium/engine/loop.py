"""The engine's thread: the only one that touches the device. Takes commands, runs steps, delivers results.

Nothing here waits by polling: the thread sleeps on a condition until there is a command or work. An exception
anywhere in a step ends the engine: every open request is told (EngineDead), and later ones are refused. A runner whose
processes were lost is started again instead: open requests are told, later ones wait for it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from gallium.engine.lanes import choose_lane
from gallium.engine.request import Choice, Job, Request, Scoring, State
from gallium.engine.runner import LaneStep, Runner, StepResult
from gallium.engine.sampling import SamplingState, sampler_inputs, token_logprob
from gallium.engine.scheduler import Chance, Scheduler
from gallium.engine.speculate import KINDS, UNKNOWN, DraftCount
from gallium.engine.step_builder import Batch, Draw, build
from gallium.engine.step_times import StepTimes
from gallium.errors import EngineDead, GalliumError, RankLost
from gallium.types import Delta, TokenLogprob

if TYPE_CHECKING:
    from gallium.engine.draft_model import DraftModel

log = logging.getLogger("gallium.engine")
Command: TypeAlias = Callable[[], None]
SHUT_DOWN = "it was shut down"
PATIENCE_S = 5.0  # for the step that runs when the engine is told to stop


class EngineLoop:
    """Owns runner and lanes, the schedulers of groups that serve different sequences in joint steps.

    Everything below `post` happens in its thread.
    """

    def __init__(
        self,
        runner: Runner,
        lanes: Sequence[Scheduler[Job]],
        *,
        vocab_size: int,
        draft_model: DraftModel | None = None,
    ) -> None:
        self._runner = runner
        self._draft_model = draft_model  # of the only lane
        self.lanes = tuple(lanes)
        for lane in self.lanes:
            lane.propose = self._propose
        self._times = StepTimes()
        self._vocab_size = vocab_size  # ids that can be drawn
        self._wake = threading.Condition()
        self._inbox: deque[Command] = deque()
        self._open: dict[int, Request] = {}
        self._scoring: dict[int, Scoring] = {}
        self._stopping = False
        self._failure: str | None = None
        self._restarting: str | None = None
        self._thread: threading.Thread | None = None
        self.steps = 0
        self.generated_tokens = 0
        self.prompt_tokens = 0
        self.restarts = 0
        self.drafts = {kind: DraftCount() for kind in KINDS}

    # -- any thread ---------------------------------------------------------------

    @property
    def failure(self) -> str | None:
        """Why the engine does not answer, or None."""
        return self._failure

    @property
    def restarting(self) -> str | None:
        """Why requests have to wait for a restart, or None."""
        return self._restarting

    @property
    def running(self) -> bool:
        """Whether the thread serves requests, now or after a restart."""
        return self._thread is not None and self._thread.is_alive() and self._failure is None

    def start(self) -> None:
        """Start the thread; once."""
        if self._thread is not None:
            raise RuntimeError("the engine's loop was started twice")
        self._runner.watch(self._notify)
        self._thread = threading.Thread(target=self._serve, name="gallium-engine", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread after the current step; open requests get EngineDead. Safe to call again."""
        with self._wake:
            self._stopping = True
            self._failure = self._failure or SHUT_DOWN
            self._wake.notify()
        thread = self._thread
        if thread is None:
            self._die(SHUT_DOWN)
            self._close()
        elif thread is not threading.current_thread():
            thread.join(PATIENCE_S if self._restarting is None else 0)
            self._runner.interrupt()  # of no effect on a step in this process
            thread.join()

    def post(self, command: Command) -> None:
        """Run `command` in the loop's thread before the next step. Raises EngineDead if there is none."""
        with self._wake:
            if self._failure is not None:
                raise EngineDead(f"the engine does not answer: {self._failure}.")
            self._inbox.append(command)
            self._wake.notify()

    def _close(self) -> None:
        self._runner.close()
        if self._draft_model is not None:
            self._draft_model.close()

    def _notify(self) -> None:
        with self._wake:
            self._wake.notify()

    # -- commands: the loop's thread ------------------------------------------------

    def open_request(self, request: Request) -> None:
        """Queue a request's choices."""
        self._open[request.number] = request
        request.open_choices = len(request.choices)
        lane = choose_lane(self.lanes, request.choices[0])
        for choice in request.choices:
            choice.lane = lane
        self.lanes[lane].add(request.choices[0], request.choices[1:])

    def open_scoring(self, scoring: Scoring) -> None:
        """Queue a prompt whose logits are wanted."""
        self._scoring[scoring.arrival[0]] = scoring
        scoring.lane = choose_lane(self.lanes, scoring)
        self.lanes[scoring.lane].add(scoring)

    def cancel(self, number: int) -> None:
        """End what is left of a request; its blocks are free for the next step. Unknown ones ended."""
        request = self._open.pop(number, None)
        if request is not None:
            for choice in request.choices:
                if choice.state is not State.FINISHED:
                    self._remove(choice)
                    held = choice.stopper.flush()
                    self._tell(request, Delta(choice.index, (), held, finish_reason="cancelled"))
        scoring = self._scoring.pop(number, None)
        if scoring is not None:
            self._remove(scoring)

    def _remove(self, job: Job) -> None:
        self.lanes[job.lane].remove(job)

    # -- the loop's thread ------------------------------------------------------------

    def _serve(self) -> None:
        try:
            while self._turn():
                pass
        except EngineDead as cause:  # a restart that failed
            log.error("the engine died: %s", cause)
            self._die(cause.message)
        except BaseException as cause:  # whatever it was, nobody may be left waiting
            log.exception("the engine died")
            self._die(f"a step failed with {type(cause).__name__}: {cause}")
        else:
            self._die(SHUT_DOWN)
        finally:
            self._close()

    def _turn(self) -> bool:
        """Commands, a step, and a restart if the runner was lost; False when told to stop."""
        try:
            if not self._take_commands():
                return False
            if self._has_work:
                self._step()
        except RankLost as lost:
            if self._stopping:
                return False
            self._restart(lost)
        return True

    @property
    def _has_work(self) -> bool:
        for lane in self.lanes:  # noqa: SIM110 - no generator: this is asked several times per step
            if lane.has_work:
                return True
        return False

    def _take_commands(self) -> bool:
        """Wait for something to do; False when told to stop. Raises RankLost."""
        with self._wake:
            while not (self._inbox or self._stopping or self._runner.lost or self._has_work):
                self._wake.wait()
            if self._stopping:
                return False
        if self._runner.lost is not None:
            raise self._runner.lost
        if self._inbox:
            for _ in range(len(self._inbox)):  # what is posted from now on has its turn after a step
                self._inbox.popleft()()
        return True

    def _restart(self, lost: RankLost) -> None:
        """End every open request, then start the runner again with empty caches; later requests wait."""
        self._restarting = lost.message
        log.error("%s; %d open requests end, and the engine restarts", lost.message, len(self._open))
        self._end_all(RankLost(f"the engine stopped before the answer was complete: {lost.message}. It restarts."))
        for lane in self.lanes:
            lane.reset()
        self._runner.restart(lost)
        self.restarts += 1
        self._restarting = None
        log.warning("the engine has restarted and answers again")

    def _step(self) -> None:
        planned = []
        work: list[LaneStep | None] = [None] * len(self.lanes)
        for number, lane in enumerate(self.lanes):
            if lane.has_work:
                plan = lane.schedule()
                if not plan.items:
                    raise RuntimeError("nothing could be scheduled although there is work")
                if self._draft_model is not None:
                    self._draft_model.fill(plan)
                batch = build(plan.items, lane.blocks.block_size)
                work[number] = self._work(batch)
                planned.append((number, lane, plan, batch))
        start = time.perf_counter()
        results = self._runner.run(work)
        spent = time.perf_counter() - start
        self._times.observe(max(len(batch.step.token_ids) for _, _, _, batch in planned), spent)
        verified = []
        for number, lane, plan, batch in planned:
            verified.append(_verify(batch, results[number].tokens))
            lane.commit(plan, {draw.choice: len(tokens) - 1 for draw, tokens in verified[-1]})
        self.steps += 1
        for (number, _, _, batch), draws in zip(planned, verified, strict=True):
            self._deliver(batch, draws, results[number])

    def _propose(self, job: Job, chance: Chance) -> list[int]:
        if not isinstance(job, Choice) or job.drafter is None:
            return []
        model = self._draft_model
        offer = None if model is None else model.offer(job, chance.limit, chance.draws)
        drafts = job.drafter.propose(job.tokens, chance, self._times, offer)
        if model is not None and drafts and drafts[0] == UNKNOWN and not model.reserve(job):
            return []
        return drafts

    def _work(self, batch: Batch) -> LaneStep:
        how = None
        if batch.draws:
            states: list[SamplingState] = []
            positions: list[int] = []
            for draw in batch.draws:
                states += draw.choice.sampling.ahead(draw.drafts)
                first = len(draw.choice.tokens)
                positions += range(first, first + 1 + len(draw.drafts))
            how = sampler_inputs(states, positions, self._vocab_size)
        want = bool(batch.scored) or any(d.choice.request.params.logprobs is not None for d in batch.draws)
        return LaneStep(batch.step, how, want)

    def _deliver(self, batch: Batch, draws: list[tuple[Draw, list[int]]], result: StepResult) -> None:
        row = 0
        for draw, tokens in draws:
            choice, known = draw.choice, len(draw.choice.tokens)
            for number, token_id in enumerate(tokens):
                if choice.state is State.FINISHED:
                    break  # by the token before, or cancelled by a callback of this very step
                logprobs: tuple[TokenLogprob, ...] = ()
                if choice.request.params.logprobs is not None and result.logits is not None:
                    raw = result.logits[row + number, : self._vocab_size]
                    logprobs = (token_logprob(raw, token_id, choice.request.params.logprobs),)
                self._accept(choice, token_id, logprobs)
            row += 1 + len(draw.drafts)
            if draw.drafts:
                self._settle(choice, known, len(draw.drafts), len(tokens) - 1)
        for scoring, count in batch.scored:
            assert result.logits is not None
            scoring.rows.append(result.logits[row : row + count].copy())
            row += count
            if scoring.remaining == 0:
                self._finish_scoring(scoring)

    def _settle(self, choice: Choice, known: int, drafted: int, right: int) -> None:
        """Of the drafts of a choice that had `known` tokens, `right` were accepted, if it did not end before."""
        drafter = choice.drafter
        count = self.drafts["ngram" if drafter is None else drafter.kind]
        count.drafted += drafted
        count.accepted += min(len(choice.tokens) - known, right)
        if drafter is not None:
            drafter.settle(drafted, right)
        if self._draft_model is not None:
            self._draft_model.settle(choice, known + right)

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
            self._remove(choice)
            request.open_choices -= 1
            if request.open_choices == 0:
                del self._open[request.number]
        predicted = (0, 0)
        if outcome.finish_reason is not None and choice.drafter is not None:
            predicted = choice.drafter.predicted(choice.tokens)
        delta = Delta(
            choice.index,
            (token_id,),
            outcome.text,
            logprobs,
            outcome.finish_reason,
            outcome.stop_reason,
            (choice.cached_tokens or 0) if first else 0,
            *predicted,
        )
        self._tell(request, delta)

    def _finish_scoring(self, scoring: Scoring) -> None:
        self._remove(scoring)
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
        self._restarting = None
        self._end_all(EngineDead(f"the engine stopped before the answer was complete: {self._failure}."))

    def _end_all(self, dead: EngineDead) -> None:
        """Tell every open request."""
        requests, self._open = list(self._open.values()), {}
        scorings, self._scoring = list(self._scoring.values()), {}
        for request in requests:
            self._tell(request, dead)
        for scoring in scorings:
            scoring.deliver(dead)


def _verify(batch: Batch, drawn: list[int]) -> list[tuple[Draw, list[int]]]:
    """For each draw, the tokens that its choice has got: the drafts that were right, and the one after them."""
    verified, row = [], 0
    for draw in batch.draws:
        rows = drawn[row : row + 1 + len(draw.drafts)]
        verified.append((draw, rows[: draw.accepted(rows) + 1]))
        row += 1 + len(draw.drafts)
    assert row == len(drawn)
    return verified


def _nobody(delta: Delta | GalliumError) -> None:
    """Where the deltas of a failed listener go."""
