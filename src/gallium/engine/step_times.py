"""What steps of different widths cost on this machine, as it turns out."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import deque
from collections.abc import Iterable

KEPT = 7  # times of each class of widths; their median counts
STALE = 1000  # steps after which a class that did not occur is forgotten
GUESS = 0.05  # share of a step's time that one more token costs, until a second class is known
FOLLOW = 0.5  # how much of a change of one step is thought to be the pace of the machine
SUDDEN = 2.0  # a step that took more than so many times what was expected says no more than that


class StepTimes:
    """Medians of recent step times by width (tokens of the step), straight lines between them.

    A machine that is shared gets slower and faster as a whole. So times are kept as multiples of its pace, which every
    step tells anew: else widths that occur often would seem cheap or dear beside those that were seen a while ago.
    """

    def __init__(self) -> None:
        self._times: dict[int, deque[tuple[int, float]]] = {}
        self._last: dict[int, int] = {}  # class -> number of its last step
        self._steps = 0
        self._pace = 1.0
        self._fresh = False  # whether the two lists below are up to date
        self._widths: list[float] = []  # rising, and so are the medians
        self._medians: list[float] = []

    def observe(self, width: int, seconds: float) -> None:
        """Note one step."""
        self._steps += 1
        kind = _class(width)
        times = self._times.setdefault(kind, deque(maxlen=KEPT))
        if len(times) == KEPT and seconds > 0:
            change = seconds / (self._pace * _median(time for _, time in times))
            self._pace *= min(max(change, 1 / SUDDEN), SUDDEN) ** FOLLOW
        times.append((width, seconds / self._pace))
        self._last[kind] = self._steps
        self._fresh = False

    def expected(self, width: int) -> float:
        """Seconds of a step of `width` tokens; before the first step, in units of a step of one token."""
        if not self._fresh:
            self._refresh()
        if not self._widths:
            return 1 + GUESS * (width - 1)
        if len(self._widths) == 1:
            first, time = self._widths[0], self._medians[0]
            return self._pace * time * max(0.5, 1 + GUESS * (width - first))
        right = min(max(bisect_left(self._widths, width), 1), len(self._widths) - 1)
        w0, w1 = self._widths[right - 1], self._widths[right]
        t0, t1 = self._medians[right - 1], self._medians[right]
        slope = (t1 - t0) / (w1 - w0)
        return self._pace * max(t0 + slope * (width - w0), 0.5 * self._medians[0])

    def _refresh(self) -> None:
        for old in [kind for kind, last in self._last.items() if self._steps - last > STALE]:
            del self._times[old], self._last[old]
        self._widths, self._medians = [], []
        highest = 0.0
        for kind in sorted(self._times):
            seen = self._times[kind]
            highest = max(highest, _median(t for _, t in seen))
            self._widths.append(sum(w for w, _ in seen) / len(seen))
            self._medians.append(highest)
        self._fresh = True


def _median(times: Iterable[float]) -> float:
    """As `statistics` has it, whose import would take longer than a start can spare."""
    ordered = sorted(times)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def _class(width: int) -> int:
    """Small widths by themselves, larger ones four to a doubling."""
    return width if width < 8 else 8 + int(4 * math.log2(width / 8))
