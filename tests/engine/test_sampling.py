"""From sampling parameters to the device's sparse adjustments: equal to a dense definition of every penalty."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gallium.engine.sampling import (
    SamplingState,
    check_token_ids,
    choice_seed,
    ending_ids,
    fresh_seed,
    sampler_inputs,
    token_logprob,
)
from gallium.errors import InvalidRequest
from gallium.ops.handles import FloatArray
from gallium.ops.reference_sampling import adjusted
from gallium.types import SamplingParams

VOCAB, PADDING = 40, 4  # more ids than the adjustments have room for at first
LOGITS = np.random.default_rng(1).normal(0, 3, VOCAB + PADDING).astype(np.float32)
ids = st.integers(0, VOCAB - 1)


def dense(params: SamplingParams, prompt: Sequence[int], answer: Sequence[int], eos_ids: Collection[int]) -> FloatArray:
    """The logits to draw from, by the definitions of the fields.

    repetition_penalty: Hugging Face's RepetitionPenaltyLogitsProcessor, over prompt and answer.
    presence_penalty, frequency_penalty, logit_bias: OpenAI's formula, over the answer.
    min_tokens: nothing that ends an answer before so many tokens.
    """
    row = LOGITS[:VOCAB].astype(np.float64)
    for token in {t for t in [*prompt, *answer] if t < VOCAB}:
        row[token] = (
            row[token] * params.repetition_penalty if row[token] < 0 else row[token] / params.repetition_penalty
        )
    for token, count in Counter(answer).items():
        row[token] -= count * params.frequency_penalty + params.presence_penalty
    for token, bias in params.logit_bias.items():
        row[token] += bias
    if len(answer) < params.min_tokens:
        row[[*params.stop_token_ids, *(() if params.ignore_eos else eos_ids)]] = -np.inf
    return row.astype(np.float32)


def state_after(
    params: SamplingParams, prompt: Sequence[int], answer: Sequence[int], eos_ids: Collection[int] = ()
) -> SamplingState:
    state = SamplingState(params, prompt, 7, VOCAB, eos_ids)
    for token in answer:
        state.accept(token)
    return state


def assert_as_defined(
    params: SamplingParams, prompt: Sequence[int], answer: Sequence[int], eos_ids: Collection[int] = ()
) -> None:
    state = state_after(params, prompt, answer, eos_ids)
    assert len(set(state.ids.tolist())) == state.count and all(0 <= i < VOCAB for i in state.ids)
    how = sampler_inputs([state], [len(prompt) + len(answer)], VOCAB)
    expected = dense(params, prompt, answer, eos_ids)
    np.testing.assert_allclose(adjusted(LOGITS, how, 0), expected, rtol=1e-5, atol=1e-4)


# -- penalties and biases --------------------------------------------------------------


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(),
        SamplingParams(repetition_penalty=1.3),
        SamplingParams(repetition_penalty=0.5),
        SamplingParams(presence_penalty=1.5),
        SamplingParams(presence_penalty=-1.5),
        SamplingParams(frequency_penalty=0.7),
        SamplingParams(logit_bias={0: 5.0, 3: -100.0, 39: 0.5}),
        SamplingParams(min_tokens=9, stop_token_ids=(5,)),
        SamplingParams(min_tokens=9, stop_token_ids=(5,), ignore_eos=True),
        SamplingParams(min_tokens=4, stop_token_ids=(5,), logit_bias={5: 2.0, 6: 3.0}),
    ],
)
def test_each_field_alone(params: SamplingParams) -> None:
    prompt, answer = [1, 2, 2, 3, VOCAB + 1], [2, 4, 4, 4, 8]
    assert_as_defined(params, prompt, answer, eos_ids=(6, 7))
    assert_as_defined(params, prompt, [], eos_ids=(6, 7))


def test_a_penalty_counts_prompt_or_answer_as_its_makers_define() -> None:
    def changed(**fields: float) -> set[int]:
        how = sampler_inputs([state_after(SamplingParams(**fields), [1, 2], [2, 3])], [4], VOCAB)  # type: ignore[arg-type]
        return set(np.flatnonzero(adjusted(LOGITS, how, 0) != LOGITS[:VOCAB]).tolist())

    assert changed(repetition_penalty=2.0) == {1, 2, 3}
    assert changed(presence_penalty=1.0) == changed(frequency_penalty=1.0) == {2, 3}


@st.composite
def draws(draw: st.DrawFn) -> tuple[SamplingParams, list[int], list[int], set[int]]:
    """Parameters, prompt, answer and eos ids that can occur: no answer has an end token before its end."""
    params = SamplingParams(
        repetition_penalty=draw(st.sampled_from([1.0, 1.3, 0.8])),
        presence_penalty=draw(st.sampled_from([0.0, 1.5, -0.5])),
        frequency_penalty=draw(st.sampled_from([0.0, 0.25, -1.0])),
        logit_bias=draw(st.dictionaries(ids, st.floats(-100, 100, width=32), max_size=5)),
        min_tokens=draw(st.integers(0, 30)),
        stop_token_ids=tuple(draw(st.lists(ids, max_size=3))),
        ignore_eos=draw(st.booleans()),
    )
    eos = draw(st.sets(ids, max_size=2))
    ends = ending_ids(params, eos)
    prompt = draw(st.lists(st.integers(0, VOCAB + PADDING - 1), max_size=30))
    answer = draw(st.lists(ids.filter(lambda token: token not in ends), max_size=60))
    return params, prompt, answer, eos


@given(draws())
def test_all_fields_together(drawn: tuple[SamplingParams, list[int], list[int], set[int]]) -> None:
    assert_as_defined(*drawn)


@given(draws(), st.lists(ids, max_size=6))
def test_a_look_ahead_is_as_if_drafts_were_accepted_and_leaves_no_trace(
    drawn: tuple[SamplingParams, list[int], list[int], set[int]], drafts: list[int]
) -> None:
    params, prompt, answer, eos = drawn
    drafts = [token for token in drafts if token not in ending_ids(params, eos)]
    state = state_after(params, prompt, answer, eos)
    for _ in range(2):
        states = state.ahead(drafts)
        how = sampler_inputs(states, list(range(len(states))), VOCAB)
        for row in range(1 + len(drafts)):
            expected = dense(params, prompt, [*answer, *drafts[:row]], eos)
            np.testing.assert_allclose(adjusted(LOGITS, how, row), expected, rtol=1e-5, atol=1e-4)


@given(draws(), st.lists(ids, max_size=6))
def test_a_look_ahead_over_any_drafts_adjusts_each_token_once(
    drawn: tuple[SamplingParams, list[int], list[int], set[int]], drafts: list[int]
) -> None:
    params, prompt, answer, eos = drawn
    for state in state_after(params, prompt, answer, eos).ahead(drafts):
        assert len(set(state.ids.tolist())) == state.count
        assert not np.isnan(state.bias).any() and not np.isnan(state.scale).any()


def test_rows_keep_their_own_adjustments() -> None:
    states = [
        state_after(SamplingParams(temperature=0.5, top_k=3), [1], []),
        state_after(SamplingParams(repetition_penalty=2.0, top_p=0.5), [1, 2], [3]),
        state_after(SamplingParams(min_p=0.25, seed=4), [1], [2]),
        state_after(SamplingParams(logit_bias={9: 1.0}), [], []),
    ]
    how = sampler_inputs(states, [1, 3, 2, 0], VOCAB)
    assert how.adjust_start.tolist() == [0, 0, 3, 3, 4]
    assert how.adjust_ids.tolist() == [1, 2, 3, 9]
    assert how.temperature.tolist() == [0.5, 1, 1, 1] and how.top_k.tolist() == [3, 0, 0, 0]
    assert how.top_p.tolist() == [1, 0.5, 1, 1] and how.min_p.tolist() == [0, 0, 0.25, 0]
    assert how.position.tolist() == [1, 3, 2, 0] and how.seed.tolist() == [7] * 4 and how.vocab_size == VOCAB


# -- checks ----------------------------------------------------------------------------


@pytest.mark.parametrize("token_id", [-1, VOCAB, 2**40, True, 1.0, "1"])
@pytest.mark.parametrize("field", ["logit_bias", "stop_token_ids"])
def test_ids_that_cannot_be_drawn_are_refused_by_name(field: str, token_id: object) -> None:
    value = {token_id: 1.0} if field == "logit_bias" else (0, token_id)
    with pytest.raises(InvalidRequest, match=f"{field} has token id {token_id!r}, but ids are 0 to 39") as caught:
        check_token_ids(SamplingParams(**{field: value}), VOCAB, ())  # type: ignore[arg-type]
    assert caught.value.param == field


def test_min_tokens_must_leave_something_to_draw() -> None:
    params = SamplingParams(min_tokens=1, stop_token_ids=tuple(range(1, VOCAB)))
    check_token_ids(params, VOCAB, ())
    with pytest.raises(InvalidRequest, match="forbids every token"):
        check_token_ids(params, VOCAB, (0,))
    check_token_ids(SamplingParams(stop_token_ids=tuple(range(VOCAB))), VOCAB, ())  # ends at once, as it was asked to


# -- seeds -----------------------------------------------------------------------------


def test_the_choices_of_a_request_have_the_seeds_of_splitmix64() -> None:
    known = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    assert [choice_seed(1234567, index) for index in range(6)] == [1234567, *known]


@given(st.integers(-(2**63), 2**64 - 1), st.integers(0, 127))
def test_every_seed_is_64_bits_and_negative_ones_wrap(seed: int, index: int) -> None:
    assert choice_seed(seed, index) == choice_seed(seed % 2**64, index) < 2**64


def test_seeds_do_not_repeat() -> None:
    assert len({choice_seed(seed, index) for seed in range(50) for index in range(128)}) == 50 * 128
    assert len({fresh_seed() for _ in range(100)}) == 100
    assert max(fresh_seed() for _ in range(100)) >= 2**32


# -- log-probabilities -----------------------------------------------------------------

rows = st.lists(st.integers(-8, 8), min_size=1, max_size=30).map(lambda values: np.array(values, np.float32))


@given(rows, st.data())
def test_logprobs_are_the_log_of_softmax_best_first_ties_to_the_lower_id(row: FloatArray, data: st.DataObject) -> None:
    token, top = data.draw(st.integers(0, len(row) - 1)), data.draw(st.integers(0, 20))
    softmax = np.exp(row.astype(np.float64)) / np.exp(row.astype(np.float64)).sum()
    found = token_logprob(row, token, top)
    assert found.token_id == token and np.isclose(np.exp(found.logprob), softmax[token], rtol=1e-12, atol=0)
    best = sorted(range(len(row)), key=lambda i: (-row[i], i))[:top]
    assert [i for i, _ in found.top] == best
    assert np.allclose(np.exp([p for _, p in found.top]), softmax[best], rtol=1e-12, atol=0)


def test_large_logits_do_not_overflow() -> None:
    found = token_logprob(np.array([3e38, 0, 3e38], np.float32), 0, 3)
    assert found.logprob == pytest.approx(np.log(0.5)) and [i for i, _ in found.top] == [0, 2, 1]
