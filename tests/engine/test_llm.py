"""The Python API over a real, tiny model: order, parameters, refusals, and logits that agree with generation."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.altered_checkpoint import Content, altered
from tests.api.successors import CALL, CONTENT, FIRST_SPECIAL, REASONING
from tests.glm_tokenizer import tokenizer_json

from gallium import LLM, SamplingParams
from gallium.engine.sampling import token_logprob
from gallium.errors import ContextTooLong, EngineDead, InvalidRequest, TemplateError, TokenizerError, UsageError
from gallium.types import Completion

CONTEXT = 512
GREEDY = SamplingParams(temperature=0, max_tokens=6)
HELLO = [{"role": "user", "content": "Hi"}]
Prompts = list[list[int]]


def open_llm(path: Path, **changes: Any) -> LLM:
    return LLM(str(path), **{"backend": "cpu", "kv_memory": "16MiB", "max_context": CONTEXT, "threads": 1} | changes)


@pytest.fixture(scope="module")
def llm(checkpoint: Path) -> Iterator[LLM]:
    with open_llm(checkpoint) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def prompts(llm: LLM) -> Prompts:
    """Some prompts, as token ids."""
    return [llm.tokenizer.encode(text) for text in ("one", "another", "the third", "x" * 40)]


def until_idle(llm: LLM) -> None:
    """Wait until the engine has nothing to do; a bounded time."""
    for _ in range(2000):
        stats = llm.assembly.engine.stats()
        if stats.running == stats.waiting == 0 and stats.free_blocks == stats.total_blocks:
            return
        time.sleep(0.01)
    raise AssertionError("the engine is still busy")


# -- generate --------------------------------------------------------------------------


def test_text_and_token_ids_are_two_ways_to_say_the_same(llm: LLM) -> None:
    ids = llm.tokenizer.encode("one", add_special_tokens=True)
    (expected,) = llm.generate("one", params=GREEDY)
    assert expected.prompt_token_ids == ids and expected.text == llm.tokenizer.decode(expected.token_ids)
    asked: list[Callable[[], list[Completion]]] = [
        lambda: llm.generate(["one"], params=GREEDY),
        lambda: llm.generate(prompt_token_ids=ids, params=GREEDY),
        lambda: llm.generate(prompt_token_ids=[ids], params=[GREEDY]),
        lambda: llm.generate(prompt_token_ids=np.array(ids), params=GREEDY),  # type: ignore[arg-type]
        lambda: llm.generate(prompt_token_ids=np.array([ids]), params=GREEDY),  # type: ignore[arg-type]
        lambda: llm.generate(prompt_token_ids=[np.array(ids)], params=GREEDY),  # type: ignore[list-item]
    ]
    for ask in asked:
        (found,) = ask()
        assert (found.text, found.token_ids, found.prompt_token_ids) == (expected.text, expected.token_ids, ids)
        assert {type(i) for i in found.prompt_token_ids} == {int}


def test_answers_come_in_the_order_of_prompts_and_choices(llm: LLM, prompts: Prompts) -> None:
    each = [SamplingParams(seed=i, n=1 + i % 3, max_tokens=9 - 2 * i) for i in range(len(prompts))]
    found = llm.generate(prompt_token_ids=prompts, params=each)
    asked = list(zip(prompts, each, strict=True))
    assert [(c.prompt_token_ids, c.index) for c in found] == [(p, i) for p, params in asked for i in range(params.n)]
    alone = [c for p, params in asked for c in llm.generate(prompt_token_ids=p, params=params)]
    assert [c.token_ids for c in found] == [c.token_ids for c in alone]
    assert [len(c.token_ids) for c in found] == [params.max_tokens for params in each for _ in range(params.n)]
    assert len({tuple(c.token_ids) for c in found}) == len(found)


def test_a_seed_makes_it_repeatable_and_none_does_not(llm: LLM) -> None:
    drawn = SamplingParams(max_tokens=12)
    assert llm.generate("a", params=drawn)[0].token_ids != llm.generate("a", params=drawn)[0].token_ids
    seeded = SamplingParams(max_tokens=12, seed=5)
    assert llm.generate("a", params=seeded)[0].token_ids == llm.generate("a", params=seeded)[0].token_ids


def test_without_params_it_draws_until_the_context_is_full(llm: LLM, prompts: Prompts) -> None:
    (found,) = llm.generate(prompt_token_ids=prompts[0])
    if found.finish_reason == "stop":  # by chance the model has drawn its end
        assert found.token_ids[-1] in {*llm.assembly.spec.eos_ids, *llm.tokenizer.eos_ids}
    else:
        assert found.finish_reason == "length" and len(found.prompt_token_ids + found.token_ids) == CONTEXT
    assert found.logprobs is None and found.stop_reason is None


def test_how_an_answer_ended(llm: LLM) -> None:
    (free,) = llm.generate("a", params=GREEDY)
    stop = free.text[2:4]
    assert free.text.index(stop) == 2
    (found,) = llm.generate("a", params=SamplingParams(temperature=0, max_tokens=6, stop=(stop,)))
    assert (found.text, found.finish_reason, found.stop_reason) == (free.text[:2], "stop", stop)
    assert found.token_ids == free.token_ids[:4]
    (found,) = llm.generate("a", params=SamplingParams(temperature=0, stop_token_ids=(free.token_ids[1],)))
    assert (found.token_ids, found.stop_reason) == (free.token_ids[:2], free.token_ids[1])


def test_a_prompt_that_was_seen_comes_from_the_cache(llm: LLM) -> None:
    prompt = [5] * 100
    counts = [llm.generate(prompt_token_ids=prompt, params=GREEDY)[0].cached_tokens for _ in range(2)]
    assert counts == [0, 96]


def test_no_prompts_no_answers(llm: LLM) -> None:
    assert llm.generate([]) == []


@pytest.mark.parametrize(
    ("asked", "param", "words"),
    [
        ({}, "prompts", "give either prompts or prompt_token_ids"),
        ({"prompts": "a", "prompt_token_ids": [1]}, "prompts", "give either"),
        ({"prompts": ""}, "prompt", "the prompt is empty"),
        ({"prompts": ["a", ""]}, "prompt", "the prompt is empty"),
        ({"prompt_token_ids": []}, "prompt", "the prompt is empty"),
        ({"prompt_token_ids": [[1], []]}, "prompt", "the prompt is empty"),
        ({"prompt_token_ids": [1, [2]]}, "prompt", "flat list"),
        ({"prompt_token_ids": "text"}, "prompt", "flat list of integer token ids"),
        ({"prompt_token_ids": [1.5]}, "prompt", "integer"),
        ({"prompt_token_ids": [10**6]}, "prompt", "token id 1000000, but ids are 0 to"),
        ({"prompts": [1, 2]}, None, "must be a string, not int"),
        ({"prompts": "\ud800"}, None, "valid Unicode"),
        ({"prompts": ["a", "b"], "params": [GREEDY]}, "params", "1 params were given for 2 prompts"),
        ({"prompts": "a", "params": {"temperature": 0}}, "params", "must be SamplingParams"),
        ({"prompts": "a", "params": SamplingParams(logit_bias={10**6: 1.0})}, "logit_bias", "token id 1000000"),
    ],
)
def test_wrong_arguments_are_refused_by_name(llm: LLM, asked: dict[str, Any], param: str | None, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words) as caught:
        llm.generate(**asked)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("top_k", 1.5), ("seed", 0.5), ("max_tokens", 2.0), ("min_tokens", 1.5), ("logprobs", 0.5), ("n", 1.5),
        ("stop", "END"), ("stop", (1,)), ("temperature", "hot"),
    ],
)  # fmt: skip
def test_values_of_another_kind_are_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(InvalidRequest, match=field) as caught:
        SamplingParams(**{field: value})  # type: ignore[arg-type]
    assert caught.value.param == field


def test_a_refused_prompt_takes_the_others_with_it(llm: LLM, prompts: Prompts) -> None:
    before = llm.assembly.engine.stats().generated_tokens
    with pytest.raises(ContextTooLong, match="600 tokens"):
        llm.generate(prompt_token_ids=[*prompts, [1] * 600], params=SamplingParams(ignore_eos=True, n=4))
    until_idle(llm)
    assert llm.assembly.engine.stats().generated_tokens - before < 16 * (CONTEXT - 50)  # they were not completed
    assert llm.generate("a", params=GREEDY)[0].finish_reason == "length"


# -- chat ------------------------------------------------------------------------------


def test_a_chat_is_the_rendered_prompt_completed(llm: LLM) -> None:
    prompt = llm.render(HELLO)
    assert prompt == "[gMASK]<sop><|user|>Hi<|assistant|><think>"
    found = llm.chat(HELLO)
    assert found.text == f"{REASONING}</think>{CONTENT}{CALL}"  # as the model wrote it
    assert found.finish_reason == "stop" and found.stop_reason == llm.tokenizer.id_of("<|observation|>")
    assert found.prompt_token_ids == llm.tokenizer.encode(prompt)
    (same,) = llm.generate(prompt_token_ids=found.prompt_token_ids)
    assert same.text == found.text


def test_what_the_template_knows_can_be_named(llm: LLM) -> None:
    assert llm.render(HELLO, enable_thinking=False).endswith("<|assistant|></think>")
    assert llm.chat(HELLO, GREEDY, enable_thinking=False).prompt_token_ids == llm.tokenizer.encode(
        llm.render(HELLO, enable_thinking=False)
    )
    tools = [{"type": "function", "function": {"name": "get_weather"}}]
    assert '{"name": "get_weather"}' in llm.render(HELLO, tools)
    assert llm.chat(HELLO, GREEDY, tools).prompt_token_ids == llm.tokenizer.encode(llm.render(HELLO, tools))


def test_the_prefix_of_every_text_stands_once(checkpoint: Path, tmp_path: Path) -> None:
    """The tokenizer's own for a plain prompt, the template's for a chat."""
    prefixing = tokenizer_json("glm45", adds_prefix=True, first=FIRST_SPECIAL)
    changes: dict[str, Content] = {"tokenizer.json": {"post_processor": prefixing["post_processor"]}}
    with open_llm(altered(checkpoint, tmp_path / "m", changes)) as llm:
        prefix = [llm.tokenizer.id_of("[gMASK]"), llm.tokenizer.id_of("<sop>")]
        for found in (*llm.generate("one", params=GREEDY), llm.chat(HELLO, GREEDY)):
            assert found.prompt_token_ids[:2] == prefix and not set(prefix) & set(found.prompt_token_ids[2:])


def test_wrong_chats_are_refused(llm: LLM) -> None:
    with pytest.raises(InvalidRequest, match="chat gives one answer; use generate for n > 1"):
        llm.chat(HELLO, SamplingParams(n=2))
    for messages in ("Hi", [{"content": "Hi"}], [None]):
        with pytest.raises(InvalidRequest, match=r"messages\[0\] is not a message"):
            llm.chat(messages)  # type: ignore[arg-type]
    with pytest.raises(ContextTooLong):
        llm.chat([{"role": "user", "content": "Hi" * CONTEXT}])


def test_a_model_without_a_template_completes_and_does_not_chat(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(vars(llm.assembly), "template", None)
    for ask in (llm.chat, llm.render):
        with pytest.raises(TemplateError, match="tiny has no chat template: use generate with plain prompts"):
            ask(HELLO)
    assert llm.generate("a", params=GREEDY)


# -- logits ----------------------------------------------------------------------------


def test_logits_agree_with_the_logprobs_of_generation(llm: LLM, prompts: Prompts) -> None:
    """Bit for bit: results do not depend on company, nor on prefill or decoding."""
    params = SamplingParams(seed=3, max_tokens=20, logprobs=2)
    for found in llm.generate(prompt_token_ids=prompts, params=params):
        logits = llm.logits(found.prompt_token_ids + found.token_ids[:-1])
        assert logits.shape == (len(found.prompt_token_ids) + 19, llm.spec.vocab_size) and logits.dtype == np.float32
        rows = logits[len(found.prompt_token_ids) - 1 :, : llm.tokenizer.vocab_size]
        assert found.logprobs == [
            token_logprob(row, token, 2) for row, token in zip(rows, found.token_ids, strict=True)
        ]


def test_logits_refuse_what_generate_refuses(llm: LLM) -> None:
    assert llm.logits([1] * CONTEXT).shape[0] == CONTEXT
    with pytest.raises(ContextTooLong, match=f"a prompt of {CONTEXT + 1} tokens does not fit"):
        llm.logits([1] * (CONTEXT + 1))
    for wrong in ([], [[1, 2]], [-1]):
        with pytest.raises(InvalidRequest):
            llm.logits(wrong)  # type: ignore[arg-type]


# -- life ------------------------------------------------------------------------------


def test_a_closed_model_says_so(checkpoint: Path) -> None:
    with open_llm(checkpoint) as llm:
        assert llm.generate("a", params=GREEDY)
    llm.close()
    for ask in (lambda: llm.generate("a"), lambda: llm.chat(HELLO), lambda: llm.logits([1])):
        with pytest.raises(EngineDead, match="shut down"):
            ask()


def test_an_error_inside_the_with_block_closes_it_too(checkpoint: Path) -> None:
    with pytest.raises(ZeroDivisionError), open_llm(checkpoint) as llm:
        1 / 0  # noqa: B018
    assert not llm.assembly.engine.healthy


def test_a_forgotten_model_stops_its_engine(checkpoint: Path) -> None:
    llm = open_llm(checkpoint)
    engine = llm.assembly.engine
    assert engine.healthy
    del llm
    gc.collect()
    assert not engine.healthy


def test_a_model_that_does_not_load_is_an_error_and_nothing_else(checkpoint: Path) -> None:
    for wrong in ({"kv_memory": "lots"}, {"precision": "int5"}, {"hub": "elsewhere"}, {"max_batch": 0}, {"threads": 0}):
        with pytest.raises(UsageError):
            open_llm(checkpoint, **wrong)


def test_without_a_tokenizer_it_works_with_token_ids(checkpoint: Path, tmp_path: Path, llm: LLM) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).symlink_to(checkpoint / name)
    with open_llm(tmp_path) as bare:
        (found,) = bare.generate(prompt_token_ids=[1, 2, 3], params=GREEDY)
        assert (
            found.text == "" and found.token_ids == llm.generate(prompt_token_ids=[1, 2, 3], params=GREEDY)[0].token_ids
        )
        asked: list[Callable[[], object]] = [
            lambda: bare.generate("a"),
            lambda: bare.chat(HELLO),
            lambda: bare.tokenizer,
            lambda: bare.generate(prompt_token_ids=[1], params=SamplingParams(stop=("a",))),  # could never be found
        ]
        for ask in asked:
            with pytest.raises(TokenizerError, match="has no tokenizer: give token ids"):
                ask()
