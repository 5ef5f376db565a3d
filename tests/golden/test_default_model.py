"""SmolLM2's real weights, run as glm and as glm4_moe, against transformers' Llama in float32."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.golden import reexpress

from gallium import LLM, SamplingParams

torch = pytest.importorskip("torch")
PROMPT = "What is gravity?"
TOKENS = 64
GREEDY = SamplingParams(temperature=0.0, max_tokens=TOKENS)


@pytest.fixture(scope="module")
def glm() -> Iterator[LLM]:
    with LLM(precision="float32") as llm:
        yield llm


@pytest.fixture(scope="module")
def prompt_ids(glm: LLM) -> list[int]:
    return glm.tokenizer.encode(glm.render([{"role": "user", "content": PROMPT}]))


@pytest.fixture(scope="module")
def llama() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(LlamaConfig(**reexpress.COMMON)).eval()
    state = {name: torch.from_numpy(value.copy()) for name, value in reexpress.llama_state().items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}
    return model


@pytest.fixture(scope="module")
def expected_ids(llama: Any, prompt_ids: list[int]) -> list[int]:
    with torch.no_grad():
        out = llama.generate(torch.tensor([prompt_ids]), max_new_tokens=TOKENS, do_sample=False)
    return [int(i) for i in out[0, len(prompt_ids) :]]


def logits_of(model: Any, ids: list[int]) -> NDArray[np.float32]:
    with torch.no_grad():
        return np.asarray(model(torch.tensor([ids])).logits[0].numpy(), np.float32)


def test_as_glm_the_text_is_that_of_transformers(glm: LLM, prompt_ids: list[int], expected_ids: list[int]) -> None:
    assert glm.spec.arch == "glm"
    (answer,) = glm.generate(prompt_token_ids=[prompt_ids], params=GREEDY)
    assert answer.token_ids == expected_ids
    assert "force" in answer.text


def test_as_glm_the_logits_are_those_of_transformers(glm: LLM, llama: Any, prompt_ids: list[int]) -> None:
    # measured between two float32 implementations of this model: 6.4e-5 at logits up to 37
    np.testing.assert_allclose(glm.logits(prompt_ids), logits_of(llama, prompt_ids), atol=4e-4, rtol=0)


def test_as_glm4_moe_the_text_is_the_same(
    glm: LLM, tmp_path: Path, prompt_ids: list[int], expected_ids: list[int]
) -> None:
    folder = reexpress.write_glm4_moe(tmp_path / "moe")
    glm.tokenizer.save(folder)
    with LLM(str(folder), precision="float32") as llm:
        assert llm.spec.arch == "glm4_moe"
        (answer,) = llm.generate(prompt_token_ids=[prompt_ids], params=GREEDY)
    assert answer.token_ids == expected_ids


@pytest.mark.parametrize(
    ("precision", "mean_kl", "agreement"), [("bfloat16", 0.001, 0.97), ("int8", 0.01, 0.9), ("int4", 0.01, 0.9)]
)
def test_reduced_precision_stays_near_float32(glm: LLM, precision: str, mean_kl: float, agreement: float) -> None:
    text = (Path(__file__).parent / "real_text.txt").read_text(encoding="utf-8")
    ids = glm.tokenizer.encode(text)[:384]
    exact = glm.logits(ids).astype(np.float64)
    with LLM(precision=precision) as llm:
        rough = llm.logits(ids).astype(np.float64)
    log_p, log_q = log_softmax(exact), log_softmax(rough)
    kl = float((np.exp(log_p) * (log_p - log_q)).sum(-1).mean())
    same = float((exact.argmax(-1) == rough.argmax(-1)).mean())
    assert kl < mean_kl and same > agreement, f"{precision}: KL {kl:.4f}, top-1 agreement {same:.3f}"


def log_softmax(x: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = x - x.max(-1, keepdims=True)
    out: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return out
