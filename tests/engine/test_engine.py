"""The engine over the pretend model: the same tokens in any company, how answers end, refusals, logits."""

from __future__ import annotations

import numpy as np
import pytest
from tests.engine.conftest import MakeEngine
from tests.engine.fakes import EOS, VOCAB, Answer, answer, pretend_logits

from gallium.engine.async_engine import Engine
from gallium.errors import ContextTooLong, InvalidRequest
from gallium.types import SamplingParams

PROMPT = "Tell me about the element gallium."
MIXED = [
    SamplingParams(
        temperature=t, seed=i, max_tokens=3 + 5 * (i % 4), top_k=(0, 5)[i % 2], min_p=0.01 * (i % 3),
        repetition_penalty=1.0 + 0.1 * (i % 2), frequency_penalty=0.2 * (i % 3), ignore_eos=True,
    )
    for i, t in enumerate([0.0, 1.0, 0.7, 0.3] * 4)
]  # fmt: skip
PROMPTS = [PROMPT[: 5 + 7 * (i % 5)] + str(i // 2) * (i % 3) for i in range(16)]


def alone(make_engine: MakeEngine) -> list[list[int]]:
    """What each of the mixed requests gives with an engine for itself."""
    result = []
    for prompt, params in zip(PROMPTS, MIXED, strict=True):
        engine, _ = make_engine(prefix_cache=False, max_step_tokens=96)
        result.append(Answer(engine, prompt, params).wait().tokens())
    return result


def together(engine: Engine) -> list[list[int]]:
    answers = [Answer(engine, prompt, params) for prompt, params in zip(PROMPTS, MIXED, strict=True)]
    return [a.wait().tokens() for a in answers]


@pytest.mark.parametrize("prefix_cache", [True, False])
@pytest.mark.parametrize("chunk", [1, 3, 7, 64])
def test_the_same_tokens_alone_in_a_batch_chunked_and_cached(
    make_engine: MakeEngine, chunk: int, prefix_cache: bool
) -> None:
    expected = alone(make_engine)
    engine, _ = make_engine(max_step_tokens=chunk, prefix_cache=prefix_cache)
    assert together(engine) == expected
    assert together(engine) == expected  # from the prefix cache, if there is one
    assert (engine.stats().prefix_hit_tokens > 0) == prefix_cache


@pytest.mark.parametrize("prefix_cache", [True, False])
def test_the_same_tokens_after_preemption(make_engine: MakeEngine, prefix_cache: bool) -> None:
    expected = alone(make_engine)
    engine, _ = make_engine(num_blocks=16, max_context=64, prefix_cache=prefix_cache)
    assert together(engine) == expected
    assert engine.stats().preemptions > 0


def test_greedy_takes_the_best_token_each_time(make_engine: MakeEngine) -> None:
    engine, _ = make_engine()
    text = list(PROMPT.encode())
    for token in answer(engine, PROMPT, temperature=0, max_tokens=12, ignore_eos=True).tokens():
        assert token == int(np.argmax(pretend_logits(text)[:VOCAB]))
        text.append(token)


def test_a_seed_fixes_the_answer_and_no_seed_does_not(make_engine: MakeEngine) -> None:
    engine, _ = make_engine()
    same = [answer(engine, "x", seed=5, max_tokens=8).tokens() for _ in range(2)]
    assert same[0] == same[1]
    free = [tuple(answer(engine, "x", max_tokens=8, ignore_eos=True).tokens()) for _ in range(3)]
    assert len(set(free)) == 3


def test_choices_differ_share_the_prompt_and_the_first_equals_n_1(make_engine: MakeEngine) -> None:
    engine, runner = make_engine()
    one = answer(engine, PROMPT, seed=3, max_tokens=6, ignore_eos=True)
    many = answer(engine, PROMPT, seed=3, max_tokens=6, ignore_eos=True, n=4)
    assert many.tokens(0) == one.tokens()
    assert len({tuple(many.tokens(i)) for i in range(4)}) == 4
    assert all(many.last(i).finish_reason == "length" for i in range(4))
    assert [many.of(i)[0].cached_tokens for i in range(4)] == [32] * 4
    engine, runner = make_engine(prefix_cache=False)
    again = answer(engine, PROMPT, seed=3, max_tokens=6, ignore_eos=True, n=4)
    assert [again.tokens(i) for i in range(4)] == [many.tokens(i) for i in range(4)]
    assert sum(len(s.token_ids) for s in runner.steps) < 2 * len(PROMPT) + 4 * 6  # the prompt ran about once


def test_cached_tokens_are_told_once_on_the_first_piece(make_engine: MakeEngine) -> None:
    engine, _ = make_engine()
    assert answer(engine, "a" * 9, max_tokens=2, ignore_eos=True).of()[0].cached_tokens == 0
    deltas = answer(engine, "a" * 9, max_tokens=2, ignore_eos=True).of()
    assert [d.cached_tokens for d in deltas] == [8, 0]


# -- the end of an answer --------------------------------------------------------------


def test_max_tokens_and_the_end_of_the_context_are_length(make_engine: MakeEngine) -> None:
    engine, _ = make_engine(max_context=40)
    done = answer(engine, "abc", max_tokens=4, ignore_eos=True)
    assert len(done.tokens()) == 4 and done.last().finish_reason == "length" and done.last().stop_reason is None
    done = answer(engine, "abc", ignore_eos=True)
    assert len(done.tokens()) == 37 and done.last().finish_reason == "length"


def test_an_end_token_stops_and_is_counted_but_not_shown(make_engine: MakeEngine) -> None:
    engine, _ = make_engine()
    done = answer(engine, "abc", logit_bias={EOS: 100.0}, temperature=0)
    assert done.tokens() == [EOS] and done.text() == ""
    assert done.last().finish_reason == "stop" and done.last().stop_reason == EOS


def test_ignore_eos_and_min_tokens(make_engine: MakeEngine) -> None:
    engine, _ = make_engine()
    wants_to_end = {"logit_bias": {EOS: 100.0}, "temperature": 0, "max_tokens": 6}
    assert answer(engine, "abc", ignore_eos=True, **wants_to_end).tokens() == [EOS] * 6
    done = answer(engine, "abc", min_tokens=3, **wants_to_end).tokens()
    assert len(done) == 4 and done[3] == EOS and EOS not in done[:3]
    x = ord("x")
    done = answer(engine, "abc", min_tokens=2, stop_token_ids=(x,), logit_bias={x: 100.0}, temperature=0)
    assert done.tokens()[2:] == [x] and done.last().stop_reason == x and x not in done.tokens()[:2]


def test_include_stop_shows_a_stop_token(make_engine: MakeEngine) -> None:
    engine, _ = make_engine()
    x = ord("x")
    bias = {"logit_bias": {x: 100.0}, "temperature": 0, "stop_token_ids": (x,)}
    assert answer(engine, "abc", **bias).text() == ""
    assert answer(engine, "abc", include_stop=True, **bias).text() == "x"


def test_stop_strings_cut_the_text_across_token_borders(make_engine: MakeEngine) -> None:
    engine, _ = make_engine()
    free = answer(engine, "abc", temperature=0, max_tokens=20, ignore_eos=True)
    assert len(free.text()) == 20
    stop = free.text()[7:11]
    assert free.text().index(stop) == 7
    done = answer(engine, "abc", temperature=0, max_tokens=20, stop=(stop, "never there"))
    assert done.text() == free.text()[:7] and done.tokens() == free.tokens()[:11]
    assert done.last().finish_reason == "stop" and done.last().stop_reason == stop
    for delta in done.of():
        assert not set(stop) <= set(delta.text)
    done = answer(engine, "abc", temperature=0, max_tokens=20, stop=(stop,), include_stop=True)
    assert done.text() == free.text()[:11]
    late = answer(engine, "abc", temperature=0, max_tokens=20, stop=(stop,), min_tokens=9, ignore_eos=True)
    assert late.text() == free.text() and late.last().finish_reason == "length"


def test_held_back_text_is_given_when_the_limit_ends_the_answer(make_engine: MakeEngine) -> None:
    engine, _ = make_engine()
    free = answer(engine, "abc", temperature=0, max_tokens=5, ignore_eos=True)
    done = answer(engine, "abc", temperature=0, max_tokens=5, stop=(free.text() + "!",), ignore_eos=True)
    assert [d.text for d in done.of()] == ["", "", "", "", free.text()]


# -- refusals ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "params", "error", "words"),
    [
        ([], {}, InvalidRequest, "empty"),
        ([1, -1], {}, InvalidRequest, "token id -1"),
        ([1, 264], {}, InvalidRequest, "token id 264, but ids are 0 to 263"),
        ([1.5], {}, InvalidRequest, "integer"),
        ([[1, 2]], {}, InvalidRequest, "flat list"),
        ([1, [2, 3]], {}, InvalidRequest, "flat list"),
        (["a"], {}, InvalidRequest, "flat list"),
        ([True], {}, InvalidRequest, "integer"),
        ([2**70], {}, InvalidRequest, "integer"),
        ([1], {"logit_bias": {257: 1.0}}, InvalidRequest, "logit_bias has token id 257"),
        ([1], {"stop_token_ids": (-3,)}, InvalidRequest, "stop_token_ids has token id -3"),
        ([1], {"min_tokens": 1, "stop_token_ids": tuple(range(256))}, InvalidRequest, "forbids every token"),
        ([1] * 96, {}, ContextTooLong, "96 tokens and 1 token of answer"),
        ([1] * 90, {"max_tokens": 7}, ContextTooLong, "context of 96 tokens"),
        ([1] * 90, {"min_tokens": 7}, ContextTooLong, "context of 96 tokens"),
    ],
)
def test_bad_requests_are_refused_before_queueing(
    make_engine: MakeEngine, prompt: list[int], params: dict[str, object], error: type[Exception], words: str
) -> None:
    engine, _ = make_engine()
    with pytest.raises(error, match=words):
        engine.submit(prompt, SamplingParams(**params), lambda delta: None)  # type: ignore[arg-type]
    assert engine.stats().waiting == 0 and engine.stats().steps == 0


def test_a_request_that_just_fits_runs(make_engine: MakeEngine) -> None:
    engine, _ = make_engine(num_blocks=24)
    assert len(answer(engine, [65] * 90, max_tokens=6, ignore_eos=True).tokens()) == 6
    assert len(answer(engine, [65] * 95, ignore_eos=True).tokens()) == 1


def test_padding_ids_may_be_in_a_prompt_but_are_never_drawn(make_engine: MakeEngine) -> None:
    engine, _ = make_engine()
    done = answer(engine, [65, 263], max_tokens=20, repetition_penalty=1.3, ignore_eos=True)
    assert max(done.tokens()) < VOCAB


# -- logits and logprobs ----------------------------------------------------------------------


def test_logits_of_every_position(make_engine: MakeEngine) -> None:
    engine, runner = make_engine(max_step_tokens=7)
    text = list(PROMPT.encode())
    expected = np.array([pretend_logits(text[: i + 1]) for i in range(len(text))])
    for _ in range(2):  # the second time the prefix is known, and still every row is there
        assert np.array_equal(engine.logits(text), expected)
    assert len(runner.steps) == 2 * 5
    full = engine.logits([65] * 96)
    assert full.shape == (96, 264)
    with pytest.raises(ContextTooLong):
        engine.logits([65] * 97)
    with pytest.raises(InvalidRequest):
        engine.logits([])


def test_logits_beside_generation(make_engine: MakeEngine) -> None:
    engine, _ = make_engine(max_step_tokens=9)
    expected = alone(make_engine)
    answers = [Answer(engine, prompt, params) for prompt, params in zip(PROMPTS, MIXED, strict=True)]
    text = list(PROMPT.encode())
    assert np.array_equal(engine.logits(text)[-1], pretend_logits(text))
    assert [a.wait().tokens() for a in answers] == expected


def test_logprobs_are_of_the_raw_distribution(make_engine: MakeEngine) -> None:
    engine, _ = make_engine()
    plain = answer(engine, "abc", temperature=0, max_tokens=5, ignore_eos=True)
    assert plain.logprobs() == []
    done = answer(engine, "abc", seed=1, temperature=2.0, top_k=3, logit_bias={65: 9.0}, max_tokens=5, logprobs=4)
    text = list(b"abc")
    assert len(done.logprobs()) == len(done.tokens()) == 5
    for token, entry in zip(done.tokens(), done.logprobs(), strict=True):
        row = pretend_logits(text)[:VOCAB].astype(np.float64)
        expected = row - np.log(np.exp(row).sum())
        assert entry.token_id == token
        assert entry.logprob == pytest.approx(expected[token], abs=1e-9)
        best = np.argsort(-expected, kind="stable")[:4]
        assert [i for i, _ in entry.top] == best.tolist()
        assert [p for _, p in entry.top] == pytest.approx(expected[best].tolist(), abs=1e-9)
        text.append(token)
    assert all(e.top == () for e in answer(engine, "abc", max_tokens=3, logprobs=0).logprobs())
