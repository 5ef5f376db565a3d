"""A recorder's findings as plain data, for the JSON file and the page."""

from __future__ import annotations

import sys
from typing import Any

from gallium.vnpu import soc
from gallium.vnpu.library import core
from gallium.vnpu.loader import CANN_VERSION
from gallium.vnpu.options import Options
from gallium.vnpu.report.recorder import Recorder

CANNOT_TELL = (
    "Emulated: this report says what the program asks of the chip. It does not say how long anything takes there, what "
    "the cube unit's numbers are, or whether a synchronisation is missing."
)
TOP_PLACES, TOP_SHAPES = 5, 10


def summarise(recorder: Recorder) -> dict[str, Any]:
    """Everything but the trace. Sizes in bytes; operations are floating-point operations."""
    options = Options.from_environment()
    operators = [
        {
            "name": name,
            "calls": use.calls,
            "bytes": use.bytes,
            "operations": use.operations,
            "shapes": [{"tensors": text, "calls": n} for text, n in use.shapes.most_common(TOP_SHAPES)],
            "places": [{"stack": list(stack), "calls": n} for stack, n in use.places.most_common(TOP_PLACES)],
        }
        for name, use in sorted(recorder.operators.items(), key=lambda item: -item[1].bytes)
    ]
    events: list[dict[str, Any]] = [
        {"what": what, "count": use.count, "bytes": use.bytes, "stack": list(stack)}
        for (what, stack), use in sorted(recorder.events.items(), key=lambda item: -item[1].count)
    ]
    return {
        "emulated": True,
        "note": CANNOT_TELL,
        "program": sys.argv,
        "chip": soc.current().name,
        "cann": CANN_VERSION,
        "operators": operators,
        "fallbacks": [event for event in events if event["what"].startswith("CPU fallback")],
        "copies": [event for event in events if event["what"].startswith("copy")],
        "waits": [event for event in events if event["what"].startswith("wait")],
        "peak_memory": [core_peak(device) for device in range(options.devices)],
        "trace_events_lost": recorder.trace_lost,
    }


def core_peak(device: int) -> dict[str, int]:
    """Most memory that a device lent to the process, and that its tensors took of it."""
    import ctypes

    library = core()
    library.ga_vnpu_peak_memory.restype = ctypes.c_int64
    torch = sys.modules.get("torch")
    npu = getattr(torch, "npu", None)
    tensors = int(npu.max_memory_allocated(device)) if npu is not None and npu.is_initialized() else 0
    return {"device": device, "reserved": int(library.ga_vnpu_peak_memory(device)), "tensors": tensors}
