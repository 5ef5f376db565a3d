"""Options of the whole suite."""

from __future__ import annotations

import signal

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--backend", default=None, help="conformance: only this backend (default: every usable one)")
    parser.addoption("--level", default=None, help="conformance: only this instruction-set level of the CPU backend")


def pytest_configure(config: pytest.Config) -> None:
    """Take Ctrl-C as usual, also when the suite is started in the background, where a shell has it ignored.

    Child processes inherit an ignored signal, and some tests press Ctrl-C on one.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
