"""What a program did on the virtual NPU: operators, copies, waits, memory, moves to the CPU."""

from __future__ import annotations

import atexit
import ctypes
import os
import sys
from pathlib import Path

from gallium.vnpu import imports, loader
from gallium.vnpu.library import core_with_lock
from gallium.vnpu.options import PREFIX


def begin() -> None:
    """Start to observe, if a report was asked for (GALLIUM_VNPU_REPORT); it is written when the process ends."""
    asked = os.environ.get(f"{PREFIX}_REPORT")
    if not asked:
        return
    from gallium.vnpu.report.recorder import Recorder

    recorder = Recorder()
    os.environ.setdefault(f"{PREFIX}_REPORT_OWNER", str(os.getpid()))
    loader.wrap_bodies(recorder.wrap)
    python = core_with_lock()
    python.ga_vnpu_set_observer.argtypes = [ctypes.py_object]
    python.ga_vnpu_set_observer.restype = None
    python.ga_vnpu_set_observer(recorder.event)

    def watch_fallbacks() -> None:
        from gallium.vnpu.report.fallbacks import FallbackWatch

        FallbackWatch(recorder.event).__enter__()  # type: ignore[no-untyped-call]

    imports.after("torch_npu", watch_fallbacks)

    def finish() -> None:
        if not recorder.operators and not recorder.events:
            return  # a launcher or a data worker that never used the NPU
        from gallium.vnpu.report.files import own_path, write

        for path in write(recorder, own_path(Path(asked))):
            print(f"gallium: wrote {path}", file=sys.stderr)

    atexit.register(finish)
