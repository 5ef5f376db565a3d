"""A pytest plugin: `pytest -p gallium.vnpu.pytest` gives the tests the virtual NPU, before torch is imported."""

from __future__ import annotations

from gallium.vnpu.loader import install
from gallium.vnpu.options import Options

install(Options.from_environment())


def pytest_report_header() -> str:
    """The line that says what the tests run on."""
    from gallium.vnpu.activate import banner

    return banner(Options.from_environment())
