"""Probing without torch, the choice of the device, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.conformance.targets import facts
from tests.models.driving import Driver
from tests.models.memory_checkpoint import random_checkpoint, weight
from tests.models.small_specs import spec_of

from gallium.backends.torch.backend import TorchBackend
from gallium.errors import BackendError, UsageError
from gallium.models.catalog import load_model
from gallium.ops.backend import choose, installed
from gallium.ops.handles import Placement, Precision
from gallium.ops.machine import Describes, KnowsActivationBytes, KnowsFreeMemory, KnowsWeightBytes, Waits
from gallium.ops.reference import ReferenceOps
from gallium.ops.wrappers import checked

module = import_module("gallium.backends.torch.backend")  # in the package that name is the backend itself


def test_probing_describing_and_support_do_not_import_torch() -> None:
    code = (
        "import sys; from gallium.backends.torch import backend as b; from gallium.models.config import read_spec;"
        "from tests.conformance.targets import facts; print(b.probe(), b.describe(), b.support(facts(), 'float32')[0]);"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


def test_without_torch_the_reason_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "torch_version", lambda: None)
    probe = TorchBackend().probe()
    assert not probe.available and "gallium[torch]" in probe.reason


@pytest.mark.parametrize(
    ("version", "nodes", "devices"),
    [
        ("2.13.0", ["dev/nvidia0", "dev/nvidia1", "dev/nvidiactl"], 2),
        ("2.13.0+cu128", ["dev/nvidia0"], 1),
        ("2.13.0+cpu", ["dev/nvidia0"], 0),  # a build that cannot use what is there
        ("2.13.0+cu128", ["dev/dri/renderD128"], 0),
        ("2.13.0+xpu", ["dev/dri/renderD128"], 1),
        ("2.13.0+rocm6.4", ["dev/kfd"], 1),
        ("2.13.0+rocm6.4", [], 0),
    ],
)
def test_signs_of_an_accelerator(
    version: str, nodes: list[str], devices: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "torch_version", lambda: version)
    monkeypatch.setattr(sys, "platform", "linux")
    for node in nodes:
        (tmp_path / node).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / node).touch()
    backend = TorchBackend(tmp_path)
    assert (backend.priority > 0) == bool(devices) and backend.probe().devices == max(1, devices)
    others = [b for b in installed() if b.name == "cpu"]
    assert choose("auto", [backend, *others]).name == ("torch" if devices else "cpu")
    status = {row.status for row in backend.support(facts(), "bfloat16")}
    assert status == {"unverified"} if devices else status == {"verified"}


def test_the_cpu_can_be_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "torch_version", lambda: "2.13.0")
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/nvidia0").touch()
    monkeypatch.setenv("GALLIUM_TORCH_DEVICE", "cpu")
    backend = TorchBackend(tmp_path)
    assert backend.priority < 0
    assert backend.open(facts(), "float32").device == torch.device("cpu")  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("device", "error", "words"),
    [
        ("toaster", UsageError, "GALLIUM_TORCH_DEVICE=toaster is no device"),
        ("xpu", BackendError, "cannot use the device xpu"),
        ("xpu:1", BackendError, "cannot use the device xpu:1"),
    ],
)
def test_a_device_that_is_not_there(
    device: str, error: type[Exception], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GALLIUM_TORCH_DEVICE", device)
    with pytest.raises(error, match=words):
        TorchBackend().open(facts(), "float32")


def test_one_numbered_device_is_not_enough_for_two_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GALLIUM_TORCH_DEVICE", "xpu:1")
    with pytest.raises(UsageError, match="leave out the number"):
        TorchBackend().open(facts(), "float32", placement=Placement(tp=2))


def test_refusals_have_reasons() -> None:
    backend = TorchBackend()
    for precision in ("int8", "int4"):
        assert {row.status for row in backend.support(facts(), precision)} == {"unsupported"}
        with pytest.raises(BackendError, match=f"no products of {precision} weights"):
            backend.open(facts(), precision)
    glm4 = spec_of("glm4-odd").facts
    assert {row.status for row in backend.support(glm4, "bfloat16")} == {"verified"}
    with pytest.raises(BackendError, match="65504"):
        backend.open(glm4, "float16")


def test_threads_are_honoured() -> None:
    before = torch.get_num_threads()
    try:
        TorchBackend().open(facts(), "float32", threads=3)
        assert torch.get_num_threads() == 3
        with pytest.raises(UsageError, match="at least 1"):
            TorchBackend().open(facts(), "float32", threads=0)
    finally:
        torch.set_num_threads(before)


def test_memory_is_told() -> None:
    ops = TorchBackend().open(facts(), "bfloat16")
    assert isinstance(TorchBackend(), Describes)
    assert isinstance(ops, KnowsWeightBytes) and isinstance(ops, KnowsFreeMemory)
    assert ops.free_bytes() is None  # the CPU's memory is the host's
    ops.pack_linear([weight(np.ones((8, 16)))], [weight(np.ones(8))])
    ops.pack_linear([weight(np.ones((4, 16)))], role="router")
    assert ops.weight_bytes == (8 * 16 + 8) * 2 + 4 * 16 * 4


@pytest.mark.parametrize(("precision", "size"), [("float32", 4), ("bfloat16", 2), ("float16", 2)])
def test_activations_are_as_wide_as_the_model_s_type(precision: Precision, size: int) -> None:
    ops = TorchBackend().open(facts(), precision)
    assert isinstance(ops, KnowsActivationBytes) and isinstance(ops, Waits)
    assert ops.activation_bytes == size
    ops.wait()  # the CPU is never behind


def test_weights_that_float16_cannot_hold_are_refused() -> None:
    ops = TorchBackend().open(facts(), "float16")
    with pytest.raises(BackendError, match="proj has values beyond 65504"):
        ops.pack_linear([weight(np.full((2, 3), 1e5), "big.proj")])


@pytest.mark.parametrize("name", ["glm-odd", "glm4_moe-even"])
def test_every_op_inside_a_float16_model_is_the_reference_s(name: str) -> None:
    spec = spec_of(name)
    ops = checked(TorchBackend().open(spec.facts, "float16"), ReferenceOps(), "float16")
    driver = Driver(load_model(random_checkpoint(spec), spec, ops))
    driver.step({"a": list(range(3, 20)), "b": [1]})
    driver.step({"a": [2], "b": [3]})


def test_read_only_weights_and_many_rows_are_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    from gallium.backends.torch import packing

    monkeypatch.setattr(packing, "CHUNK", 8)
    array = np.arange(60, dtype=np.float32).reshape(12, 5)
    array.flags.writeable = False
    packed = TorchBackend().open(facts(), "float32").pack_linear([weight(array), weight(array[:2])])
    np.testing.assert_array_equal(packed.data.numpy(), np.concatenate([array, array[:2]]))
