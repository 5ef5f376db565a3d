"""What older chips cannot is refused before anything is loaded, with the reason."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.api.successors import write_checkpoint


def run_on(soc: str, *options: str) -> subprocess.CompletedProcess[str]:
    """`gallium run` on a virtual chip."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GALLIUM_")}
    line = ["run", "--backend", "ascend", "--virtual", "--soc", soc, "--raw", "--max-tokens", "2", *options, "Hello"]
    command = [sys.executable, "-m", "gallium", *line]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    ("soc", "moe", "precision", "reason"),
    [
        ("Ascend310P3", False, "bfloat16", "Ascend310P3 has no bfloat16"),
        ("Ascend910A", True, "float16", "a router computes in float32"),
    ],
)
def test_refusals(soc: str, moe: bool, precision: str, reason: str, tmp_path: Path) -> None:
    model = ("-m", str(write_checkpoint(tmp_path / "moe"))) if moe else ()
    done = run_on(soc, "--precision", precision, *model)
    assert done.returncode == 1
    assert reason in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr


def test_an_older_chip_runs_a_dense_model_in_float16() -> None:
    done = run_on("Ascend310P3", "--precision", "float16", "--temperature", "0")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
