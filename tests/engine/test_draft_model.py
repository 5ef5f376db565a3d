"""A model that drafts: answers stay delta by delta what they are; what it read is never lost, stale or another's."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.engine.fakes import VOCAB, Answer, PretendDraft, pretend_engine
from tests.engine.test_speculation import REQUESTS, Spoken, plain, spoken

from gallium.engine.draft_model import within
from gallium.engine.sampling import SamplingState, sampler_inputs
from gallium.engine.scheduler import Chance
from gallium.engine.speculate import MODEL_PRIOR, MOST, UNKNOWN, Drafter, Offer, Trust, best_count
from gallium.engine.step_times import StepTimes
from gallium.types import SamplingParams

__all__ = ["plain"]  # a fixture


Verdicts = list[tuple[int, int]]
Often = Callable[[int, float], Verdicts]


def asked_often(patch: pytest.MonkeyPatch, seed: int, share: float) -> Verdicts:
    """Let the draft model be asked for any number of drafts, whatever that costs; (drafted, right) of each time."""
    rng = random.Random(seed)
    verdicts: Verdicts = []

    def propose(self: Drafter, tokens: object, chance: Chance, times: object, offer: Offer | None) -> list[int]:
        self._trying, self.kind = self._trust_in_model, "model"
        if offer is None or rng.random() > share:
            return []
        return [UNKNOWN] * rng.randint(0, min(chance.limit, offer.limit, 9))

    patch.setattr(Drafter, "propose", propose)
    patch.setattr(Drafter, "settle", lambda self, drafted, right: verdicts.append((drafted, right)))
    return verdicts


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> Often:
    return lambda seed, share: asked_often(monkeypatch, seed, share)


@settings(max_examples=12, deadline=None)
@given(
    which=st.lists(st.integers(0, len(REQUESTS) - 1), min_size=1, max_size=8),
    seed=st.integers(0, 2**32),
    skill=st.sampled_from([0.0, 0.6, 1.0]),
    share=st.sampled_from([0.3, 1.0]),
    num_blocks=st.sampled_from([24, 30, 64]),
    max_step_tokens=st.sampled_from([2, 7, 24]),
    prefix_cache=st.booleans(),
    draft_vocab=st.sampled_from([90, 110, VOCAB]),
)
def test_a_model_that_drafts_changes_nothing(
    plain: list[Spoken], which: list[int], seed: int, skill: float, share: float, num_blocks: int,
    max_step_tokens: int, prefix_cache: bool, draft_vocab: int,
) -> None:  # fmt: skip
    engine, _ = pretend_engine(
        draft=PretendDraft(4, skill), draft_vocab=draft_vocab, num_blocks=num_blocks,
        max_step_tokens=max_step_tokens, prefix_cache=prefix_cache,
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        verdicts = asked_often(patch, seed, share)
        engine.start()
        try:
            assert spoken(engine, which) == [choice for i in which for choice in plain[i]]
            assert spoken(engine, which) == [choice for i in which for choice in plain[i]]  # from the prefix cache
            for lane in engine._loop.lanes:
                lane.check()
            stats = engine.stats()
            assert stats.free_blocks == stats.total_blocks and stats.accepted_tokens <= stats.drafted_tokens
            assert stats.drafts["model"]["drafted"] == stats.drafted_tokens
            if skill == 1.0 and draft_vocab == VOCAB:
                assert all(drafted == accepted for drafted, accepted in verdicts)
        finally:
            engine.shutdown()


def test_an_equal_model_is_always_right_and_saves_steps(plain: list[Spoken], often: Often) -> None:
    often(3, 1.0)
    engine, runner = pretend_engine(draft=PretendDraft(4))
    engine.start()
    for number in (0, 1, 3, 8, 9):
        assert spoken(engine, [number]) == plain[number]
    drafts = engine.stats().drafts["model"]
    assert drafts["drafted"] == drafts["accepted"] > 60  # of these, none goes beyond the end of its answer
    assert len(runner.steps) < 80
    engine.shutdown()


def test_a_prefix_is_read_once(often: Often) -> None:
    often(3, 1.0)
    draft = PretendDraft(4)
    engine, _ = pretend_engine(draft=draft)
    engine.start()
    prompt = "The same long beginning of every prompt, "
    params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
    read = []
    for end in "one", "two":
        before = sum(len(step.token_ids) for step in draft.steps)
        Answer(engine, prompt + end, params).wait()
        read.append(sum(len(step.token_ids) for step in draft.steps) - before)
    assert read[0] >= len(prompt) and read[1] < 20
    assert engine.stats().drafts["model"]["drafted"] == engine.stats().drafts["model"]["accepted"]
    engine.shutdown()


def test_a_long_prompt_is_read_in_chunks_beside_the_steps_of_others(often: Often) -> None:
    often(3, 1.0)
    draft = PretendDraft(4)
    engine, _ = pretend_engine(draft=draft, max_step_tokens=12)
    engine.start()
    Answer(engine, "x" * 60, SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)).wait()
    assert max(len(step.token_ids) for step in draft.steps) <= 12
    assert engine.stats().drafts["model"]["accepted"] > 0
    engine.shutdown()


def test_a_cancel_in_the_middle_of_drafts(often: Often) -> None:
    often(3, 1.0)
    engine, _ = pretend_engine(draft=PretendDraft(4))
    engine.start()
    asked = [Answer(engine, text, SamplingParams(temperature=0, ignore_eos=True, n=2)) for text in ("abc", "abd")]
    for _ in range(9):
        asked[0].next()
    asked[0].handle.cancel()
    for one in asked:
        one.wait()
    assert {d.finish_reason for d in (asked[0].last(0), asked[0].last(1))} <= {"cancelled", "length"}
    engine.logits([0])
    assert engine.stats().free_blocks == engine.stats().total_blocks
    engine._loop.lanes[0].check()
    engine.shutdown()


def test_tokens_that_the_draft_model_lacks_are_left_to_the_model(often: Often) -> None:
    often(3, 1.0)
    draft = PretendDraft(4)
    engine, _ = pretend_engine(draft=draft, draft_vocab=100)
    engine.start()
    Answer(engine, [65, 66, 120, 67], SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)).wait()
    assert not draft.steps and engine.stats().drafted_tokens == 0
    engine.shutdown()


# -- when it pays ----------------------------------------------------------------------------------


def linear(one: float, more: float) -> StepTimes:
    """Steps of every width."""
    known = StepTimes()
    for width in range(1, 60):
        known.observe(width, one + more * (width - 1))
    return known


def drafter(**changes: object) -> Drafter:
    """One that has nothing but a draft model, unless `changes` say so."""
    how: dict[str, object] = {"prompt_len": 4, "vocab_size": 99, "prediction": None, "lookup": False}
    return Drafter(**(how | {"model": Trust(MODEL_PRIOR)} | changes))  # type: ignore[arg-type]


TIMES = linear(10.0, 1.0)
CHANCE = Chance(40, 1, 1)


@pytest.mark.parametrize(("step", "rate", "low", "high"), [
    (1.0, 0.9, 3, 16), (1.0, 0.3, 0, 1), (9.5, 0.9, 0, 0), (0.0, 0.99, MOST, MOST),
])  # fmt: skip
def test_the_time_of_drafting_counts(step: float, rate: float, low: int, high: int) -> None:
    assert low <= best_count(rate, CHANCE, TIMES, Offer(40, step, 0.0, 100)).drafts <= high


def test_reading_a_long_prompt_must_pay_within_the_answer() -> None:
    assert best_count(0.8, CHANCE, TIMES, Offer(40, 1.0, 60.0, 1000)).drafts > 0
    assert best_count(0.8, CHANCE, TIMES, Offer(40, 1.0, 60.0, 3)).drafts == 0


def test_a_draft_model_that_is_too_slow_is_not_even_tried() -> None:
    one = drafter()
    assert not any(one.propose([1] * 9, CHANCE, TIMES, Offer(40, 30.0, 0.0, 999)) for _ in range(3000))


def test_a_draft_model_that_is_wrong_is_given_up_and_tried_again_rarely() -> None:
    one, offer = drafter(), Offer(40, 2.0, 0.0, 9999)
    spent = tries = 0.0
    for _ in range(3000):
        drafts = one.propose([1] * 9, CHANCE, TIMES, offer)
        if drafts:
            tries += 1
            spent += offer.seconds(len(drafts)) + TIMES.expected(1 + len(drafts)) - TIMES.expected(1)
            one.settle(len(drafts), 0)
    assert 3 < tries < 60
    assert spent < 0.03 * 3000 * TIMES.expected(1)
    one.settle(9, 9)
    for _ in range(30):
        one.settle(9, 9)
    assert len(one.propose([1] * 9, CHANCE, TIMES, offer)) > 1


def test_new_answers_begin_with_what_others_have_shown() -> None:
    skill = Trust(MODEL_PRIOR)
    first = drafter(model=skill)
    while first.propose([1] * 9, CHANCE, TIMES, Offer(40, 2.0, 0.0, 999)):
        first.settle(2, 0)
    assert not drafter(model=skill).propose([1] * 9, CHANCE, TIMES, Offer(40, 2.0, 0.0, 999))


def test_the_source_that_promises_most_is_taken() -> None:
    text = [1, 2, 3, 4, 5, 6] * 3
    both = drafter(lookup=True)
    assert both.propose(text, CHANCE, TIMES, Offer(40, 2.0, 0.0, 999))[0] == 1
    assert both.kind == "ngram"
    assert set(both.propose([*text, 7, 8, 9], CHANCE, TIMES, Offer(40, 2.0, 0.0, 999))) == {UNKNOWN}
    assert both.kind == "model"


def test_adjustments_of_ids_that_the_draft_model_lacks_are_left_out() -> None:
    params = SamplingParams(logit_bias={3: 1.0, 50: 2.0, 7: -1.0})
    states = [SamplingState(SamplingParams(), [1], 1, 60), SamplingState(params, [1], 1, 60)] * 2
    how = within(sampler_inputs(states, [1, 2, 3, 4], 20))
    assert how.adjust_start.tolist() == [0, 0, 2, 2, 4] and how.adjust_ids.tolist() == [3, 7, 3, 7]
    assert how.adjust_bias.tolist() == [1.0, -1.0] * 2
    assert np.all(how.adjust_ids < 20)
