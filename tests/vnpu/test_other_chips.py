"""Runs the tests that need another chip than the usual one, each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(("file", "chip"), [("chip_950.py", "Ascend950PR_9589")])
def test_on_chip(file: str, chip: str) -> None:
    command = [sys.executable, "-m", "pytest", str(Path(__file__).with_name(file)), "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(command, env=os.environ | {"GALLIUM_VNPU_SOC": chip}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
