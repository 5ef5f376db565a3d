"""Where drafts come from, how many are taken, and that hopeless ones are given up."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gallium.engine.ngrams import CANDIDATES, LONGEST, SIZE, PredictedText, Prediction, PromptLookup
from gallium.engine.scheduler import Chance
from gallium.engine.speculate import FIRST_REST, MOST, Drafter, Trust, best_count
from gallium.engine.step_times import KEPT, STALE, StepTimes

texts = st.lists(st.integers(0, 2), max_size=60)


def times(cost: Callable[[int], float]) -> StepTimes:
    """As if steps of every width had been seen."""
    known = StepTimes()
    for width in range(1, 40):
        known.observe(width, cost(width))
    return known


CHEAP = times(lambda width: 10 + 0.1 * width)
DEAR = times(lambda width: 10.0 * width)


# -- lookup ----------------------------------------------------------------------------------


def longest_recent(text: list[int]) -> tuple[int, int]:
    """(Length, place after it) of the best earlier match of the end, by trying all."""
    end = len(text)
    places = [p for p in range(SIZE, end) if text[p - SIZE : p] == text[-SIZE:]][::-1][:CANDIDATES]
    best = (0, 0)
    for place in places:
        length = next(n for n in range(end + 1) if n == min(place, LONGEST) or text[place - 1 - n] != text[-1 - n])
        best = max(best, (length, place), key=lambda one: one[0])
    return best


@given(texts)
def test_lookup_finds_the_longest_of_the_latest_matches_as_the_text_grows(text: list[int]) -> None:
    lookup = PromptLookup()
    for end in range(len(text) + 1):
        known = text[:end]
        length, place = longest_recent(known)
        assert lookup.match(known) == length
        if length:
            expected = known[place:] + known[place:] * 9
            assert lookup.propose(known, 9) == expected[:9]


def test_a_repetition_is_expected_to_go_on() -> None:
    lookup = PromptLookup()
    text = [1, 2, 3, 4] * 3
    assert lookup.match(text) == 8
    assert lookup.propose(text, 10) == [1, 2, 3, 4, 1, 2, 3, 4, 1, 2]


# -- predictions -------------------------------------------------------------------------------

EXPECTED = list(range(100, 140))


@pytest.mark.parametrize(
    ("answer", "goes_on", "found"),
    [
        ([], 100, 0),
        ([100, 101], 102, 2),
        ([100, 101, 7, 8, 102], 103, 3),  # inserted
        ([100, 101, 105], 106, 3),  # dropped
        ([100, 101, 7, 103], 104, 3),  # replaced
        ([100, 101, 120, 121, 122], 123, 4),  # jumped: known when two tokens agree
        ([100, 110, 111, 112, 102, 103, 104], 105, 5),  # and back
        ([7, 8], None, 0),
        (EXPECTED, None, 40),
    ],
)
def test_a_prediction_is_followed_through_edits(answer: list[int], goes_on: int | None, found: int) -> None:
    prediction = Prediction(PredictedText(EXPECTED), 3)
    tokens = [100, 101, 102, *answer]  # the prompt's own tokens don't count
    length = prediction.match(tokens)
    if goes_on is None:
        assert length == 0
    else:
        assert length > 0 and prediction.propose(tokens, 2) == [goes_on, goes_on + 1]
    assert prediction.found == found


@given(st.lists(st.integers(0, 3), min_size=1, max_size=30), texts)
def test_a_prediction_follows_anything_and_in_any_pieces(expected: list[int], answer: list[int]) -> None:
    whole, pieces = (Prediction(PredictedText(expected), 0) for _ in range(2))
    for end in range(len(answer) + 1):
        length = pieces.match(answer[:end])
        assert length >= 0 and (length == 0 or pieces.propose(answer[:end], 3))
    assert whole.match(answer) == pieces.match(answer)
    assert whole.propose(answer, 9) == pieces.propose(answer, 9)
    assert whole.found == pieces.found <= len(answer)


# -- step times ----------------------------------------------------------------------------------


def test_times_are_medians_with_straight_lines_between() -> None:
    known = StepTimes()
    assert known.expected(1) == 1 and known.expected(5) > 1
    for seconds in (1.0, 1.0, 9.0, 1.0, 1.0):
        known.observe(1, seconds)
    assert known.expected(1) == 1.0 < known.expected(2) < 1.2
    known.observe(5, 3.0)
    assert [known.expected(width) for width in (1, 2, 3, 5, 7)] == [1.0, 1.5, 2.0, 3.0, 4.0]


def test_a_wider_step_is_never_thought_faster() -> None:
    known = StepTimes()
    known.observe(1, 2.0)
    known.observe(4, 1.0)
    assert known.expected(1) == known.expected(4) == 2.0


def test_old_times_are_forgotten() -> None:
    known = StepTimes()
    known.observe(4, 100.0)
    for _ in range(STALE):
        known.observe(1, 1.0)
    assert known.expected(4) > 50
    known.observe(1, 1.0)
    assert known.expected(4) < 1.5
    for _ in range(KEPT):
        known.observe(1, 5.0)
    assert known.expected(1) == 5.0


def test_a_machine_that_slows_down_does_so_for_every_width() -> None:
    known = times(lambda width: 1 + 0.1 * width)
    for _ in range(KEPT):
        known.observe(1, 1.1)
        known.observe(4, 1.4)
    for seconds in (2.2, 2.2, 90.0, *[2.2] * 25):  # one of them was held up by something else
        known.observe(1, seconds)
    assert known.expected(1) == pytest.approx(2.2, rel=0.05) and known.expected(4) == pytest.approx(2.8, rel=0.15)


# -- how many ------------------------------------------------------------------------------------


@given(
    rate=st.floats(0, 1), limit=st.integers(1, 40), width=st.integers(1, 20), draws=st.integers(1, 20),
    step=st.floats(0, 2),
)  # fmt: skip
def test_the_number_of_drafts_is_worth_it(rate: float, limit: int, width: int, draws: int, step: float) -> None:
    known = times(lambda width: 1 + step * width)
    count = best_count(rate, Chance(limit, width, draws), known).drafts
    assert 0 <= count <= min(limit, MOST)

    def speed(count: int) -> float:
        gain = sum(rate**number for number in range(1, count + 1))
        return (draws + gain) / known.expected(width + count)

    if count:
        assert speed(count) >= 1.03 * speed(0) * (1 - 1e-9)
        assert all(speed(count) >= speed(other) * (1 - 1e-9) for other in range(1, min(limit, MOST) + 1))


def test_cheap_and_sure_drafts_are_taken_and_dear_ones_are_not() -> None:
    assert best_count(0.99, Chance(9, 1, 1), CHEAP).drafts == 9
    assert best_count(1.0, Chance(99, 1, 1), CHEAP).drafts == MOST
    assert best_count(0.0, Chance(9, 1, 1), CHEAP).drafts == 0
    assert best_count(0.9, Chance(9, 1, 1), DEAR).drafts == 0


# -- giving up -----------------------------------------------------------------------------------


def drafted(known: StepTimes, right: bool, steps: int) -> tuple[int, int]:
    """(Drafts, steps with a draft) of a text that repeats itself, if all drafts are right, or none is."""
    drafter = Drafter(prompt_len=8, vocab_size=100, prediction=None, lookup=True)
    tokens, total, tries = [1, 2, 3, 4] * 2, 0, 0
    for _ in range(steps):
        drafts = drafter.propose(tokens, Chance(20, 1, 1), known)
        if drafts:
            tries += 1
            total += len(drafts)
            drafter.settle(len(drafts), len(drafts) if right else 0)
        tokens.append(tokens[-4])
    return total, tries


def test_hopeless_drafts_are_given_up_and_good_ones_are_not() -> None:
    total, tries = drafted(CHEAP, True, 200)
    assert tries == 200 and total > 190 * MOST
    total, tries = drafted(times(lambda width: 10 + 1.0 * width), False, 2000)
    assert tries < 60 and total < 150
    assert drafted(DEAR, False, 2000)[1] < 16


def test_padding_ids_are_never_drafted() -> None:
    drafter = Drafter(prompt_len=8, vocab_size=4, prediction=None, lookup=True)
    assert drafter.propose([1, 2, 3, 4, 1, 2, 3, 4], Chance(9, 1, 1), CHEAP) == [1, 2, 3]
    drafter = Drafter(prompt_len=8, vocab_size=1, prediction=None, lookup=True)
    assert drafter.propose([1, 2, 3, 4, 1, 2, 3, 4], Chance(9, 1, 1), CHEAP) == []


def test_rests_grow_while_trials_fail_and_end_with_a_success() -> None:
    trust = Trust(0.5)
    waits = []
    for _ in range(4):
        waits.append(next(n for n in range(1, 1000) if trust.wants_trial()))
        trust.settle(2, 0)
    assert waits == [FIRST_REST * 2**n for n in range(4)]
    rate = trust.rate
    trust.settle(2, 2)
    assert trust.rate > rate and next(n for n in range(1, 1000) if trust.wants_trial()) == FIRST_REST
