"""When an answer ends and what of it may be shown: the same for every way of cutting the text, and nothing lost."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.engine.fakes import ByteText

from gallium.engine.stopping import NoText, Outcome, Stopper, StopStrings
from gallium.types import SamplingParams

END, OTHER_END = 256, 257  # tokens without text
ROOM = 1000

# two letters make stop strings that begin, overlap and contain each other likely
letters = st.text("ab", max_size=12)
stops = st.lists(st.text("ab", min_size=1, max_size=4), max_size=4).map(tuple)


@st.composite
def cuts(draw: st.DrawFn) -> list[str]:
    """A text in pieces, of which some are empty."""
    text = draw(letters)
    borders = sorted(draw(st.lists(st.integers(0, len(text)), max_size=6)))
    return [text[start:end] for start, end in zip([0, *borders], [*borders, len(text)], strict=True)]


def first_stop(text: str, stop: Sequence[str]) -> tuple[int, int, str] | None:
    """(Where it begins, where it ends, which) of the stop string that is complete first, the longest of several."""
    for end in range(1, len(text) + 1):
        found = [s for s in stop if text[:end].endswith(s)]
        if found:
            longest = max(found, key=len)
            return end - len(longest), end, longest
    return None


def shown(text: str, stop: Sequence[str], include: bool) -> tuple[str, str | None]:
    """(What may be shown of a whole text, the stop string in it)."""
    found = first_stop(text, stop)
    return (text, None) if found is None else (text[: found[1] if include else found[0]], found[2])


# -- stop strings ----------------------------------------------------------------------


@given(cuts(), stops, st.booleans())
def test_stop_strings_are_found_however_the_text_is_cut(
    pieces: list[str], stop: tuple[str, ...], include: bool
) -> None:
    finder, out, found = StopStrings(stop, include), "", None
    for piece in pieces:
        passed, found = finder.push(piece)
        out += passed
        if found is not None:
            break
    assert (out + finder.flush(), found) == shown("".join(pieces), stop, include)
    assert finder.flush() == ""


@given(cuts(), stops)
def test_no_more_is_held_back_than_may_begin_a_stop_string(pieces: list[str], stop: tuple[str, ...]) -> None:
    finder, text, out = StopStrings(stop), "", ""
    for piece in pieces:
        passed, found = finder.push(piece)
        if found is not None:
            return
        text, out = text + piece, out + passed
        ends = [text[at:] for at in range(len(text) + 1)]  # longest first
        assert text == out + next((e for e in ends if any(e != s and s.startswith(e) for s in stop)), "")


# -- the stopper -----------------------------------------------------------------------


def stopper(params: SamplingParams, room: int = ROOM, eos: Sequence[int] = (END,)) -> Stopper:
    return Stopper(params, eos, room, ByteText())


def feed(stop: Stopper, tokens: Sequence[int]) -> list[Outcome]:
    """The outcomes up to the one that ends the answer, or of all tokens."""
    outcomes = []
    for token in tokens:
        outcomes.append(stop.push(token))
        if outcomes[-1].finish_reason is not None:
            break
    return outcomes


def text_of(outcomes: Sequence[Outcome]) -> str:
    return "".join(outcome.text for outcome in outcomes)


def ending(outcomes: Sequence[Outcome]) -> tuple[int, str | None, int | str | None]:
    """(Number of tokens, why it ended, what ended it)."""
    return len(outcomes), outcomes[-1].finish_reason, outcomes[-1].stop_reason


@pytest.mark.parametrize(
    ("params", "tokens", "expected", "text"),
    [
        (SamplingParams(), [*b"hi", END, *b"x"], (3, "stop", END), "hi"),
        (SamplingParams(ignore_eos=True), [*b"hi", END, *b"x"], (4, None, None), "hix"),
        (SamplingParams(stop_token_ids=(ord("i"),)), [*b"hi", END], (2, "stop", ord("i")), "h"),
        (SamplingParams(stop_token_ids=(ord("i"),), include_stop=True), [*b"hi", END], (2, "stop", ord("i")), "hi"),
        (SamplingParams(stop_token_ids=(END,), ignore_eos=True), [*b"hi", END], (3, "stop", END), "hi"),
        (SamplingParams(stop_token_ids=(OTHER_END,)), [*b"hi", OTHER_END], (3, "stop", OTHER_END), "hi"),
        (SamplingParams(stop=("END",)), [*b"hi END x"], (6, "stop", "END"), "hi "),
        (SamplingParams(stop=("END",), include_stop=True), [*b"hi END x"], (6, "stop", "END"), "hi END"),
        (SamplingParams(stop=("END!",)), [*b"hi EN", END], (6, "stop", END), "hi EN"),
    ],
)  # fmt: skip
def test_ends(
    params: SamplingParams, tokens: list[int], expected: tuple[int, str | None, int | str | None], text: str
) -> None:
    outcomes = feed(stopper(params), tokens)
    assert ending(outcomes) == expected and text_of(outcomes) == text


@pytest.mark.parametrize("params", [SamplingParams(), SamplingParams(stop=("cdef",))])
def test_the_last_token_that_there_is_room_for(params: SamplingParams) -> None:
    outcomes = feed(stopper(params, room=3), b"abcdef")
    assert ending(outcomes) == (3, "length", None) and text_of(outcomes) == "abc"


def test_an_end_in_the_last_place_is_no_matter_of_length() -> None:
    assert ending(feed(stopper(SamplingParams(), room=3), [*b"ab", END])) == (3, "stop", END)
    assert ending(feed(stopper(SamplingParams(stop=("c",)), room=3), b"abc")) == (3, "stop", "c")


def test_a_stop_string_counts_from_min_tokens_on() -> None:
    params = SamplingParams(stop=("xy",), min_tokens=4)
    outcomes = feed(stopper(params), b"xyabxy")
    assert ending(outcomes) == (6, "stop", "xy") and text_of(outcomes) == "xyab"
    outcomes = feed(stopper(params), b"abxy")
    assert outcomes[-1].finish_reason is None and text_of(outcomes) == "abxy"  # x came too early to take part


@pytest.mark.parametrize("include_stop", [False, True])
def test_an_unfinished_character_is_shown_as_such_at_the_end(include_stop: bool) -> None:
    outcomes = feed(stopper(SamplingParams(include_stop=include_stop)), [*"é🙂".encode()[:-1], END])
    assert [o.text for o in outcomes] == ["", "é", "", "", "", "\N{REPLACEMENT CHARACTER}"]


@pytest.mark.parametrize(
    ("tokens", "stop", "before", "rest"),
    [
        (b"xab", "abc", "x", "ab"),
        ("xé".encode()[:-1], "abc", "x", "\N{REPLACEMENT CHARACTER}"),
        ("xaé".encode()[:-1], "a\N{REPLACEMENT CHARACTER}", "x", ""),  # the rest completes the stop string
    ],
)
def test_an_answer_that_ends_from_outside_gives_what_was_held_back(
    tokens: bytes, stop: str, before: str, rest: str
) -> None:
    watch = stopper(SamplingParams(stop=(stop,)))
    assert text_of(feed(watch, tokens)) == before
    assert (watch.flush(), watch.flush()) == (rest, "")


def test_text_without_a_tokenizer() -> None:
    stop = Stopper(SamplingParams(), (END,), 2, NoText())
    assert feed(stop, [1, 2]) == [Outcome(""), Outcome("", "length")] and stop.flush() == ""


texts = st.text("ab🙂", max_size=12)


@given(texts, stops, st.booleans(), st.integers(0, 15), st.sampled_from([END, OTHER_END, None]), st.integers(1, 30))
def test_whatever_ends_the_answer_its_text_is_there_once(
    text: str, stop: tuple[str, ...], include: bool, min_tokens: int, end: int | None, room: int
) -> None:
    """The bytes of characters come one by one; what was shown and is flushed is the text of all tokens, cut once."""
    params = SamplingParams(stop=stop, include_stop=include, min_tokens=min_tokens, stop_token_ids=(OTHER_END,))
    tokens = [*text.encode(), *([] if end is None else [end])]
    watch = stopper(params, room)
    outcomes = feed(watch, tokens)
    out, reason = text_of(outcomes), outcomes[-1].stop_reason if outcomes else None
    if not outcomes or outcomes[-1].finish_reason is None:  # it ends from outside
        out += watch.flush()
    source, taken, early = ByteText(), tokens[: len(outcomes)], max(0, min_tokens - 1)
    before = source.push(taken[:early])
    cut, found = shown(source.push(taken[early:]) + source.flush(), stop, include)
    assert out == before + cut
    assert found == (reason if isinstance(reason, str) else None)
