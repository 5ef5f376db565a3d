"""What a program did on the virtual NPU: operators, copies, synchronisations, memory, fallbacks."""

from __future__ import annotations


def begin() -> None:
    """Start to observe, if a report was asked for (GALLIUM_VNPU_REPORT)."""
