"""The backend's answers before torch comes: probe, support and refusals, on made-up machines and chips."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.backends.ascend.test_soc import GLM, GLM4

from gallium.backends.ascend import records, soc, versions
from gallium.backends.ascend.backend import AscendBackend
from gallium.errors import BackendError
from gallium.ops.backend import choose
from gallium.ops.handles import Placement
from gallium.ops.interface import op_names

ASCEND = AscendBackend()
MODULE = import_module("gallium.backends.ascend.backend")  # the package has an object of that name


@pytest.fixture
def chip(monkeypatch: pytest.MonkeyPatch) -> str:
    """A usable 910B2 with two devices, whose ops all say "a function"."""
    name = "Ascend910B2"
    monkeypatch.setattr(versions.Machine, "missing", lambda self: [])
    monkeypatch.setattr(versions.Machine, "chips", lambda self: 2)
    monkeypatch.setattr(versions, "missing_packages", list)
    monkeypatch.setattr(MODULE, "this_chip", lambda: soc.find(name))
    reasons = SimpleNamespace(op_reasons=lambda chip, model, precision: dict.fromkeys(op_names(), "a function"))
    monkeypatch.setitem(sys.modules, "gallium.backends.ascend.reasons", reasons)
    return name


def test_probing_imports_no_torch() -> None:
    code = (
        "import sys; from gallium.backends.ascend import backend; backend.probe(); "
        "sys.exit(any(m.split('.')[0] in ('torch', 'torch_npu') for m in sys.modules))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_anything_every_line_has_its_cure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GALLIUM_VNPU", raising=False)
    monkeypatch.setattr(versions.Machine, "this", lambda: versions.Machine(tmp_path, {}))
    monkeypatch.setattr(versions, "missing_packages", lambda: ["torch_npu is not installed: pip install it"])
    probe = ASCEND.probe()
    assert (probe.available, probe.emulated, probe.devices) == (False, False, 0)
    assert [part.split(":")[0] for part in probe.reason.split("; ")] == [
        "no Ascend chip is here (/dev/davinci0)",
        "torch_npu is not installed",
        "CANN is not installed",
    ]
    assert {row.status for row in ASCEND.support(GLM, "float16")} == {"unsupported"}
    with pytest.raises(BackendError, match="no Ascend chip is here"):
        ASCEND.open(GLM, "float16")


def test_a_real_chip_is_chosen_by_auto_and_an_emulated_one_is_not(chip: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose("auto", [ASCEND]) is ASCEND
    monkeypatch.setenv("GALLIUM_VNPU", "1")
    monkeypatch.setenv("GALLIUM_VNPU_DEVICES", "4")
    assert (ASCEND.probe().emulated, ASCEND.probe().devices) == (True, 4)
    with pytest.raises(BackendError, match="Emulated ones must be named: --backend ascend"):
        choose("auto", [ASCEND])
    assert choose("ascend", [ASCEND]) is ASCEND


def test_nothing_is_verified_without_a_record(chip: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = ASCEND.support(GLM, "bfloat16")
    assert {(row.status, row.reason) for row in rows} == {
        ("unverified", "a function (no record of a run on this chip yet)")
    }
    monkeypatch.setenv("GALLIUM_VNPU", "1")
    assert {row.reason for row in ASCEND.support(GLM, "bfloat16")} == {"a function (virtual only)"}


def test_a_record_verifies_what_passed_on_that_chip(chip: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = {"soc": chip, "precision": "bfloat16", "emulated": False, "date": "2026-12-01", "signed_by": "A. Person"}
    runs = (
        run | {"date": "2026-12-02", "ops": {"rope": "wrong"}},
        run | {"ops": {"linear": "pass", "rope": "pass", "attend": "wrong"}},
        run | {"emulated": True, "ops": {"add": "pass"}},
        run | {"soc": "Ascend910B3", "ops": {"swiglu": "pass"}},
    )
    monkeypatch.setattr(records, "records", lambda: runs)
    rows = {row.op: row for row in ASCEND.support(GLM, "bfloat16")}
    assert {op for op, row in rows.items() if row.status == "verified"} == {"linear"}
    assert rows["linear"].reason == "a function; run of 2026-12-01 by A. Person"
    assert {row.status for row in ASCEND.support(GLM, "float16")} == {"unverified"}
    monkeypatch.setenv("GALLIUM_VNPU", "1")
    assert {row.status for row in ASCEND.support(GLM, "bfloat16")} == {"unverified"}


def test_what_the_chip_cannot_is_refused_with_the_reason(chip: str) -> None:
    assert {row.status for row in ASCEND.support(GLM4, "float16")} == {"unsupported"}
    with pytest.raises(BackendError, match="overflow in float16"):
        ASCEND.open(GLM4, "float16")


def test_more_ranks_than_chips_are_refused(chip: str) -> None:
    with pytest.raises(BackendError, match="4 ranks need as many Ascend chips, but 2 are here"):
        ASCEND.open(dataclasses.replace(GLM), "bfloat16", placement=Placement(tp=4))
