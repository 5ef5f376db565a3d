"""A random model over virtual NPUs that HCCL joins: the tokens of the CPU, however it is cut."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.numpy import save_file
from tests.models.memory_checkpoint import random_checkpoint
from tests.models.small_specs import EVEN_MOE
from tests.vnpu.ascend.engines import engine, greedy, prompts

from gallium import LLM
from gallium.models.config import read_spec

TOKENS = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random glm4_moe with two heads of keys, so that four ranks share each."""
    config = EVEN_MOE | {"model_type": "glm4_moe", "use_qk_norm": True}
    folder = tmp_path_factory.mktemp("random")
    (folder / "config.json").write_text(json.dumps(config))
    save_file(random_checkpoint(read_spec(config)).tensors, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def cpu(folder: Path) -> Iterator[LLM]:
    with engine(folder, "cpu", precision="float32") as llm:
        yield llm


@pytest.mark.parametrize("cut", [{"tp": 2}, {"tp": 4}, {"ep": 2}, {"tp": 2, "ep": 4}], ids=str)
def test_greedy_tokens(cpu: LLM, folder: Path, monkeypatch: pytest.MonkeyPatch, cut: dict[str, int]) -> None:
    monkeypatch.setenv("GALLIUM_VNPU", "1")  # for the ranks, as --virtual sets them
    monkeypatch.setenv("GALLIUM_VNPU_DEVICES", "4")
    monkeypatch.setenv("GALLIUM_VNPU_BANNER_SHOWN", "1")
    batch = prompts(6, cpu.spec.vocab_size, 40)
    with engine(folder, "ascend", precision="float32", threads=1, max_step_tokens=16, **cut) as llm:
        assert f"ascend, EMULATED, {max(cut.values())} ranks" in llm.assembly.summary
        assert greedy(llm, batch, TOKENS) == greedy(cpu, batch, TOKENS)
