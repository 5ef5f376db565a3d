"""`gallium doctor`: the machine, each backend with its reasons, and which code runs for each op."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import gallium
from gallium.backends.reference import ReferenceBackend
from gallium.errors import CheckpointError
from gallium.ops.backend import Probe, Unloadable
from gallium.ops.interface import op_names

SOURCE = Path(gallium.__file__).parent
PRECISIONS = ["float32", "bfloat16", "int8", "int4"]


class Emulated(ReferenceBackend):
    """A backend of hardware that is not there; its speed must not be looked at."""

    name = "pretend"
    priority = 5

    def probe(self):
        return Probe(available=True, emulated=True, devices=2, reason="by a simulator")

    def measure(self, threads=None):
        raise AssertionError("emulated hardware was measured")


@pytest.fixture
def found(monkeypatch):
    """Put these backends in the place of the installed ones."""
    return lambda *backends: monkeypatch.setattr("gallium.ops.backend.installed", lambda: list(backends))


def facts(result):
    """What --json says; standard output holds nothing else."""
    return json.loads(result.stdout)


def test_everything_for_people(gallium):
    result = gallium("doctor", "--no-measure")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0] == "Gallium"
    for fact in ("version", "python", "system", "free memory", "default model"):
        assert any(re.fullmatch(rf"  {fact} +\S.*", line) for line in lines), fact
    assert "Backend cpu: usable" in lines
    assert "Backend reference: usable, only when asked for with --backend reference" in lines
    assert "(measured)" not in result.stdout


def test_op_table_is_aligned_and_whole(gallium):
    lines = gallium("doctor", "--backend", "reference").stdout.splitlines()
    head = next(i for i, line in enumerate(lines) if line.split()[:1] == ["op"])
    rows = [line for line in lines[head:] if line]
    starts = [match.start() for match in re.finditer(r"-+", rows[1])]
    assert [row.split()[0] for row in rows[2:]] == list(op_names())
    for row in [rows[0], *rows[2:]]:
        assert all(row[start] != " " and row[start - 1] == " " for start in starts)


def test_cpu_says_what_it_is_and_what_it_can_do(gallium):
    result = gallium("doctor", "--backend", "cpu", "--json")
    assert result.exit_code == 0 and "measuring cpu" in result.stderr
    (cpu,) = facts(result)["backends"]
    assert {"chip", "cores", "threads", "instruction level"} <= cpu["machine"].keys()
    assert cpu["limits"]["read_bytes_per_second"] > 1e8
    assert list(cpu["limits"]["operations_per_second"]) == PRECISIONS
    assert min(cpu["limits"]["operations_per_second"].values()) > 1e8
    assert (cpu["precision"], cpu["automatic"], cpu["emulated"], cpu["devices"]) == ("bfloat16", True, False, 1)
    shown = gallium("doctor", "--backend", "cpu").stdout
    assert len(re.findall(r"^  (?:read bandwidth|peak in \w+) +[\d,.]+ G(?:B|OP)/s \(measured\)$", shown, re.M)) == 5


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_each_op_is_named_with_its_code_and_reason(gallium, backend):
    (entry,) = facts(gallium("doctor", "--backend", backend, "--no-measure", "--json"))["backends"]
    assert [row["op"] for row in entry["ops"]] == list(op_names())
    for row in entry["ops"]:
        assert row["status"] == "verified" and row["how"] in ("kernel", "composed") and row["reason"]
        name, _, number = row["where"].rpartition(":")
        definitions = [path.read_text(encoding="utf-8").splitlines() for path in SOURCE.rglob(name)]
        assert any(len(lines) >= int(number) and f"def {row['op']}(" in lines[int(number) - 1] for lines in definitions)


def test_level_of_the_environment():
    command = [sys.executable, "-m", "gallium.cli.main", "doctor", "--backend", "cpu", "--no-measure", "--json"]
    done = subprocess.run(command, capture_output=True, env={**os.environ, "GALLIUM_CPU_LEVEL": "generic"}, check=True)
    (cpu,) = json.loads(done.stdout)["backends"]
    assert cpu["machine"]["instruction level"].startswith("generic: ")
    assert {row["reason"] for row in cpu["ops"] if row["how"] == "kernel"} == {"native kernel (generic)"}


def test_precision_is_one_that_the_backend_has(gallium):
    by_name = {entry["name"]: entry for entry in facts(gallium("doctor", "--no-measure", "--json"))["backends"]}
    assert (by_name["cpu"]["precision"], by_name["reference"]["precision"]) == ("bfloat16", "float32")


def test_precision_that_cannot_be_is_one_sentence(gallium):
    args = ("doctor", "--backend", "reference", "--precision", "int8", "--shape", "glm-4.5-air")
    shown = gallium(*args).stdout
    assert "  Cannot run glm-4.5-air in int8: the reference computes in float32 only, not in int8" in shown
    assert shown.count("float32 only") == 1
    (entry,) = facts(gallium(*args, "--json"))["backends"]
    assert {row["status"] for row in entry["ops"]} == {"unsupported"}


@pytest.mark.parametrize(
    ("option", "value", "code"), [("--backend", "abacus", 2), ("--shape", "cube", 2), ("--precision", "int3", 2)]
)
def test_unknown_names(gallium, option, value, code):
    result = gallium("doctor", option, value)
    assert (result.exit_code, result.stdout) == (code, "")
    assert value in result.stderr


def test_a_backend_that_cannot_be_used_says_why(gallium, found):
    found(Unloadable("abacus", "the plug-in abacus does not load: no beads"), ReferenceBackend())
    result = gallium("doctor")
    assert result.exit_code == 0
    assert "Backend abacus: not usable: the plug-in abacus does not load: no beads" in result.stdout
    assert "Backend reference: usable" in result.stdout


def test_emulated_hardware_is_labelled_and_not_measured(gallium, found):
    found(Emulated(), ReferenceBackend())
    result = gallium("doctor")
    assert result.exit_code == 0
    assert (
        "Backend pretend: usable, EMULATED, only when asked for with --backend pretend (by a simulator)"
        in result.stdout
    )
    assert "(measured)" not in result.stdout


@pytest.mark.parametrize("backend", [Emulated(), Unloadable("abacus", "no beads")])
def test_without_a_real_backend_it_fails_after_the_report(gallium, found, backend):
    found(backend)
    result = gallium("doctor")
    assert result.exit_code == 1
    assert f"Backend {backend.name}" in result.stdout
    assert result.stderr.endswith("Error: no usable backend: see the reasons above.\n")


def test_missing_default_model_is_told(gallium, monkeypatch):
    def missing(name):
        raise CheckpointError("the embedded model is not installed: pip install it.")

    monkeypatch.setattr("gallium.checkpoints.resolve_model", missing)
    told = facts(gallium("doctor", "--backend", "reference", "--json"))["gallium"]
    assert told["default model"] == "not found: the embedded model is not installed: pip install it."


def test_emulated_hardware_counts_only_when_it_is_named(gallium, found):
    found(Emulated())
    assert gallium("doctor").exit_code == 1
    assert gallium("doctor", "--backend", "pretend").exit_code == 0
