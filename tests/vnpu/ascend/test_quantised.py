"""Quantised models with real weights on the virtual NPU: as near to float32 as the CPU's kernels are.

A model whose activations are rounded to 8 bits amplifies any difference: on the CPU alone, noise of 1e-6 after each
norm makes a divergence of 0.04 between two runs of the first folder here, as much as its quantisation costs. So whole
models are compared by their distance to float32; that single products are the definition's, up to the last bit of
bfloat16, is held in test_linear and test_experts.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.golden import reexpress
from tests.vnpu.ascend.engines import divergence, engine, greedy
from tests.vnpu.support import called
from tools.make_modelslim import Recipe, make

from gallium import LLM
from gallium.checkpoints import Checkpoint, open_checkpoint, resolve_model
from gallium.settings import PrecisionChoice

TEXT = Path(reexpress.__file__).with_name("real_text.txt").read_text(encoding="utf-8")
LENGTH, TOKENS = 96, 4


@pytest.fixture(scope="module")
def cpu() -> Iterator[LLM]:
    with engine(None, "cpu", precision="float32") as llm:
        yield llm


@pytest.fixture(scope="module")
def ids(cpu: LLM) -> list[int]:
    return cpu.tokenizer.encode(TEXT)[:LENGTH]


@pytest.fixture(scope="module")
def exact(cpu: LLM, ids: list[int]) -> NDArray[np.float32]:
    return cpu.logits(ids)


@pytest.fixture(scope="module")
def moe(cpu: LLM, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = reexpress.write_glm4_moe(tmp_path_factory.mktemp("float") / "moe")
    cpu.tokenizer.save(folder)
    return open_checkpoint(folder)


# Measured on the virtual NPU: 0.047 and 0.033 in int8, 0.0015 in int4 (the default model's weights are of 4 bits).
@pytest.mark.parametrize(("precision", "most"), [("int8", 0.08), ("int4", 0.003)])
@pytest.mark.parametrize("arch", ["glm", "glm4_moe"])
def test_floats_quantised_while_loading(
    moe: Checkpoint, ids: list[int], exact: NDArray[np.float32], arch: str, precision: PrecisionChoice, most: float
) -> None:
    with engine(moe.path if arch == "glm4_moe" else None, "ascend", precision=precision) as llm:
        assert divergence(exact, llm.logits(ids)) < most


# Kernels without which the integers of a folder would not have been used as they are.
CASES: dict[str, tuple[str, Recipe, set[str]]] = {
    "w8a8-dynamic-c8": (
        "glm", Recipe("w8a8-dynamic", kv=True), {"DynamicQuant", "QuantMatmul", "DequantSwigluQuant"},
    ),
    "w8a8-static": ("glm", Recipe("w8a8", keep=("down_proj",)), {"Quantize", "QuantMatmul"}),
    "w4a8": ("glm4_moe", Recipe("w4a8"), {"DynamicQuant", "QuantMatmul", "GroupedMatmul", "MoeInitRoutingV3"}),
    "w4a8-groups": ("glm4_moe", Recipe("w4a8", group_size=64), {"QuantMatmul", "GroupedMatmul"}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_msmodelslim_folders(
    moe: Checkpoint, ids: list[int], exact: NDArray[np.float32], tmp_path: Path, case: str
) -> None:
    arch, recipe, kernels = CASES[case]
    source = moe if arch == "glm4_moe" else open_checkpoint(resolve_model(None).path)
    folder = make(source, tmp_path / "out", recipe, TEXT)
    with engine(folder, "cpu") as llm:
        on_cpu = divergence(exact, llm.logits(ids))
    with engine(folder, "ascend") as llm:
        assert llm.spec.arch == arch
        with called() as names:
            found = llm.logits(ids)
        (answer,) = greedy(llm, [ids[:40]], TOKENS)
    assert all(any(name.startswith(kernel) for name in names) for kernel in kernels), names
    assert divergence(exact, found) < 1.3 * on_cpu + 0.01
    assert len(answer) == TOKENS
