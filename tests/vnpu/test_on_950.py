"""Runs the checks of what torch_npu calls on the 950 family only, in a process of their own: a process has one chip."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.parametrize("checks", sorted(path.name for path in (HERE / "on_950").glob("check_*.py")))
def test_on_the_950_family(checks: str) -> None:
    environment = {**os.environ, "GALLIUM_VNPU_SOC": "Ascend950PR_9589"}
    command = [sys.executable, "-m", "pytest", str(HERE / "on_950" / checks), "-p", "no:cacheprovider"]
    done = subprocess.run(command, env=environment, cwd=HERE.parents[1], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
