"""Captured decode steps: the same logits as without graphs, from padded batches, and with lengths that follow."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from tests.models.driving import Driver
from tests.vnpu.ascend import models

from gallium.backends.ascend.graphs import NpuGraphedStep
from gallium.backends.torch.graphs import pad
from gallium.backends.torch.plan import DUMMY_PAGE, FIRST_PAGE
from gallium.models.decoder import Model
from gallium.ops.handles import FloatArray, Precision, Step

PROMPTS = {"a": [3, 1, 4, 1, 5], "b": [9, 2, 6], "c": list(range(20, 37))}
SIZES = (2, 4)
NEAR: dict[Precision, float] = {"float32": 1e-4, "float16": 0.02, "bfloat16": 0.15}
"""Of logits up to 8: the CPU beneath the virtual NPU adds up a product of four rows otherwise than one of three."""


class Captured(Driver):
    """A Driver whose decode steps are graphs."""

    def __init__(self, model: Model, block_size: int) -> None:
        super().__init__(model, num_blocks=32, block_size=block_size)
        run = model.ops.compile_step(lambda plan: model.forward(plan, self.caches), SIZES)
        assert isinstance(run, NpuGraphedStep)
        self.graphs = run
        self.run: Callable[[Step], FloatArray] = run


def decode(driver: Driver, steps: int, names: str = "abc") -> list[dict[str, FloatArray]]:
    """Prefill, then so many greedy steps of all three; "b" leaves after two, so that a batch shrinks."""
    rows = driver.step(PROMPTS)
    last = {name: int(rows[name][-1].argmax()) for name in names}
    found = []
    for number in range(steps):
        live = [name for name in names if name != "b" or number < 2]
        logits = driver.step({name: [last[name]] for name in live})
        last |= {name: int(logits[name][-1].argmax()) for name in live}
        found.append(logits)
    return found


@pytest.mark.parametrize(
    ("arch", "precision"),
    [(arch, p) for arch in models.WIDE for p in NEAR if (arch, p) != ("glm4", "float16")],  # which is refused
)
def test_tokens_are_those_of_eager_steps(arch: str, precision: Precision) -> None:
    """bfloat16 and float16 by the fused kernel, float32 by plain PyTorch; contexts cross blocks on the way."""
    model = models.load(arch, precision)
    captured = Captured(model, 16)
    got, wanted = decode(captured, 20), decode(Driver(model, 32, 16), 20)
    assert len(captured.graphs.recorded) >= 2  # four sequences, then two
    for ours, theirs in zip(got, wanted, strict=True):
        for name, row in theirs.items():
            np.testing.assert_allclose(ours[name], row, rtol=0, atol=NEAR[precision])
            assert ours[name].argmax() == row.argmax()


def test_the_lengths_of_a_captured_step_follow_the_sequences(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention takes them from the host: without the update a replay would see the context of the capture."""
    model = models.load("glm")
    wanted = decode(Captured(model, 16), 4)
    monkeypatch.setattr(NpuGraphedStep, "update", lambda self, recorded: None)
    stale = decode(Captured(model, 16), 4)
    same = [np.array_equal(a["a"], b["a"]) for a, b in zip(wanted, stale, strict=True)]
    assert same[0] and not same[1], "the first decode step is the capture itself, the second a replay"


def test_padding_writes_to_no_block_of_a_sequence() -> None:
    """Three sequences run in a graph of four: the fourth writes to a page that nobody owns."""
    model = models.load("glm")
    captured = Captured(model, 16)
    decode(captured, 2)
    used = sorted(block for table in captured.tables.values() for block in table)
    pages = captured.caches[0].data.k
    touched = [int(i) for i in np.flatnonzero(pages.abs().flatten(1).sum(1).float().cpu().numpy())]
    assert touched == [DUMMY_PAGE, *(block + FIRST_PAGE for block in used)]


def test_padding_writes_no_slot_twice() -> None:
    """Which the kernel leaves undefined."""
    model = models.load("glm")
    driver = Driver(model, 8, 16)
    driver.step({"a": [3, 1]})
    plan = model.ops.fixed_plan(pad(driver.describe({"a": [4]}), 8, 4), 1)
    slots = plan.slots(16).tolist()
    assert slots[0] == (driver.tables["a"][0] + FIRST_PAGE) * 16 + 2
    assert slots[1:] == [DUMMY_PAGE * 16 + i for i in range(7)]


def test_long_and_mixed_steps_are_not_captured() -> None:
    model = models.load("glm")
    captured = Captured(model, 16)
    captured.step(PROMPTS)
    captured.step({"a": [1], "b": [1, 2]})
    assert not captured.graphs.recorded


@pytest.mark.parametrize(
    ("precision", "block_size", "limited"), [("bfloat16", 128, False), ("bfloat16", 4, True), ("float32", 128, True)]
)
def test_only_composed_attention_limits_how_many_keys_a_graph_has(
    precision: Precision, block_size: int, limited: bool
) -> None:
    """Which gathers them all, as wide as the longest context."""
    model = models.load("glm", precision)
    assert (Captured(model, block_size).graphs.most_keys is not None) == limited
