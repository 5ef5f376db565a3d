"""The default model with drafts and without: the same tokens, greedy and sampled, alone and together."""

from __future__ import annotations

import queue
from collections.abc import Sequence
from dataclasses import replace

import pytest

from gallium import LLM, SamplingParams
from gallium.checkpoints.resolve import default_model_path
from gallium.engine.step_times import StepTimes
from gallium.errors import GalliumError
from gallium.settings import PrecisionChoice
from gallium.types import Completion, Delta

TEXT = "The river rises in the hills and runs for ninety miles before it meets the sea. Three bridges cross it."
EDIT = f"Repeat this text exactly, but write hundred instead of ninety:\n\n{TEXT}\n\nAgain:\n\n{TEXT}"
GREEDY = SamplingParams(temperature=0, max_tokens=48)
ASKED = [
    (EDIT, GREEDY),
    (EDIT, SamplingParams(temperature=0.7, seed=1, max_tokens=48, n=2)),
    (EDIT, SamplingParams(temperature=0.5, seed=2, max_tokens=40, repetition_penalty=1.1, stop=("bridges",))),
    ("Count: 1, 2, 3, 1, 2, 3, 1, 2, 3, 1,", SamplingParams(temperature=1, top_p=0.9, seed=3, max_tokens=40)),
    (EDIT, replace(GREEDY, min_tokens=40, frequency_penalty=0.2, logprobs=2)),
]


@pytest.fixture(autouse=True)
def _no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine must not decide how much is drafted here."""
    monkeypatch.setattr(StepTimes, "observe", lambda self, width, seconds: None)


@pytest.fixture(scope="module", params=["int4", "bfloat16"])
def plain(request: pytest.FixtureRequest) -> tuple[PrecisionChoice, list[list[Completion]]]:
    with LLM(backend="cpu", precision=request.param, kv_memory="64MiB", prefix_cache=False) as llm:
        found = [llm.generate(rendered(llm, prompt), params=params) for prompt, params in ASKED]
        return request.param, [uncounted(several) for several in found]


def uncounted(completions: list[Completion]) -> list[Completion]:
    """Without what the prefix cache knew."""
    return [replace(one, cached_tokens=0) for one in completions]


def rendered(llm: LLM, prompt: str) -> str:
    return llm.render([{"role": "user", "content": prompt}])


def test_lookup(plain: tuple[PrecisionChoice, list[list[Completion]]]) -> None:
    precision, expected = plain
    with LLM(backend="cpu", precision=precision, kv_memory="64MiB", speculate="ngram") as llm:
        alone = [uncounted(llm.generate(rendered(llm, prompt), params=params)) for prompt, params in ASKED]
        prompts = [rendered(llm, prompt) for prompt, _ in ASKED]
        together = uncounted(llm.generate(prompts, params=[params for _, params in ASKED]))
        stats = llm.assembly.engine.stats()
    assert alone == expected
    assert together == [one for several in expected for one in several]
    assert 0 < stats.accepted_tokens < stats.drafted_tokens


def test_a_model_that_drafts(plain: tuple[PrecisionChoice, list[list[Completion]]]) -> None:
    """The same model in fewer bits: often right, not always."""
    precision, expected = plain
    draft: PrecisionChoice = "int8" if precision == "int4" else "int4"
    with LLM(
        backend="cpu",
        precision=precision,
        kv_memory="64MiB",
        speculate=str(default_model_path()),
        draft_precision=draft,
    ) as llm:
        llm.assembly.engine._loop._times.expected = lambda width: 10 + 0.1 * width  # type: ignore[method-assign]
        prompts = [rendered(llm, prompt) for prompt, _ in ASKED[1:4]]
        together = uncounted(llm.generate(prompts, params=[params for _, params in ASKED[1:4]]))
        drafts = llm.assembly.engine.stats().drafts["model"]
    assert together == [one for several in expected[1:4] for one in several]
    assert 0.3 * drafts["drafted"] < drafts["accepted"] < drafts["drafted"]


def test_a_prediction(plain: tuple[PrecisionChoice, list[list[Completion]]]) -> None:
    precision, expected = plain
    with LLM(backend="cpu", precision=precision, kv_memory="64MiB") as llm:
        prompt = llm.tokenizer.encode(rendered(llm, EDIT), add_special_tokens=True)
        for predicted in (TEXT, "Something else. " * 20, "\n" + TEXT[40:] + TEXT):
            tokens = predict(llm, prompt, llm.tokenizer.encode(predicted))
            assert tokens == expected[0][0].token_ids
        stats = llm.assembly.engine.stats()
    assert 0 < stats.accepted_tokens < stats.drafted_tokens


def predict(llm: LLM, prompt: Sequence[int], prediction: Sequence[int]) -> list[int]:
    arrived: queue.SimpleQueue[Delta | GalliumError] = queue.SimpleQueue()
    llm.assembly.engine.submit(prompt, GREEDY, arrived.put, prediction=prediction)
    tokens: list[int] = []
    while True:
        delta = arrived.get(timeout=60)
        assert isinstance(delta, Delta)
        tokens += delta.token_ids
        if delta.finish_reason is not None:
            return tokens
