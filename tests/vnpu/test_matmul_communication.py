"""Operators that compute and communicate, on two ranks that stay for all checks."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from tests.vnpu import communication_checks

PROGRAM = Path(__file__).parent / "communication_checks.py"


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture(scope="module")
def output() -> str:
    """What both ranks printed. The chip is a 910_93: the exchanges exist from it on."""
    common = dict(os.environ) | {
        "GALLIUM_VNPU": "1", "GALLIUM_VNPU_DEVICES": "2", "GALLIUM_VNPU_SOC": "Ascend910_9391",
        "GALLIUM_VNPU_HCCL_TIMEOUT": "60", "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()), "PYTHONPATH": str(PROGRAM.parents[2]),
    }  # fmt: skip
    ranks = [
        subprocess.Popen(
            [sys.executable, PROGRAM], env=common | {"RANK": rank, "LOCAL_RANK": rank}, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True,
        )
        for rank in "01"
    ]  # fmt: skip
    return "".join(rank.communicate(timeout=180)[0] for rank in ranks)


@pytest.mark.parametrize("name", [*communication_checks.CHECKS])
def test_two_ranks(output: str, name: str) -> None:
    assert f"ok {name}\n" in output, output[-6000:]
