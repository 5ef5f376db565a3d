"""A random model over real ranks, which torch and gloo join: the tokens of one process, and life after a loss."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from safetensors.numpy import save_file
from tests.models.memory_checkpoint import random_checkpoint
from tests.models.small_specs import EVEN_MOE

from gallium import LLM
from gallium.errors import BackendError, EngineDead, UsageError
from gallium.models.config import read_spec
from gallium.types import Completion, SamplingParams

pytest.importorskip("torch")
PROMPTS = [[7, 8, 9], list(range(20, 61)), [300, 2, 301], list(range(20, 55)), [9] * 17, [1]]
GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
DRAWN = SamplingParams(temperature=0.8, seed=5, max_tokens=6, ignore_eos=True, n=2, logprobs=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random glm4_moe."""
    config = EVEN_MOE | {"model_type": "glm4_moe", "use_qk_norm": True}
    folder = tmp_path_factory.mktemp("random")
    (folder / "config.json").write_text(json.dumps(config))
    save_file(random_checkpoint(read_spec(config)).tensors, folder / "model.safetensors")
    return folder


def load(folder: Path, **settings: Any) -> LLM:
    """Small steps, so that prompts come in chunks."""
    return LLM(str(folder), backend="torch", kv_memory="8MiB", threads=1, max_step_tokens=16, **settings)


@pytest.fixture(scope="module")
def expected(folder: Path) -> list[list[int]]:
    with load(folder) as llm:
        return tokens(ask(llm))


def ask(llm: LLM) -> list[Completion]:
    """Prompts that share beginnings, greedy and drawn."""
    return llm.generate(prompt_token_ids=PROMPTS, params=[GREEDY] * 5 + [DRAWN])


def tokens(answers: list[Completion]) -> list[list[int]]:
    return [answer.token_ids for answer in answers]


def processes() -> list[psutil.Process]:
    """The ranks that run."""
    return [child for child in psutil.Process().children() if "gallium.engine.rank" in child.cmdline()]


@pytest.fixture(scope="module")
def four(folder: Path) -> Iterator[LLM]:
    """Two groups of two ranks, with the experts over all four."""
    with load(folder, tp=2, ep=4, graphs=False) as llm:
        yield llm


def test_two_ranks_side_by_side(folder: Path, expected: list[list[int]]) -> None:
    with load(folder, tp=2) as llm:
        assert tokens(ask(llm)) == expected
        assert ", on torch, 2 ranks (tp 2, dp 1, ep 1); " in llm.assembly.summary
        assert llm.logits([1, 2, 3]).shape == (3, llm.spec.vocab_size)


def test_two_groups_and_experts_over_four(four: LLM, expected: list[list[int]]) -> None:
    answers = ask(four)
    assert tokens(answers) == expected
    assert all(answer.logprobs for answer in answers[-2:])
    assert tokens(ask(four)) == expected  # from the prefix cache
    assert four.assembly.engine.stats().prefix_hit_tokens > 0


def test_the_loss_of_one_of_four(four: LLM, expected: list[list[int]]) -> None:
    ranks = processes()
    assert len(ranks) == 4

    def strike(delta: object) -> None:
        os.kill(max(rank.pid for rank in ranks), signal.SIGKILL)

    engine = four.assembly.engine
    engine.submit([1, 2], GREEDY, strike)
    with pytest.raises(EngineDead, match=r"rank \d ended with signal 9 \(SIGKILL\)"):
        four.generate(prompt_token_ids=PROMPTS, params=SamplingParams(max_tokens=100, ignore_eos=True))
    assert tokens(ask(four)) == expected
    assert engine.stats().restarts == 1 and engine.healthy
    assert not any(rank.is_running() for rank in ranks)


def test_what_a_rank_or_its_place_refuses(folder: Path) -> None:
    before = processes()
    with pytest.raises(BackendError, match=r"rank \d: backend 'torch' cannot run this glm4_moe model in int4"):
        load(folder, tp=2, precision="int4")
    with pytest.raises(UsageError, match="--tp 3 does not divide"):
        load(folder, tp=3)
    with pytest.raises(BackendError, match=r"rank \d: .*\bcpu\b.*--backend torch"):
        LLM(str(folder), backend="cpu", tp=2)
    assert processes() == before


def test_the_engines_own_process_does_without_torch(folder: Path) -> None:
    program = (
        "import sys; from gallium import LLM, SamplingParams\n"
        f"with LLM({str(folder)!r}, backend='torch', tp=2, kv_memory='8MiB') as llm:\n"
        "    llm.generate(prompt_token_ids=[1], params=SamplingParams(max_tokens=2))\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
