"""A decode step's kernels: the fused ones once per layer, nothing on the host, no wait inside the captured step."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from tests.models.driving import Driver
from tests.vnpu.ascend import models
from tests.vnpu.ascend.watching import Seen, watched

from gallium.backends.ascend.graphs import NpuGraphedStep
from gallium.ops.handles import Step

FUSED = {  # per layer, and how many more there are in a whole step
    "RopeWithSinCosCacheV2": (1, 0),  # npu_mrope: queries and keys at once
    "ScatterPaKvCache": (1, 0),
    "FusedInferAttentionScoreV3": (1, 0),
    "AddRmsNorm": (2, 0),  # the first layer's norm has no residual yet; the last norm has one
}
NORMS = {
    "glm": 1,
    "glm4": 1 + 2 * 3,
    "glm4_moe": 1 + 2 * 3,
}  # RmsNorm: the first; sandwich norms; heads of queries, keys
COMPOSED = ("Sigmoid", "Silu", "Rsqrt", "Sqrt", "Softmax", "MeanV2", "FlashAttentionScore", "Gather", "IndexPutImpl")


def decode_step(arch: str) -> tuple[Driver, Step]:
    """A model with two sequences behind their prefill, and the next step."""
    driver = Driver(models.load(arch), 32, 128)
    driver.step({"a": [3, 1, 4], "b": list(range(5, 30))})
    return driver, driver.describe({"a": [7], "b": [8]})


@pytest.fixture(params=models.WIDE)
def arch(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def test_an_eager_step_has_one_fused_kernel_where_the_design_names_one(arch: str) -> None:
    driver, step = decode_step(arch)
    ops, layers = driver.model.ops, len(driver.model.layers)
    driver.run(step)  # gains are converted at the first use
    with watched() as seen:
        driver.model.forward(ops.plan(step), driver.caches)
    check_kernels(seen, arch, layers)
    assert seen.count("CPU fallback") == 0
    assert seen.count("copy device to host") == 0 and seen.count("wait") == 0, seen.events


def check_kernels(seen: Seen, arch: str, layers: int) -> None:
    for name, (each, more) in FUSED.items():
        assert seen.kernels[name] == each * layers + more, (name, seen.kernels)
    assert seen.kernels["RmsNorm"] == NORMS[arch], seen.kernels
    assert not [name for name in COMPOSED if seen.kernels[name]], seen.kernels
    dense = layers if arch != "glm4_moe" else 1
    if arch == "glm4_moe":
        experts = layers - dense
        for name in ("MoeGatingTopK", "MoeInitRoutingV3", "MoeFinalizeRoutingV4"):
            assert seen.kernels[name] == experts, (name, seen.kernels)
        grouped = sum(count for name, count in seen.kernels.items() if name.startswith("GroupedMatmul"))
        assert grouped == 2 * experts
        assert seen.kernels["SwiGlu"] == dense + 2 * experts  # routed and shared
    else:
        assert seen.kernels["SwiGlu"] == layers


def test_a_replayed_step_is_the_captured_one_and_nothing_else(arch: str) -> None:
    """In the replay itself no operator is called, nothing is copied and nobody waits."""
    driver, step = decode_step(arch)
    run = driver.model.ops.compile_step(lambda plan: driver.model.forward(plan, driver.caches), (2,))
    assert isinstance(run, NpuGraphedStep)
    driver.run(step)
    with watched() as captured:
        run(step)
    eager_and_captured = Counter({name: count for name, count in captured.kernels.items() if name in FUSED})
    layers = len(driver.model.layers)
    assert eager_and_captured == {name: 2 * (each * layers + more) for name, (each, more) in FUSED.items()}
    (recorded,) = run.recorded.values()
    run.update(recorded)
    with watched() as replayed:
        run.replay(recorded)
    assert not replayed.events and not replayed.kernels
    assert np.isfinite(recorded.output.float().cpu().numpy()).all()
