"""`gallium verify`: exit codes, files, and what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tests.checkpoints.gguf_making import hf_config
from tests.checkpoints.safetensors_making import write_model
from tests.checkpoints.test_gguf_reading import model_tensors

from gallium.backends.cpu.backend import CpuBackend
from gallium.backends.cpu.ops import CpuOps
from gallium.backends.reference import ReferenceBackend
from gallium.ops.backend import Probe
from gallium.verify import faults
from gallium.verify.records import read_record

QUICK = ("--tokens", "9", "--new-tokens", "3")


@pytest.fixture
def tiny(tmp_path):
    """A glm4_moe model without a tokenizer: token ids are made up."""
    config = hf_config("glm4moe")
    return str(write_model(tmp_path / "tiny", model_tensors(config), config))


class Skewed(CpuBackend):
    """The CPU with a rope that turns too far."""

    name = "skewed"

    def open(self, *args, **named):
        ops = super().open(*args, **named)
        ops.rope = lambda x, plan, spec: CpuOps.rope(ops, CpuOps.rope(ops, x, plan, spec), plan, spec)
        return ops


class Emulated(CpuBackend):
    """Hardware that is not there."""

    name = "pretend"

    def probe(self):
        return Probe(available=True, emulated=True, devices=1)


@pytest.fixture
def backends(monkeypatch):
    found = [CpuBackend(), ReferenceBackend(), Skewed(), Emulated()]
    monkeypatch.setattr("gallium.verify.opening.installed", lambda: found)


def test_float32_passes(gallium, tiny):
    result = gallium("verify", tiny, "--precision", "float32", *QUICK)
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].endswith("prompts of 9 and 6 tokens")
    assert lines[1] == "  tested   cpu, float32" and lines[2].startswith("           chip: ")
    assert "  against  reference, float32" in lines
    assert lines[-1].startswith("Verdict: pass (") and lines[-1].endswith("places).")
    assert "tiny: cpu, float32, against reference, float32" in result.stderr


@pytest.mark.parametrize(("precision", "verdict"), [("bfloat16", "drift"), ("int8", "drift")])
def test_drift_is_no_failure(gallium, tiny, precision, verdict):
    result = gallium("verify", tiny, "--precision", precision, "--json", "-", *QUICK)
    assert result.exit_code == 0, result.stderr
    told = json.loads(result.stdout)
    assert (told["verdict"], told["emulated"], told["note"]) == (verdict, False, "")
    assert told["tested"]["precision"] == precision and told["against"]["precision"] == "float32"


def test_one_backend_in_two_precisions(gallium, tiny):
    result = gallium("verify", tiny, "--precision", "int4", "--against", "cpu", "--json", "-", *QUICK)
    assert result.exit_code == 0, result.stderr
    told = json.loads(result.stdout)
    assert told["against"]["label"] == "cpu, float32"
    assert [row["layer"] for row in told["layers"]] == ["embedding", "0", "1", "head"]


def test_a_wrong_op_ends_with_1_and_its_name(gallium, tiny, backends):
    result = gallium("verify", tiny, "--backend", "skewed", "--precision", "float32", *QUICK)
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith("Error: skewed, float32 computes wrongly: rope in layer ")
    assert "WRONG" in result.stdout


def test_self_test(gallium, tiny, tmp_path):
    page = tmp_path / "faults.html"
    result = gallium("verify", tiny, "--self-test", "--html", str(page), "--tokens", "9")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.count(" found ") == 6, "float32 is taken, in which every fault shows"
    assert "Faults that were put in" in page.read_text()


def test_a_self_test_that_misses_a_fault_ends_with_1(gallium, tiny, monkeypatch):
    blind = tuple(replace(fault, change=lambda scene, method, args: method(*args)) for fault in faults.FAULTS[:2])
    monkeypatch.setattr(faults, "FAULTS", blind)
    result = gallium("verify", tiny, "--self-test", "--tokens", "9")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == (
        "Error: the verification did not find what it should: wrong eps, wrong scale."
    )


def test_files(gallium, tiny, tmp_path):
    files = {kind: tmp_path / f"out.{kind}" for kind in ("json", "html", "record")}
    flags = [text for kind, path in files.items() for text in (f"--{kind}", str(path))]
    result = gallium("verify", tiny, *flags, "--signed-by", "Jane", "--precision", "bfloat16", *QUICK)
    assert result.exit_code == 0, result.stderr
    assert json.loads(files["json"].read_text())["verdict"] == "drift"
    assert files["html"].read_text().startswith("<!doctype html>")
    record = read_record(files["record"])
    assert (record["signed_by"], record["backend"], record["emulated"]) == ("Jane", "cpu", False)
    assert all(f"wrote {path}" in result.stderr for path in files.values())


def test_emulated_hardware_is_said_everywhere(gallium, tiny, tmp_path, backends):
    files = [tmp_path / name for name in ("r.json", "r.html", "record.json")]
    flags = ["--json", str(files[0]), "--html", str(files[1]), "--record", str(files[2]), "--signed-by", "J"]
    result = gallium("verify", tiny, "--backend", "pretend", *flags, *QUICK)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith("EMULATED: pretend ran on emulated hardware.")
    assert "pretend (EMULATED), " in result.stderr and "it verifies no chip" in result.stderr
    assert json.loads(files[0].read_text())["emulated"] is True
    assert "EMULATED" in files[1].read_text()
    assert read_record(files[2])["emulated"] is True


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--against", "cpu", "--precision", "float32"), "cpu in float32 would be compared with itself"),
        (("--against", "gpu"), "unknown backend 'gpu'"),
        (("--prompt", "Hello"), "has no tokenizer"),
        (("--record", "x.json"), "add --signed-by NAME"),
        (("--record", "x.json", "--signed-by", " "), "add --signed-by NAME"),
        (("--signed-by", "Jane"), "add --record FILE"),
        (("--record", "x.json", "--signed-by", "Jane", "--self-test"), "leave out one of them"),
        (("--json", "/nowhere/at/all.json", *QUICK), "cannot be written"),
    ],
)
def test_wrong_usage_ends_with_2(gallium, tiny, args, said):
    result = gallium("verify", tiny, *args)
    assert result.exit_code == 2, result.stderr
    assert said in result.stderr
    assert not Path("x.json").exists()


def test_no_text_is_refused(gallium):
    result = gallium("verify", "--prompt", "")
    assert result.exit_code == 2 and "has no tokens" in result.stderr
