"""A pause on the device, which has no time of its own here."""

from __future__ import annotations

from gallium.vnpu.registry import Illegal, op


@op("Sleep")
def sleep(cycles: tuple[int, ...]) -> None:
    """Nothing but a check: device time is not emulated, and the order of operators is kept without it."""
    if len(cycles) != 1 or cycles[0] <= 0:
        raise Illegal("cycles", cycles, "one positive number")
