"""PyTorch beside the CPU: small models in each of its precisions, and the default model's real weights."""

from __future__ import annotations

import pytest
from tests.models.targets import Target
from tests.verify.making import FAMILIES, PROMPTS, side

from gallium.ops.handles import Precision
from gallium.settings import EngineSettings
from gallium.verify.comparing import compare
from gallium.verify.faults import self_test
from gallium.verify.opening import open_pair, prompts_of

pytest.importorskip("torch")


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(("precision", "verdict"), [("float32", "pass"), ("bfloat16", "drift"), ("float16", "drift")])
def test_small_models(name: str, precision: Precision, verdict: str) -> None:
    if (name, precision) == ("glm4-odd", "float16"):
        pytest.skip("refused: its activations pass float16's largest number")
    found = compare(side(Target("torch", precision), name), side(Target("cpu"), name), PROMPTS, 6)
    assert found.verdict == verdict
    assert found.logits is not None and found.logits.kl_mean < (1e-9 if precision == "float32" else 0.01)


def test_a_narrow_format_is_fed_in_its_own_width() -> None:
    """What is judged is the op's own rounding: one of bfloat16 is 2^-8 of the row's largest, and no more."""
    found = compare(side(Target("torch", "bfloat16"), "glm-odd"), side(Target("cpu"), "glm-odd"), PROMPTS, 2)
    worst = {op: max(row.finding.error for row in found.ops if row.op == op) for op in ("add", "rms_norm", "linear")}
    assert all(2**-10 < error < 2**-7 for error in worst.values()), worst


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_every_fault_is_found(precision: Precision) -> None:
    tested, other = side(Target("torch", precision), "glm4_moe-odd"), side(Target("cpu"), "glm4_moe-odd")
    assert all(outcome.good for outcome in self_test(tested, other, PROMPTS))


def test_the_default_model() -> None:
    pair = open_pair(None, EngineSettings(backend="torch", precision="float32"))
    assert (pair.tested.label, pair.other.label) == ("torch, float32", "cpu, float32")
    prompts = prompts_of(pair, [], 12)
    assert [len(prompt) for prompt in prompts] == [12, 8]
    found = compare(pair.tested, pair.other, prompts, 4)
    assert found.verdict == "pass" and len(found.layers) == 32
    assert found.logits is not None and found.logits.kl_max < 1e-8
