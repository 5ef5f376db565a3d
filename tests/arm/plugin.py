"""A pytest plugin that puts arm64's kernels in the place of this machine's: `-p tests.arm.plugin --arm-cpu max`."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from tests.arm import machine

from gallium.backends.cpu import library


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--arm-cpu", choices=list(machine.PROCESSORS), required=True, help="QEMU's processor")


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """Whoever loads the native library from now on gets the emulated one; nothing else is different."""
    processor = early_config.known_args_namespace.arm_cpu
    load: Any = cache(lambda: machine.start(processor))
    library.load = load


def pytest_report_header(config: pytest.Config) -> str:
    """Emulation is labelled wherever it appears."""
    return f"CPU kernels: arm64, EMULATED by QEMU as {config.getoption('--arm-cpu')}, level {library.level()}"
