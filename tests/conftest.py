"""Options of the whole suite."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

# torch and transformers load torch_npu where it is installed, and fail without CANN. For the suite it is not there,
# unless the machine has a chip or the process was started on the virtual NPU; tests/vnpu gives it the emulated CANN and
# takes this back.
if os.environ.get("GALLIUM_VNPU") != "1" and not any(Path("/dev").glob("davinci[0-9]*")):
    os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"
    hidden: dict[str, Any] = sys.modules
    hidden.setdefault("torch_npu", None)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--backend", default=None, help="conformance: only this backend (default: every usable one)")
    parser.addoption("--level", default=None, help="conformance: only this instruction-set level of the CPU backend")


# What takes longest, so that no worker is left alone with it at the end; the rest follows in order.
LONG = (
    "tests/golden", "tests/backends/torch", "tests/api", "tests/engine", "tests/arm", "tests/verify",
    "tests/checkpoints", "tests/vnpu/test_opinfo.py", "tests/vnpu/test_examples.py", "tests/vnpu/ascend",
    "tests/vnpu/test_hccl",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first; the order within a file stays."""
    items.sort(key=lambda item: next((i for i, path in enumerate(LONG) if item.nodeid.startswith(path)), len(LONG)))


def pytest_configure(config: pytest.Config) -> None:
    """Take Ctrl-C as usual, also when the suite is started in the background, where a shell has it ignored.

    Child processes inherit an ignored signal, and some tests press Ctrl-C on one.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
