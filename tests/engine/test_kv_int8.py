"""An int8 KV cache gives one answer in every kind of company: batches, chunks, prefix cache, drafts, no programs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gallium import LLM, Completion, SamplingParams
from gallium.engine.step_times import StepTimes

GREEDY = SamplingParams(temperature=0, max_tokens=16, ignore_eos=True, logprobs=2)
DRAWN = replace(GREEDY, temperature=0.8, top_p=0.9, seed=3, repetition_penalty=1.1)
PROMPTS = [[7, 8, 9] * 22, [7, 8, 9] * 22 + [4], list(range(20, 61)), [1]]
WAYS: dict[str, dict[str, Any]] = {
    "together": {},
    "in chunks": {"max_step_tokens": 13},
    "op by op": {"graphs": False},
    "drafted": {"speculate": "ngram"},
    "drafted, in chunks, op by op": {"speculate": "ngram", "max_step_tokens": 13, "graphs": False},
}


def load(folder: Path, **settings: Any) -> LLM:
    return LLM(str(folder), backend="cpu", kv_precision="int8", kv_memory="8MiB", max_context=512, **settings)


def ask(llm: LLM, prompts: list[list[int]]) -> list[Completion]:
    found = llm.generate(prompt_token_ids=prompts, params=[GREEDY, DRAWN, GREEDY, DRAWN][: len(prompts)])
    return [replace(one, cached_tokens=0) for one in found]


@pytest.fixture(scope="module")
def alone(checkpoint: Path) -> list[Completion]:
    with load(checkpoint, prefix_cache=False) as llm:
        each = zip(PROMPTS, [GREEDY, DRAWN, GREEDY, DRAWN], strict=True)
        return [llm.generate(prompt_token_ids=prompt, params=params)[0] for prompt, params in each]


@pytest.mark.parametrize("way", WAYS)
def test_answers_stay_the_same(
    way: str, checkpoint: Path, alone: list[Completion], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StepTimes, "observe", lambda self, width, seconds: None)  # a busy machine decides nothing
    with load(checkpoint, **WAYS[way]) as llm:
        assert ask(llm, PROMPTS) == alone
        assert ask(llm, PROMPTS) == alone  # from the prefix cache
        stats = llm.assembly.engine.stats()
    assert stats.prefix_hit_tokens > 0
    assert (stats.drafted_tokens > 0) == ("speculate" in WAYS[way])
