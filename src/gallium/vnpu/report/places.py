"""Where in the user's program something happened: the stack without the frames of torch and of the emulator."""

from __future__ import annotations

import sys
from pathlib import Path
from types import FrameType

DEPTH = 5
_OURS = str(Path(__file__).resolve().parent.parent)
_INTERNAL = ("/torch/", "/torch_npu/", "/importlib/", _OURS, "<frozen", "<string>", "<__array_function__")


def place() -> tuple[str, ...]:
    """Up to DEPTH frames, "file:line function", innermost first; empty if only library code was running."""
    found: list[str] = []
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and len(found) < DEPTH:
        file = frame.f_code.co_filename
        if not any(part in file for part in _INTERNAL):
            found.append(f"{file}:{frame.f_lineno} {frame.f_code.co_name}")
        frame = frame.f_back
    return tuple(found)
