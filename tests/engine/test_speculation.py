"""With drafts, right or wrong, every answer is delta by delta what it is without: tokens, text, probabilities, end."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.engine.conftest import MakeEngine
from tests.engine.fakes import EOS, HEAD_ROWS, VOCAB, Answer, PretendRunner, pretend_engine

from gallium.engine.async_engine import Engine
from gallium.engine.request import Job
from gallium.engine.scheduler import Chance
from gallium.engine.step_times import StepTimes
from gallium.types import Delta, SamplingParams

Spoken = list[list[Delta]]
REQUESTS = [
    ("Tell me about gallium.", SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)),
    ("Tell me about gallium.", SamplingParams(seed=1, max_tokens=17, ignore_eos=True)),
    ("Tell me", SamplingParams(seed=2, max_tokens=20, n=3, temperature=0.7, top_k=5)),
    ("Penalties", SamplingParams(seed=3, max_tokens=22, repetition_penalty=1.4, frequency_penalty=0.5)),
    ("Presence", SamplingParams(temperature=0, max_tokens=15, presence_penalty=1.0, logit_bias={65: 4.0, 66: 5.0})),
    ("The end", SamplingParams(temperature=0, max_tokens=20, min_tokens=9, logit_bias={EOS: 8.0})),
    ("Never mind", SamplingParams(seed=4, max_tokens=20, min_tokens=5, stop_token_ids=(101, 105, 97, 110), n=2)),
    ("Stop it", SamplingParams(seed=5, max_tokens=30, stop=("a", "b", "c7"), include_stop=True)),
    ("Probable", SamplingParams(seed=6, max_tokens=12, logprobs=3, min_p=0.01, top_p=0.9)),
    ("To the end of the context", SamplingParams(seed=7, ignore_eos=True)),
]  # fmt: skip


def spoken(engine: Engine, which: list[int]) -> Spoken:
    """The deltas of each choice of these requests, all at once; what the cache knew does not matter."""
    answers = [Answer(engine, *REQUESTS[i]) for i in which]
    result = []
    for i, one in zip(which, answers, strict=True):
        one.wait()
        result += [[replace(d, cached_tokens=0) for d in one.of(n)] for n in range(REQUESTS[i][1].n)]
    return result


@pytest.fixture(autouse=True)
def _no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine must not decide how much is drafted here."""
    monkeypatch.setattr(StepTimes, "observe", lambda self, width, seconds: None)


@pytest.fixture(scope="module")
def plain() -> list[Spoken]:
    """What each request gives alone and without drafts."""
    result = []
    for number in range(len(REQUESTS)):
        engine, _ = pretend_engine(prefix_cache=False)
        engine.start()
        result.append(spoken(engine, [number]))
        engine.shutdown()
    return result


def guesses(plain: list[Spoken], which: list[int], seed: int, skill: float) -> Callable[[Job, Chance], list[int]]:
    """A proposer that knows the answers and tells each token with probability `skill`, else nonsense."""
    rng = random.Random(seed)
    answers = {
        (number, n): [t for delta in plain[i][n] for t in delta.token_ids]
        for number, i in enumerate(which)
        for n in range(REQUESTS[i][1].n)
    }

    def propose(job: Job, chance: Chance) -> list[int]:
        answer = answers[job.arrival]
        done = len(job.tokens) - job.prompt_len
        right = [*answer[done:], *[EOS] * 20]
        count = rng.randint(0, min(chance.limit, 9))
        return [token if rng.random() < skill else rng.randrange(VOCAB) for token in right[:count]]

    return propose


@settings(max_examples=40, deadline=None)
@given(
    which=st.lists(st.integers(0, len(REQUESTS) - 1), min_size=1, max_size=8),
    seed=st.integers(0, 2**32),
    skill=st.sampled_from([0.0, 0.5, 0.8, 1.0]),
    num_blocks=st.sampled_from([24, 30, 64]),
    max_step_tokens=st.sampled_from([2, 7, 24]),
    prefix_cache=st.booleans(),
    lanes=st.integers(1, 2),
)
def test_drafts_change_nothing(
    plain: list[Spoken],
    which: list[int],
    seed: int,
    skill: float,
    num_blocks: int,
    max_step_tokens: int,
    prefix_cache: bool,
    lanes: int,
) -> None:
    engine, _ = pretend_engine(
        num_blocks=num_blocks, max_step_tokens=max_step_tokens, prefix_cache=prefix_cache, lanes=lanes
    )
    for lane in engine._loop.lanes:
        lane.propose = guesses(plain, which, seed, skill)
    engine.start()
    try:
        assert spoken(engine, which) == [choice for i in which for choice in plain[i]]
        for lane in engine._loop.lanes:
            lane.check()
        stats = engine.stats()
        assert stats.free_blocks == stats.total_blocks and 0 <= stats.accepted_tokens <= stats.drafted_tokens
        assert engine._loop.generated_tokens == sum(len(d.token_ids) for i in which for c in plain[i] for d in c)
    finally:
        engine.shutdown()


def test_right_drafts_save_steps_and_wrong_ones_none(plain: list[Spoken]) -> None:
    steps = {}
    for skill in (0.0, 1.0):
        engine, runner = pretend_engine()
        engine._loop.lanes[0].propose = guesses(plain, [0], 1, skill)
        engine.start()
        assert spoken(engine, [0]) == plain[0]
        steps[skill] = len(runner.steps)
        stats = engine.stats()
        assert stats.accepted_tokens == (stats.drafted_tokens if skill else 0) and stats.drafted_tokens > 0
        assert len(runner.steps) + stats.accepted_tokens == 24
        engine.shutdown()
    assert steps[1.0] < 24 == steps[0.0]


def test_a_cancel_between_accepted_tokens_ends_the_choice_at_once(plain: list[Spoken]) -> None:
    engine, _ = pretend_engine()
    engine._loop.lanes[0].propose = guesses(plain, [0], 1, 1.0)
    heard: list[int] = []

    def listener(delta: object) -> None:
        assert isinstance(delta, Delta)
        heard.extend(delta.token_ids)
        if len(heard) == 7:
            raise ValueError("a listener that fails")

    engine.start()
    prompt, params = REQUESTS[0]
    engine.submit(list(prompt.encode()), params, listener)
    engine.logits([0])
    while engine.stats().running:
        engine.logits([0])
    assert len(heard) == 7
    engine._loop.lanes[0].check()
    engine.shutdown()


# -- the engine's own proposers --------------------------------------------------------------


class Parrot(PretendRunner):
    """Likes to repeat what came `period` tokens earlier."""

    period = 9

    def _row(self, step, row, cache):  # type: ignore[no-untyped-def]
        logits = super()._row(step, row, cache)
        seq = int(np.searchsorted(step.query_start, row, side="right")) - 1
        position = int(step.positions[row]) + 1 - self.period
        if position >= 0 and position % 31:
            block = int(step.block_tables[seq, position // self.block_size])
            logits[cache[block * self.block_size + position % self.block_size][1]] += 12
        return logits


def parrot(**changes: object) -> Engine:
    engine, runner = pretend_engine(**changes)  # type: ignore[arg-type]
    runner.__class__ = Parrot
    engine.start()
    return engine


@pytest.mark.parametrize("params", [
    SamplingParams(temperature=0, max_tokens=60, ignore_eos=True),
    SamplingParams(seed=3, max_tokens=60, n=3, ignore_eos=True),
    SamplingParams(seed=3, max_tokens=60, repetition_penalty=1.1, logprobs=2, ignore_eos=True),
])  # fmt: skip
@pytest.mark.parametrize("lanes", [1, 2])
def test_lookup_gives_the_same_and_saves_steps(params: SamplingParams, lanes: int) -> None:
    answers, steps = [], []
    for lookup in (False, True):
        engine = parrot(lookup=lookup, lanes=lanes)
        asked = [Answer(engine, prompt, params) for prompt in ("abcdefghi, ", "1 2 3 4 5 6 7")]
        answers.append([[a.wait().tokens(i), a.text(i), a.logprobs(i)] for a in asked for i in range(params.n)])
        steps.append(engine.stats().steps)
        assert (engine.stats().accepted_tokens > 0) == lookup
        engine.shutdown()
    assert answers[0] == answers[1]
    assert steps[1] < steps[0]


@pytest.mark.parametrize("change", ["same", "worse", "nothing", "padding"])
def test_a_prediction_gives_the_same_and_is_counted(make_engine: MakeEngine, change: str) -> None:
    engine, _ = make_engine()
    params = SamplingParams(seed=9, max_tokens=40, ignore_eos=True, n=2)
    plain = Answer(engine, "Predict", params).wait()
    text = plain.tokens()
    steps = engine.stats().steps
    prediction = {
        "same": text,
        "worse": [*text[:10], 1, 2, *text[12:20], *text[25:]],
        "nothing": [7] * 12,
        "padding": [*text[:5], HEAD_ROWS - 1, *text[5:]],
    }[change]
    arrived: list[Delta] = []
    asked = Answer(engine, "Predict", params)  # beside another, without
    engine.submit(list(b"Predict"), params, lambda d: arrived.append(d) if isinstance(d, Delta) else None,
                  prediction=prediction)  # fmt: skip
    again = Answer(engine, "Predict", params)
    for one in (asked, again):
        assert [one.wait().tokens(i) for i in (0, 1)] == [plain.tokens(i) for i in (0, 1)]
    engine.logits([0])
    for index in (0, 1):
        mine = [d for d in arrived if d.index == index]
        assert [t for d in mine for t in d.token_ids] == plain.tokens(index)
        last = mine[-1]
        assert last.accepted_prediction_tokens + last.rejected_prediction_tokens == len(prediction)
        assert not any(d.accepted_prediction_tokens or d.rejected_prediction_tokens for d in mine[:-1])
        if index == 0:
            low, high = {"same": (40, 40), "worse": (30, 33), "nothing": (0, 0), "padding": (39, 40)}[change]
            assert low <= last.accepted_prediction_tokens <= high
    assert engine.stats().steps > steps
    assert (engine.stats().accepted_tokens > 0) == (change != "nothing")
