"""How a program is started on the virtual NPU: the command and the environment of its process."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from functools import cache
from importlib import metadata
from importlib.resources import files
from typing import NamedTuple

from gallium.vnpu.options import Options

INSTALL = 'pip install "gallium[vnpu]"'


class Wheel(NamedTuple):
    """A version of torch_npu: what it needs, the CANN release emulated beneath it, and what was run with it."""

    torch_npu: str
    torch: str
    cann: str
    run: str  # tests, smoke or none


@cache
def wheels() -> dict[str, Wheel]:
    """All versions that are known, from data/wheels.tsv."""
    lines = files("gallium.vnpu").joinpath("data/wheels.tsv").read_text(encoding="utf-8").splitlines()
    found = (Wheel(*line.split("\t")) for line in lines if not line.startswith("#"))
    return {wheel.torch_npu: wheel for wheel in found}


def missing() -> str | None:
    """What keeps torch_npu from being imported here, as a sentence with the cure; None if nothing does."""
    try:
        torch_npu = metadata.version("torch_npu")
        torch = metadata.version("torch").split("+")[0]
    except metadata.PackageNotFoundError as error:
        return f"{error.name} is not installed: {INSTALL}"
    known = {name: wheel for name, wheel in wheels().items() if wheel.run != "none"}
    if torch_npu not in known:
        return f"torch_npu {torch_npu} has not been tried on the virtual NPU; known: {', '.join(known)}: {INSTALL}"
    if torch != known[torch_npu].torch:
        needed = known[torch_npu].torch
        return f"torch_npu {torch_npu} needs torch {needed}, and torch {torch} is installed: {INSTALL}"
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
