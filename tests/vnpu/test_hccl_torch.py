"""torch.distributed with backend hccl: an unchanged torchrun program on four ranks, and failures on two."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from tests.vnpu import hccl_torch_checks

HERE = Path(__file__).parent


def environment(**more: str) -> dict[str, str]:
    return dict(os.environ) | {"GALLIUM_VNPU": "1", "GALLIUM_VNPU_DEVICES": "4", "OMP_NUM_THREADS": "1"} | more


@pytest.fixture(scope="module")
def output() -> str:
    """What `torchrun` printed."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=4"]
    run = subprocess.run(
        [*torchrun, HERE / "hccl_torch_checks.py"],
        env=environment(GALLIUM_VNPU_HCCL_TIMEOUT="30"), capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip
    return run.stdout + ("" if run.returncode == 0 else run.stderr) + f"\nended with {run.returncode}"


@pytest.mark.parametrize("name", [*hccl_torch_checks.CHECKS])
def test_four_ranks(output: str, name: str) -> None:
    assert f"ok {name}\n" in output, output[-6000:]


def test_torchrun_ends_well(output: str) -> None:
    assert "ended with 0" in output, output[-6000:]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture(scope="module")
def failures() -> dict[str, str]:
    """By label: what the ranks of hccl_torch_failures.py saw."""
    common = environment(
        WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()), GALLIUM_VNPU_HCCL_TIMEOUT="2",
        TORCH_HCCL_ASYNC_ERROR_HANDLING="0",  # the program handles the errors itself
    )  # fmt: skip
    processes = [
        subprocess.Popen(
            [sys.executable, HERE / "hccl_torch_failures.py"], env=common | {"RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in "01"
    ]  # fmt: skip
    lines: dict[str, str] = {}
    for process in processes:
        out, err = process.communicate(timeout=300)
        lines["stderr"] = lines.get("stderr", "") + err
        for line in out.splitlines():
            if found := re.match(r"(\w+ \d) (.*)", line):
                lines[found[1]] = found[2]
    return lines


def test_a_late_rank(failures: dict[str, str]) -> None:
    assert "timed out after 2 s" in failures["late 0"] and "waits for rank 1 (process" in failures["late 0"], failures
    assert "timed out after 2 s" in failures["late 1"], failures
    assert failures["value 0"] == failures["value 1"] == "[8.0, 8.0, 8.0, 8.0]", failures


def test_unequal_counts(failures: dict[str, str]) -> None:
    for rank in range(2):
        assert "4 of float32" in failures[f"unequal {rank}"] and "5 of float32" in failures[f"unequal {rank}"], failures


def test_a_killed_rank(failures: dict[str, str]) -> None:
    assert "rank 1 (process" in failures["dead 0"] and "is dead" in failures["dead 0"], failures
    assert "is dead" in failures["again 0"], failures
