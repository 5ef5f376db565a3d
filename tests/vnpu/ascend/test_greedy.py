"""Greedy tokens on the virtual NPU in float32 are those of the CPU: batched, chunked, cached, with graphs or not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.golden import reexpress
from tests.vnpu.ascend.engines import TINY, engine, greedy, prompts, save_tiny

from gallium import LLM

VOCAB, TOKENS = 211, 8
QUESTION = [{"role": "user", "content": "What is gravity?"}]


@pytest.fixture(scope="module", params=TINY)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(request.param, tmp_path_factory.mktemp("tiny") / request.param)


@pytest.fixture(scope="module")
def cpu(folder: Path) -> Iterator[LLM]:
    with engine(folder, "cpu", precision="float32") as llm:
        yield llm


@pytest.mark.parametrize("graphs", [True, False])
def test_batches_from_1_to_16(cpu: LLM, folder: Path, graphs: bool) -> None:
    with engine(folder, "ascend", precision="float32", graphs=graphs) as llm:
        assert llm.assembly.emulated
        for count in (1, 3, 16):
            batch = prompts(count, VOCAB)
            assert greedy(llm, batch, TOKENS) == greedy(cpu, batch, TOKENS)


def test_prompts_in_chunks_and_from_the_cache(cpu: LLM, folder: Path) -> None:
    common = prompts(1, VOCAB, 40)[0] * 8
    batch = [common[:150], [*common[:140], 7, 8], common[:31]]
    expected = greedy(cpu, batch, TOKENS)
    with engine(folder, "ascend", precision="float32", max_step_tokens=37, block_size=16) as llm:
        assert greedy(llm, batch, TOKENS) == expected
        assert greedy(llm, batch, TOKENS) == expected  # their beginnings are in the cache now
        answers = llm.generate(prompt_token_ids=batch)
        assert answers[0].cached_tokens >= 128


@pytest.mark.parametrize("arch", ["glm", "glm4_moe"])
def test_the_default_models_real_weights(arch: str, tmp_path: Path) -> None:
    with engine(None, "cpu", precision="float32") as llm:
        ids = llm.tokenizer.encode(llm.render(QUESTION))
        expected = greedy(llm, [ids, ids[:20]], TOKENS)
    folder = reexpress.write_glm4_moe(tmp_path / "moe") if arch == "glm4_moe" else None
    with engine(folder, "ascend", precision="float32") as llm:
        assert llm.spec.arch == arch
        assert greedy(llm, [ids, ids[:20]], TOKENS) == expected
