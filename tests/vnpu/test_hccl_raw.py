"""HCCL's C functions between processes without torch: values, refusals, failures, and what is left behind."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.vnpu import hccl_raw_failures

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def outcome() -> dict[str, str]:
    """By name of check: "ok", or "FAILED" with what the ranks said."""
    before = set(Path("/dev/shm").iterdir())
    run = subprocess.run(
        [sys.executable, "-m", "tests.vnpu.hccl_raw_failures"],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    verdicts = {}
    for line in run.stdout.splitlines():
        verdict, _, name = line.partition(" ")
        verdicts[name.split(" [")[0].strip()] = verdict if verdict == "ok" else f"{line}\n{run.stderr}"
    left = [path for path in set(Path("/dev/shm").iterdir()) - before if "hccl" in path.name]
    verdicts["nothing is left"] = f"left in shared memory: {left}" if left else "ok"
    return verdicts


@pytest.mark.parametrize("name", (*hccl_raw_failures.ALL, "nothing is left"))
def test_raw(outcome: dict[str, str], name: str) -> None:
    assert outcome.get(name, "it did not run") == "ok"


@pytest.mark.skipif(
    os.environ.get("GALLIUM_SANITIZE") != "1" or shutil.which("g++") is None,
    reason="GALLIUM_SANITIZE=1 builds HCCL with ThreadSanitizer, which takes half a minute",
)
def test_threads_do_not_race(tmp_path: Path) -> None:
    native = ROOT / "native" / "vnpu"
    sources = [ROOT / "tests" / "vnpu" / "hccl_threads.cpp", *sorted((native / "hccl").glob("*.cpp"))]
    flags = ["-std=c++17", "-O1", "-g", "-fsanitize=thread", f"-I{native}", "-pthread"]
    subprocess.run(["g++", *flags, "-o", tmp_path / "threads", *sources], check=True)
    # ThreadSanitizer of older compilers cannot place its memory under address space randomisation.
    run = subprocess.run(
        ["setarch", "-R", tmp_path / "threads"], capture_output=True, text=True, timeout=120, check=False
    )
    assert run.returncode == 0 and run.stdout == "ok\n", run.stdout + run.stderr
