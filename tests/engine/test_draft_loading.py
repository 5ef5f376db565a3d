"""`--speculate MODEL`: a real tiny model drafts for another, and one with other tokens is refused before it is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tests.altered_checkpoint import altered

from gallium import LLM, SamplingParams
from gallium.engine.step_times import StepTimes
from gallium.errors import UsageError
from gallium.settings import EngineSettings

PARAMS = [
    SamplingParams(temperature=0, max_tokens=30, ignore_eos=True),
    SamplingParams(seed=1, max_tokens=30, n=2, frequency_penalty=0.4, ignore_eos=True),
    SamplingParams(seed=2, max_tokens=30, logprobs=2, stop=("zz",)),
]


@pytest.fixture(scope="module")
def draft(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model's first layer, with a noisier head."""
    copy = altered(checkpoint, tmp_path_factory.mktemp("draft") / "m", {"config.json": {"num_hidden_layers": 1}})
    weights = {name: value for name, value in load_file(copy / "model.safetensors").items() if "layers.1." not in name}
    noise = np.random.default_rng(1).normal(0, 0.02, weights["lm_head.weight"].shape)
    weights["lm_head.weight"] = (weights["lm_head.weight"] + noise).astype(np.float32)
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    return copy


def test_a_real_model_drafts_and_changes_nothing(
    checkpoint: Path, draft: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StepTimes, "observe", lambda self, width, seconds: None)  # a busy machine must not decide
    how: dict[str, Any] = {"backend": "cpu", "kv_memory": "8MiB", "threads": 1}
    prompts = ["the city and the rain", "a b c d e f g", "<think>"]
    answers = []
    for more in ({}, {"speculate": str(draft), "draft_precision": "int8"}):
        with LLM(str(checkpoint), **how, **more) as llm:
            llm.assembly.engine._loop._times.expected = lambda width: 10 + 0.1 * width  # type: ignore[method-assign]
            answers.append(llm.generate(prompts, params=PARAMS))
            stats, known = llm.assembly.engine.stats(), llm.assembly
    assert answers[0] == answers[1]
    assert stats.drafts["model"]["drafted"] > 0
    assert known.draft is not None and (known.draft.label, known.draft.precision) == ("m", "int8")
    assert 0 < known.draft.kv_bytes < known.kv.num_bytes <= 8 << 20
    assert f"{known.draft.label} in int8" in known.summary


def changed_tokenizer(checkpoint: Path, place: Path, change: str) -> Path:
    """The checkpoint with another tokenizer."""
    tokenizer = json.loads((checkpoint / "tokenizer.json").read_text())
    model = tokenizer["model"]
    if change == "token":
        model["vocab"] = {{"a": "b", "b": "a"}.get(entry, entry): number for entry, number in model["vocab"].items()}
    elif change == "merge":
        model["merges"][0], model["merges"][1] = model["merges"][1], model["merges"][0]
    elif change == "merges":
        model["merges"] = model["merges"][:-1]
    elif change == "more":
        last = max(entry["id"] for entry in tokenizer["added_tokens"])
        tokenizer["added_tokens"].append(tokenizer["added_tokens"][0] | {"id": last + 1, "content": "<|new|>"})
    elif change == "pieces":  # the same tokens, cut in another way: text becomes other tokens, tokens mean the same
        tokenizer["pre_tokenizer"]["pretokenizers"] = tokenizer["pre_tokenizer"]["pretokenizers"][-1:]
    return altered(checkpoint, place, {"tokenizer.json": json.dumps(tokenizer)})


@pytest.mark.parametrize(("change", "said"), [
    ("token", "token 64 is 'a' in the one and 'b' in the other"), ("merge", "merge 0 of the tokenizer is"),
    ("merges", "merges and the other"), ("more", None), ("pieces", None), ("gone", "it has no tokenizer"),
])  # fmt: skip
def test_tokens_must_mean_the_same(checkpoint: Path, tmp_path: Path, change: str, said: str | None) -> None:
    if change == "gone":
        other = altered(checkpoint, tmp_path / "m", {"tokenizer.json": None, "tokenizer_config.json": None})
    else:
        other = changed_tokenizer(checkpoint, tmp_path / "m", change)
    how: dict[str, Any] = {"backend": "cpu", "kv_memory": "8MiB", "threads": 1, "speculate": str(other)}
    if said is None:
        with LLM(str(checkpoint), **how) as llm:
            assert llm.generate("the city", params=PARAMS[0])[0].token_ids
        return
    read: list[int] = []
    with pytest.raises(UsageError, match=f"cannot draft for this model: .*{said}"):
        LLM(str(checkpoint), **how, progress=lambda done, total: read.append(done))
    assert not read


@pytest.mark.parametrize(("named", "said"), [
    ({"speculate": "ngrams"}, "takes off, ngram or a model that drafts.*ngrams.*no file or folder"),
    ({"speculate": ""}, "is empty"),
    ({"draft_precision": "int4"}, "name one with --speculate MODEL"),
    ({"speculate": "ngram", "draft_precision": "int4"}, "name one with --speculate MODEL"),
    ({"speculate": "x", "draft_precision": "int5"}, "unknown precision"),
    ({"speculate": "x", "tp": 2}, "leave out --tp"),
])  # fmt: skip
def test_what_cannot_be_meant_is_refused(checkpoint: Path, named: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        LLM(str(checkpoint), backend="cpu", **named)


def test_settings_tell_the_model_that_drafts() -> None:
    assert [EngineSettings(speculate=s).draft_model for s in ("off", "ngram", "a/b")] == [None, None, "a/b"]
