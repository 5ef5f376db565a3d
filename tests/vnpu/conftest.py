"""Tests of the virtual NPU run in a process that has it: it is installed before torch comes."""

from __future__ import annotations

import importlib.util
import os
import sys

import pytest

if sys.modules.get("torch_npu", "") is None:  # tests/conftest.py hides it
    del sys.modules["torch_npu"]

collect_ignore_glob: list[str] = []
if importlib.util.find_spec("torch_npu") is None:
    collect_ignore_glob.append("test_*.py")
else:
    from gallium import vnpu

    os.environ.pop("TORCH_DEVICE_BACKEND_AUTOLOAD", None)  # the rest of the suite is without torch_npu
    vnpu.install()

    import torch
    import torch_npu  # noqa: F401


def pytest_configure(config: pytest.Config) -> None:
    # torch_npu says so once in a process, whenever it makes a tensor in a given format, be it an ordinary one.
    config.addinivalue_line("filterwarnings", "ignore:Cannot create tensor with internal format")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
