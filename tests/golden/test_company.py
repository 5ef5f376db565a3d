"""Results don't depend on company: the default model's tokens and log-probabilities, bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from gallium import LLM, Completion, SamplingParams

LENGTHS = (1, 2, 7, 16, 31, 32, 33, 40, 64, 65, 90, 128, 5, 19, 77, 100)
NEW = 20
Results = list[Completion]


def prompts() -> list[list[int]]:
    """Sixteen prompts of mixed lengths; two of them share a beginning with another."""
    made = [[(7 * i + 31 * j * j + 100) % 40000 + 50 for j in range(n)] for i, n in enumerate(LENGTHS)]
    made[12] = [*made[11][:70], 501, 502]
    made[13] = [*made[11][:96], 503]
    return made


def params() -> list[SamplingParams]:
    """Greedy and seeded, with and without penalties, all asking for log-probabilities."""
    greedy = SamplingParams(temperature=0, max_tokens=NEW, ignore_eos=True, logprobs=2)
    kinds = (
        greedy,
        replace(greedy, temperature=1.0, seed=7),
        replace(greedy, temperature=0.7, top_k=40, top_p=0.9, seed=8),
        replace(greedy, temperature=1.2, min_p=0.02, repetition_penalty=1.2, presence_penalty=0.5, seed=9),
    )
    return [kinds[i % len(kinds)] for i in range(len(LENGTHS))]


def essence(completion: Completion) -> tuple[Any, ...]:
    return completion.token_ids, completion.finish_reason, completion.logprobs


@pytest.fixture(scope="module", params=["int4", "bfloat16"])
def precision(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def load(precision: str) -> Callable[..., LLM]:
    """The default model in one precision, with a small cache of its own."""

    def make(**settings: Any) -> LLM:
        return LLM(precision=precision, **{"kv_memory": "256MiB", **settings})  # type: ignore[arg-type]

    return make


@pytest.fixture(scope="module")
def alone(load: Callable[..., LLM]) -> Iterator[list[tuple[Any, ...]]]:
    """Each request by itself, with nothing cached."""
    with load(prefix_cache=False) as llm:
        yield [
            essence(llm.generate(prompt_token_ids=[ids], params=how)[0])
            for ids, how in zip(prompts(), params(), strict=True)
        ]


def test_in_a_batch_of_sixteen(load: Callable[..., LLM], alone: list[tuple[Any, ...]]) -> None:
    with load(prefix_cache=False) as llm:
        together = llm.generate(prompt_token_ids=prompts(), params=params())
    assert [essence(c) for c in together] == alone


def test_with_chunked_prefill(load: Callable[..., LLM], alone: list[tuple[Any, ...]]) -> None:
    with load(prefix_cache=False, max_step_tokens=13) as llm:
        chunked = llm.generate(prompt_token_ids=prompts(), params=params())
    assert [essence(c) for c in chunked] == alone


def test_after_preemption(load: Callable[..., LLM], alone: list[tuple[Any, ...]]) -> None:
    with load(block_size=16) as llm:
        block = llm.assembly.kv.num_bytes // llm.assembly.kv.num_blocks
    with load(prefix_cache=False, block_size=16, kv_memory=16 * block, max_context=256) as llm:
        squeezed = llm.generate(prompt_token_ids=prompts(), params=params())
        assert llm.assembly.engine.stats().preemptions > 0
    assert [essence(c) for c in squeezed] == alone


def test_from_the_prefix_cache(load: Callable[..., LLM], alone: list[tuple[Any, ...]]) -> None:
    with load() as llm:
        first = llm.generate(prompt_token_ids=prompts(), params=params())
        again = llm.generate(prompt_token_ids=prompts(), params=params())
    assert [essence(c) for c in first] == alone
    assert [essence(c) for c in again] == alone
    assert sum(c.cached_tokens for c in again) > sum(LENGTHS) // 2
