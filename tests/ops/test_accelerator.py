"""Models run unchanged on hardware that chooses its own layouts, fuses blocks and pads its steps."""

from __future__ import annotations

import numpy as np
import pytest
from tests.models.driving import Driver
from tests.models.memory_checkpoint import random_checkpoint
from tests.models.small_specs import CONFIGS, spec_of
from tests.models.targets import REFERENCE
from tests.ops.accelerator import DeviceTensor, PretendAccelerator

from gallium.models.catalog import load_model
from gallium.ops.handles import FloatArray

STEPS: list[dict[str, list[int]]] = [
    {"a": [5, 7, 11, 2, 3, 9, 8]},
    {"a": [1], "b": [4, 4, 6]},
    {"b": [2], "a": [9]},
    {"c": [3]},
    {"a": [1], "b": [1], "c": [1]},
    {"c": [30, 31, 32, 33, 34], "b": [8]},
    {"a": [1], "b": [1], "c": [1]},
]


def run(driver: Driver) -> list[FloatArray]:
    return [np.concatenate(list(driver.step(step).values())) for step in STEPS]


@pytest.mark.parametrize("name", CONFIGS)
def test_it_equals_the_reference(name: str) -> None:
    spec, checkpoint = spec_of(name), random_checkpoint(spec_of(name))
    ops = PretendAccelerator()
    got = run(Driver(load_model(checkpoint, spec, ops), num_blocks=20))
    wanted = run(Driver(REFERENCE.load(checkpoint, spec), num_blocks=20))
    for ours, theirs in zip(got, wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0)
    assert ops.sizes_run == [2, 2, 4, 4]  # decode steps of 2, 1, 3 and 3 sequences


def test_it_says_what_it_fuses() -> None:
    rows = {row.op: row for row in PretendAccelerator().explain()}
    assert (rows["add_rms_norm"].how, rows["gqa"].how, rows["attend"].how) == ("kernel", "composed", "kernel")
    assert rows["add_rms_norm"].where.startswith("accelerator.py:")
    assert rows["gqa"].where.startswith("interface.py:")


def test_its_tensors_allow_no_more_than_a_model_may_do() -> None:
    x = DeviceTensor(np.zeros((4, 6), np.float32))
    assert x[:, :3].reshape(2, 6).shape == (2, 6)
    with pytest.raises(AssertionError, match="slice"):
        x[0]
    with pytest.raises(TypeError):
        x + x  # type: ignore[operator]
