"""Quantised folders of the default model's real weights, as msModelSlim would release them, against the float model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.golden import reexpress
from tools import make_modelslim
from tools.make_modelslim import Recipe
from tools.modelslim.calibration import Seen, calibrate

from gallium import LLM, SamplingParams
from gallium.checkpoints import Checkpoint, open_checkpoint, resolve_model

TEXT = (Path(__file__).parent / "real_text.txt").read_text(encoding="utf-8")
CALIBRATION = (Path(__file__).parents[2] / "LICENSE").read_text(encoding="utf-8")  # another text than is measured on


Make = Callable[..., Path]


@pytest.fixture(scope="module")
def default() -> Checkpoint:
    return open_checkpoint(resolve_model(None).path)


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Make]:
    """The folder of a recipe. Each is made once, and each model calibrated once: every recipe would see the same."""
    seen: dict[Path, Seen] = {}

    def calibrated(source: Checkpoint, ids: list[int]) -> Seen:
        if source.path not in seen:
            seen[source.path] = calibrate(source, ids)
        return deepcopy(seen[source.path])  # smoothing changes it

    @cache
    def made(path: Path, recipe: Recipe, text: str) -> Path:
        out = tmp_path_factory.mktemp("modelslim") / "out"
        return make_modelslim.make(open_checkpoint(path), out, recipe, text)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(make_modelslim, "calibrate", calibrated)
        yield lambda source, recipe, text=CALIBRATION: made(source.path, recipe, text)


@pytest.fixture(scope="module")
def float32() -> Iterator[LLM]:
    with LLM(precision="float32") as llm:
        yield llm


@pytest.fixture(scope="module")
def ids(float32: LLM) -> list[int]:
    return float32.tokenizer.encode(TEXT)[:384]


@pytest.fixture(scope="module")
def exact(float32: LLM, ids: list[int]) -> NDArray[np.float64]:
    return log_softmax(float32.logits(ids))


@pytest.fixture(scope="module")
def moe(float32: LLM, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = reexpress.write_glm4_moe(tmp_path_factory.mktemp("moe") / "float")
    float32.tokenizer.save(folder)
    return open_checkpoint(folder)


def log_softmax(x: NDArray[np.float32]) -> NDArray[np.float64]:
    shifted = x.astype(np.float64) - x.max(-1, keepdims=True)
    out: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return out


def distance(folder: Path, ids: list[int], exact: NDArray[np.float64], precision: str = "auto") -> tuple[float, float]:
    """Mean KL divergence per token from the float model, and the share of equal first choices."""
    with LLM(str(folder), precision=precision) as llm:
        rough = log_softmax(llm.logits(ids))
    kl = float((np.exp(exact) * (exact - rough)).sum(-1).mean())
    return kl, float((exact.argmax(-1) == rough.argmax(-1)).mean())


# Measured at the AVX2 level: 0.036, 0.014, 0.013, 0.217 and 0.189 (docs/architecture.md).
CASES = {
    "w8a8-dynamic": (Recipe("w8a8-dynamic"), 0.06, 0.85),
    "w8a8-dynamic-c8": (Recipe("w8a8-dynamic", kv=True, smooth=True), 0.03, 0.88),
    "w8a8": (Recipe("w8a8", smooth=True, keep=("down_proj",)), 0.03, 0.88),
    "w4a8": (Recipe("w4a8", keep=("down_proj",)), 0.35, 0.65),
    "w4a8-groups": (Recipe("w4a8", group_size=64, smooth=True), 0.3, 0.68),
}


@pytest.mark.parametrize("case", CASES)
def test_the_default_model(
    default: Checkpoint, make: Make, ids: list[int], exact: NDArray[np.float64], case: str
) -> None:
    recipe, most, least = CASES[case]
    kl, same = distance(make(default, recipe), ids, exact)
    assert kl < most and same > least, f"{case}: KL {kl:.4f}, top-1 agreement {same:.3f}"


@pytest.mark.parametrize(("kind", "most", "least"), [("w8a8-dynamic", 0.06, 0.85), ("w4a8", 0.35, 0.65)])
def test_as_a_mixture_of_experts(
    moe: Checkpoint, make: Make, ids: list[int], exact: NDArray[np.float64], kind: str, most: float, least: float
) -> None:
    kl, same = distance(make(moe, Recipe(kind)), ids, exact)
    assert kl < most and same > least, f"{kind}: KL {kl:.4f}, top-1 agreement {same:.3f}"


def test_another_precision_decodes_the_integers(
    default: Checkpoint, make: Make, ids: list[int], exact: NDArray[np.float64]
) -> None:
    """Without rounded activations the result is nearer: only the weights are those of 8 bits."""
    folder = make(default, Recipe("w8a8-dynamic"))
    assert distance(folder, ids, exact, "bfloat16")[0] < 0.01


def test_it_talks(default: Checkpoint, make: Make) -> None:
    with LLM(str(make(default, CASES["w8a8-dynamic-c8"][0]))) as llm:
        assert "int8" in llm.assembly.summary
        question = [{"role": "user", "content": "What is gravity?"}]
        answer = llm.chat(question, SamplingParams(temperature=0.0, max_tokens=48))
    # Which of these words it says is up to the last bits of the level.
    assert "Gravity" in answer.text and any(word in answer.text for word in ("force", "mass", "spacetime"))


def test_results_do_not_depend_on_company(moe: Checkpoint, make: Make, ids: list[int]) -> None:
    """Integers of 4 and 8 bits, experts, and keys and values on a grid: alone, together, and in chunks."""
    folder = make(moe, Recipe("w4a8", kv=True), CALIBRATION[:2000])  # how good the grid is plays no part here
    prompts, greedy = [ids[:70], ids[20:33], ids[50:51]], SamplingParams(temperature=0.0, max_tokens=12)
    with LLM(str(folder), max_step_tokens=48) as llm:
        together = [one.token_ids for one in llm.generate(prompt_token_ids=prompts, params=greedy)]
    with LLM(str(folder), prefix_cache=False) as llm:
        alone = [llm.generate(prompt_token_ids=[prompt], params=greedy)[0].token_ids for prompt in prompts]
    assert together == alone
