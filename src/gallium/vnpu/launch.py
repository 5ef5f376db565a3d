"""How a program is started on the virtual NPU: the command and the environment of its process."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import metadata

from gallium.vnpu.options import Options

WHEELS = {"2.13.0": "2.13.0", "2.9.1": "2.9.1", "2.14.0": "2.14.0"}
"""Versions of torch_npu that are known to run, with the torch that each needs."""

INSTALL = 'pip install "gallium[vnpu]"'


def missing() -> str | None:
    """What keeps torch_npu from being imported here, as a sentence with the cure; None if nothing does."""
    try:
        torch_npu = metadata.version("torch_npu")
        torch = metadata.version("torch").split("+")[0]
    except metadata.PackageNotFoundError as error:
        return f"{error.name} is not installed: {INSTALL}"
    if torch_npu not in WHEELS:
        return f"torch_npu {torch_npu} has not been tried on the virtual NPU; known: {', '.join(WHEELS)}: {INSTALL}"
    if torch != WHEELS[torch_npu]:
        return f"torch_npu {torch_npu} needs torch {WHEELS[torch_npu]}, and torch {torch} is installed: {INSTALL}"
    return None


def command(target: Sequence[str]) -> list[str]:
    """The command line of a script with its arguments, or of `-m MODULE ...`."""
    return [sys.executable, *target]


def environment(options: Options, report: str | None = None) -> dict[str, str]:
    """This process's environment with what makes a child process, and its children, see the virtual NPU."""
    out = dict(os.environ) | options.environment()
    for name in ("BANNER_SHOWN", "REPORT_OWNER"):
        out.pop(f"GALLIUM_VNPU_{name}", None)
    if report is not None:
        out["GALLIUM_VNPU_REPORT"] = os.path.abspath(report)  # noqa: PTH100 (a program may change its folder)
    return out
