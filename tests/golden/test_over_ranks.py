"""The default model's real weights over several processes: the greedy tokens of one process, in both expressions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.backends.torch.rank_processes import run_ranks
from tests.golden import reexpress
from tests.golden.rank_tokens import TOKENS, load
from tests.models.driving import greedy

torch = pytest.importorskip("torch")
PROMPTS = [
    [504, 8149, 1980, 314, 260, 2215, 282, 338, 4649, 28],  # arbitrary tokens, all prompts of one length
    [4093, 253, 1296, 563, 260, 3462, 282, 253, 1829, 30],
    [1780, 314, 8263, 47, 198, 24037, 314, 253, 3075, 338],
    [788, 1838, 4649, 281, 253, 2000, 3118, 28, 665, 436],
]
BACKENDS: dict[str, dict[str, str]] = {
    "torch": {},
    "ascend": {"GALLIUM_VNPU": "1", "GALLIUM_VNPU_DEVICES": "4", "TORCH_DEVICE_BACKEND_AUTOLOAD": "1"},
}


@pytest.fixture(scope="module")
def expected() -> list[list[int]]:
    """What one process says."""
    model = load(reexpress.default_gguf())
    return [greedy(model, prompt, TOKENS) for prompt in PROMPTS]


@pytest.fixture(scope="module")
def moe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return reexpress.write_glm4_moe(tmp_path_factory.mktemp("expressed") / "moe")


def tokens_of(world: int, tp: int, ep: int, model: Path, meeting: Path, backend: str) -> list[list[int]]:
    """Every rank's tokens."""
    order = (str(tp), str(ep), str(model), json.dumps(PROMPTS), backend)
    text = run_ranks("tests.golden.rank_tokens", world, meeting, *order, limit=900, **BACKENDS[backend])
    told = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    assert len(told) == world, text[-6000:]
    rows = {each["qkv_rows"] for each in told}
    assert rows == {reexpress.LAYERS * (reexpress.HEADS + 2 * reexpress.KV_HEADS) * reexpress.HEAD_DIM // tp}
    return [each["tokens"] for each in sorted(told, key=lambda each: each["rank"])]


@pytest.mark.parametrize("backend", BACKENDS)
def test_nine_heads_over_three_ranks(backend: str, tmp_path: Path, expected: list[list[int]]) -> None:
    got = tokens_of(3, 3, 1, reexpress.default_gguf(), tmp_path / "meeting", backend)
    assert got == [expected[0]] * 3


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("world", [2, 4])
def test_experts_over_ranks_that_serve_different_prompts(
    world: int, backend: str, moe: Path, tmp_path: Path, expected: list[list[int]]
) -> None:
    got = tokens_of(world, 1, world, moe, tmp_path / "meeting", backend)
    assert got == expected[:world]
