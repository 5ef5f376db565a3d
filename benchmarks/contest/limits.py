"""What the machine can do at best, measured before and after what is compared with it: the better figure counts."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from gallium.ops.backend import choose, installed
from gallium.ops.machine import Measures

NAMES = {"bfloat16": "bf16", "int8": "int8", "int4": "int4"}


def measure_limits(threads: int) -> dict[str, Any]:
    """Bytes per second of reading, and operations per second by precision. Takes about a second."""
    backend = choose("cpu", installed())
    if not isinstance(backend, Measures):
        raise RuntimeError("the CPU backend does not measure its machine")
    found = backend.measure(threads)
    return {
        "at": datetime.now(UTC).strftime("%H:%M"),
        "read": found.read_bytes_per_s,
        "peak": {NAMES[name]: peak for name, peak in found.operations_per_s.items() if name in NAMES},
    }


def best(measured: list[dict[str, Any]]) -> dict[str, Any]:
    """Of each figure the best one; empty if nothing was measured."""
    if not measured:
        return {}
    peaks = {name: max(m["peak"][name] for m in measured) for name in measured[0]["peak"]}
    return {"read": max(m["read"] for m in measured), "peak": peaks}
