"""Lanes with caches of their own in joint steps, and a runner that is lost again and again."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.engine.conftest import MakeEngine
from tests.engine.fakes import EOS, HEAD_ROWS, VOCAB, Answer, ByteText, PretendRunner, answer

from gallium.engine.async_engine import Engine, EngineLimits
from gallium.engine.blocks import BlockManager
from gallium.engine.lanes import SLACK, choose_lane
from gallium.engine.request import Job, Scoring
from gallium.engine.runner import LaneStep, StepResult
from gallium.engine.scheduler import Scheduler
from gallium.errors import RankLost
from gallium.types import SamplingParams

BLOCK = 4


def lane() -> Scheduler[Job]:
    return Scheduler(BlockManager(64, BLOCK), max_batch=8, max_step_tokens=64)


def job(number: int, tokens: Sequence[int]) -> Scoring:
    return Scoring(arrival=(number, 0), tokens=list(tokens), max_computed=len(tokens), deliver=lambda rows: None)


def run(scheduler: Scheduler[Job]) -> None:
    while scheduler.has_work:
        scheduler.commit(plan := scheduler.schedule())
        for item in plan.items:
            if not item.seq.remaining:
                scheduler.remove(item.seq)


# -- the choice --------------------------------------------------------------------------------------


@given(loads=st.lists(st.integers(0, 9), min_size=1, max_size=5))
def test_without_a_known_prefix_the_least_busy_lane_is_taken(loads: list[int]) -> None:
    lanes = [lane() for _ in loads]
    for scheduler, load in zip(lanes, loads, strict=True):
        for number in range(load):
            scheduler.add(job(number, [1, 2, 3]))
    assert choose_lane(lanes, job(99, range(20))) == loads.index(min(loads))


@pytest.mark.parametrize(("more", "chosen"), [(0, 1), (SLACK, 1), (SLACK + 1, 0)])
def test_a_known_prefix_is_worth_a_few_sequences(more: int, chosen: int) -> None:
    lanes = [lane(), lane()]
    lanes[1].add(job(0, range(20)))
    run(lanes[1])
    for number in range(more):
        lanes[1].add(job(1 + number, [1, 2, 3]))
    assert choose_lane(lanes, job(98, range(20))) == chosen
    assert choose_lane(lanes, job(99, range(50, 70))) == 0


# -- joint steps -------------------------------------------------------------------------------------


def test_the_same_tokens_in_any_lane(make_engine: MakeEngine) -> None:
    prompts = [f"{'Tell me about gallium' * (n % 3)} {n}" for n in range(24)]
    how = SamplingParams(seed=1, max_tokens=9, n=2)
    alone, _ = make_engine(prefix_cache=False)
    expected = [[a.tokens(i) for i in (0, 1)] for a in [Answer(alone, p, how).wait() for p in prompts]]
    engine, runner = make_engine(lanes=3, max_step_tokens=11)
    answers = [Answer(engine, prompt, how) for prompt in prompts]
    scored = engine.logits(list(b"abc"))
    assert [[a.wait().tokens(i) for i in (0, 1)] for a in answers] == expected
    assert np.array_equal(scored, alone.logits(list(b"abc")))
    assert all(runner.caches), "a lane was never used"
    assert engine.stats().total_blocks == 3 * alone.stats().total_blocks
    answer(engine, prompts[2], max_tokens=1)
    again = answer(engine, prompts[2], max_tokens=1)  # goes where its beginning is known
    assert again.deltas[0].cached_tokens > 0


# -- losses ------------------------------------------------------------------------------------------


class Losable(PretendRunner):
    """Is lost in the steps whose numbers are given, and starts again with empty caches."""

    def __init__(self, lanes: int, fatal: frozenset[int]) -> None:
        super().__init__(BLOCK, lanes)
        self.fatal = fatal
        self.tried = 0
        self.closed = 0

    def run(self, lanes: Sequence[LaneStep | None]) -> list[StepResult]:
        self.tried += 1
        if self.tried in self.fatal:
            raise RankLost(f"loss in step {self.tried}")
        return super().run(lanes)

    def restart(self, why: RankLost) -> None:
        self.caches = [{} for _ in self.caches]

    def close(self) -> None:
        self.closed += 1


@settings(max_examples=60, deadline=None)
@given(
    lanes=st.integers(1, 3),
    fatal=st.frozensets(st.integers(1, 40), max_size=6),
    lengths=st.lists(st.tuples(st.integers(1, 30), st.integers(1, 12)), min_size=1, max_size=8),
)
def test_whatever_is_lost_every_request_ends_and_later_ones_are_right(
    lanes: int, fatal: frozenset[int], lengths: list[tuple[int, int]]
) -> None:
    runner = Losable(lanes, fatal)
    limits = EngineLimits(
        num_blocks=30, block_size=BLOCK, max_context=96, max_batch=4, max_step_tokens=13, prefix_cache=True,
        vocab_size=VOCAB, head_rows=HEAD_ROWS, lanes=lanes,
    )  # fmt: skip
    engine = Engine(runner, limits, eos_ids=(EOS,), detokenizer=lambda params: ByteText())
    engine.start()
    try:
        answers = [
            Answer(engine, [65] * prompt, SamplingParams(temperature=0, max_tokens=new, ignore_eos=True, n=1 + new % 2))
            for prompt, new in lengths
        ]
        for one in answers:
            try:
                one.wait()
            except RankLost as lost:
                assert "loss in step" in lost.message
        runner.fatal = frozenset()
        lost = engine.stats().restarts
        assert lost <= len(fatal)
        for prompt, new in lengths:  # from a cache that a loss has emptied, or not
            again = answer(engine, [65] * prompt, temperature=0, max_tokens=new, ignore_eos=True)
            assert len(again.tokens()) == new
        for scheduler in engine._loop.lanes:
            scheduler.check()
        stats = engine.stats()
        assert (stats.free_blocks, stats.running, stats.waiting) == (stats.total_blocks, 0, 0)
        assert engine.healthy and stats.restarts == lost
    finally:
        engine.shutdown()
    assert runner.closed == 1
