"""/v1/completions with OpenAI's client: sampling, seeds, penalties of length, and the same tokens as the Python API."""

from __future__ import annotations

from typing import Any

from openai import OpenAI

from gallium import LLM, SamplingParams

MODEL = "org/tiny"
PROMPT = "Once upon a time "


def complete(client: OpenAI, prompt: Any = PROMPT, **fields: Any) -> Any:
    return client.completions.create(model=MODEL, prompt=prompt, **fields)


def text_of(client: OpenAI, **fields: Any) -> str:
    text: str = complete(client, **fields).choices[0].text
    return text


def test_greedy_is_that_of_the_python_api(client: OpenAI, llm: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=50, logprobs=2)
    (expected,) = llm.generate(PROMPT, params=params)
    answer = complete(client, temperature=0, max_tokens=50, logprobs=2)
    (choice,) = answer.choices
    assert choice.text == expected.text
    assert choice.logprobs.tokens == [llm.tokenizer.token_bytes(i).decode() for i in expected.token_ids]
    assert expected.logprobs is not None
    for ours, theirs in zip(choice.logprobs.token_logprobs, expected.logprobs, strict=True):
        assert abs(ours - theirs.logprob) < 1e-5
    assert all(len(best) == 2 for best in choice.logprobs.top_logprobs)
    assert choice.finish_reason == "length"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(expected.prompt_token_ids), 50)
    assert answer.object == "text_completion" and answer.id.startswith("cmpl-")


def test_a_seed_makes_answers_repeatable_here_and_in_the_python_api(client: OpenAI, llm: LLM) -> None:
    text = text_of(client, seed=7, max_tokens=40)
    assert text == text_of(client, seed=7, max_tokens=40)
    assert text == llm.generate(PROMPT, params=SamplingParams(seed=7, max_tokens=40))[0].text
    assert text != text_of(client, seed=8, max_tokens=40)
    assert text_of(client, max_tokens=40) != text_of(client, max_tokens=40)  # a fresh seed each time


def test_a_stream_says_the_same(client: OpenAI) -> None:
    whole = complete(client, seed=7, max_tokens=40)
    with complete(client, seed=7, max_tokens=40, stream=True, stream_options={"include_usage": True}) as stream:
        chunks = list(stream)
    assert "".join(c.choices[0].text for c in chunks[:-1]) == whole.choices[0].text
    assert [c.choices[0].finish_reason for c in chunks[:-1] if c.choices[0].finish_reason] == ["length"]
    assert all(c.usage is None for c in chunks[:-1]) and chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens == 40


def test_choices_differ_from_each_other(client: OpenAI) -> None:
    fields = {"prompt": ["abc", "xyz"], "n": 3, "seed": 5, "max_tokens": 20}
    choices = complete(client, **fields).choices
    assert [c.index for c in choices] == list(range(6))
    texts = [c.text for c in choices]
    assert len(set(texts[:3])) == len(set(texts[3:])) == 3
    assert [c.text for c in complete(client, **fields).choices] == texts


def test_sixteen_tokens_unless_told_otherwise(client: OpenAI) -> None:
    answer = complete(client)
    assert (answer.usage.completion_tokens, answer.choices[0].finish_reason) == (16, "length")


def test_stop_cuts_the_text(client: OpenAI) -> None:
    text = text_of(client, temperature=0, max_tokens=50)
    stop = text[20:23]
    (choice,) = complete(client, temperature=0, max_tokens=50, stop=stop).choices
    assert (choice.text, choice.finish_reason) == (text[: text.index(stop)], "stop")


def test_a_bias_decides(client: OpenAI, llm: LLM) -> None:
    (letter,) = llm.tokenizer.encode("q")
    assert text_of(client, logit_bias={str(letter): 100}, max_tokens=5) == "qqqqq"


def test_penalties_count_what_was_said(client: OpenAI) -> None:
    plain = text_of(client, temperature=0, max_tokens=20)
    varied = text_of(client, temperature=0, max_tokens=20, frequency_penalty=2.0, presence_penalty=2.0)
    assert len(set(varied)) > len(set(plain))


def test_fields_of_other_servers(client: OpenAI) -> None:
    greedy = text_of(client, temperature=0, max_tokens=20)
    assert text_of(client, max_tokens=20, extra_body={"top_k": 1}) == greedy
    assert text_of(client, max_tokens=20, extra_body={"min_p": 1.0}) == greedy
    assert text_of(client, max_tokens=20, top_p=1e-6) == greedy


def test_token_ids_and_echo(client: OpenAI, llm: LLM) -> None:
    ids = llm.tokenizer.encode(PROMPT)
    text = text_of(client, temperature=0)
    assert text_of(client, prompt=ids, temperature=0) == text
    (choice,) = complete(client, temperature=0, echo=True, logprobs=0).choices
    assert choice.text == PROMPT + text
    assert choice.logprobs.token_logprobs[0] is None
    assert len(choice.logprobs.tokens) == len(ids) + 16
