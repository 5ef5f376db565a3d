"""Options of the whole suite."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--backend", default=None, help="conformance: only this backend (default: every usable one)")
    parser.addoption("--level", default=None, help="conformance: only this instruction-set level of the CPU backend")
