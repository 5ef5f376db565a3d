"""Options of the whole suite."""

from __future__ import annotations

import os
import signal

import pytest

# torch would load torch_npu by itself, which needs CANN: tests/vnpu gives it the emulated one and loads it.
os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--backend", default=None, help="conformance: only this backend (default: every usable one)")
    parser.addoption("--level", default=None, help="conformance: only this instruction-set level of the CPU backend")


def pytest_configure(config: pytest.Config) -> None:
    """Take Ctrl-C as usual, also when the suite is started in the background, where a shell has it ignored.

    Child processes inherit an ignored signal, and some tests press Ctrl-C on one.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
