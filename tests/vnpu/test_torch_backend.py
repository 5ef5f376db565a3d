"""The torch backend on a device with memory of its own: nothing stays on the host, and PyTorch's own graphs hold it.

Users of Ascend get the backend ascend; here the virtual NPU stands for any accelerator.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.backends.torch.eager_graphs import SIZES
from tests.conformance.cases import normal
from tests.models.driving import Driver
from tests.models.memory_checkpoint import random_checkpoint
from tests.models.small_specs import spec_of
from tests.ops.sampling_rows import Adjust, Row, inputs

from gallium.backends.torch.collectives import Collectives
from gallium.backends.torch.device import choose_device, free_memory
from gallium.backends.torch.graphs import GraphedStep
from gallium.backends.torch.ops import TorchOps
from gallium.errors import BackendError
from gallium.models.catalog import load_model
from gallium.models.decoder import Model
from gallium.ops.handles import ALONE, FloatArray
from gallium.ops.reference_sampling import sample

NPU = torch.device("npu:0")


def model_on(device: torch.device, name: str = "glm4_moe-odd") -> Model:
    spec = spec_of(name)
    return load_model(random_checkpoint(spec), spec, TorchOps(spec.facts, "float32", device, Collectives()))


def history(driver: Driver) -> list[FloatArray]:
    """Two prompts, then decode steps over the edge of a block, of two sequences and of one."""
    steps = [{"a": [1, 2], "b": [4]}, *({"a": [5 + i], "b": [9 - i]} for i in range(4)), {"b": [9]}, {"b": [10]}]
    return [np.concatenate(list(driver.step(chunks).values())) for chunks in steps]


@pytest.fixture(scope="module")
def wanted() -> list[FloatArray]:
    return history(Driver(model_on(torch.device("cpu"))))


def test_eager_steps(wanted: list[FloatArray]) -> None:
    for got, rows in zip(history(Driver(model_on(NPU))), wanted, strict=True):
        np.testing.assert_allclose(got, rows, atol=1e-4, rtol=0)


def test_captured_steps(wanted: list[FloatArray]) -> None:
    """torch.accelerator.Graph records the decode steps: it would refuse one in which the host waits for the device."""
    model = model_on(NPU)
    driver = Driver(model)
    driver.run = model.ops.compile_step(lambda plan: model.forward(plan, driver.caches), SIZES)
    for got, rows in zip(history(driver), wanted, strict=True):
        np.testing.assert_allclose(got, rows, atol=1e-4, rtol=0)
    assert isinstance(driver.run, GraphedStep)
    assert list(driver.run.recorded) == [(2, 1), (2, 2), (1, 2)]  # sequences and blocks; three steps were replays


def test_sample() -> None:
    logits = np.round(normal(1, 4, 70, scale=3))
    rows = [Row(0.0), Row(1.0, seed=3), Row(0.7, 9, 0.8, 0.01, 2**64 - 1, 5), Row(2.0, adjust=[Adjust(3, 2.0, 1.5)])]
    ops = model_on(NPU).ops
    got = ops.download(ops.sample(ops.upload(logits), inputs(rows, 66)))
    np.testing.assert_array_equal(got, sample(logits, inputs(rows, 66)))


def test_free_memory_is_the_device_s_and_shrinks() -> None:
    before = free_memory(NPU)
    kept = torch.zeros(1 << 24, device=NPU)
    after = free_memory(NPU)
    assert before is not None and after is not None and before - after >= kept.nbytes


def test_a_device_with_a_backend_of_its_own_is_left_to_that() -> None:
    assert choose_device(None, ALONE) == torch.device("cpu")
    with pytest.raises(BackendError, match="--backend ascend"):
        choose_device("npu:0", ALONE)
