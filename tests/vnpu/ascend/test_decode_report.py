"""What `gallium npu run --report` says of captured decode steps: fused kernels, no fallback, no wait in a replay."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.vnpu import programs
from tests.vnpu.ascend import models

STEPS = 6  # of decoding; the first runs eagerly and is captured, the others are replays
PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
from tests.models.driving import Driver
from tests.vnpu.ascend import models

model = models.load(sys.argv[2])
driver = Driver(model, 32, 128)
driver.run = model.ops.compile_step(lambda plan: model.forward(plan, driver.caches), (2,))
driver.step({"a": [3, 1, 4], "b": list(range(5, 30))})
for token in range(int(sys.argv[3])):
    driver.step({"a": [token], "b": [token + 1]})
"""


@pytest.fixture(scope="module", params=models.WIDE)
def report(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    """Of a prefill and STEPS decode steps of one family."""
    arch: str = request.param
    folder = tmp_path_factory.mktemp(arch)
    (folder / "program.py").write_text(PROGRAM, encoding="utf-8")
    root = Path(__file__).parents[3]
    programs.run("run", "--report", folder / "out.json", folder / "program.py", root, arch, STEPS)
    return arch, json.loads((folder / "out.json").read_text(encoding="utf-8"))


def test_nothing_runs_on_the_cpu(report: tuple[str, dict[str, Any]]) -> None:
    _, found = report
    assert found["emulated"] and found["fallbacks"] == []


def test_no_copy_and_no_wait_within_a_replay(report: tuple[str, dict[str, Any]]) -> None:
    _, found = report
    replays = [event for event in found["copies"] + found["waits"] if any(" replay" in at for at in event["stack"])]
    assert replays == []
    operators = [place for op in found["operators"] for place in op["places"]]
    assert any(" replay" in at for place in operators for at in place["stack"]), "the stacks do show replays"


def test_one_fused_kernel_per_layer_and_step(report: tuple[str, dict[str, Any]]) -> None:
    arch, found = report
    layers, forwards = models.wide_spec(arch).facts.num_layers, 1 + STEPS
    calls = {op["name"]: op["calls"] for op in found["operators"]}
    for name in ("FusedInferAttentionScoreV3", "ScatterPaKvCache", "RopeWithSinCosCacheV2"):
        assert calls[name] == layers * forwards, (name, calls)
    assert calls["AddRmsNorm"] == 2 * layers * forwards
