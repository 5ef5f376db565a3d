"""Collects what a program does on the virtual NPU while it runs."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from gallium.vnpu.report.places import place

MAX_TRACE = 200_000  # events kept for the trace; the counts go on
MAX_SHAPES = 50  # different shapes kept per operator


@dataclass
class OperatorUse:
    """All calls of one operator."""

    calls: int = 0
    bytes: int = 0
    operations: int = 0
    shapes: Counter[str] = field(default_factory=Counter)
    places: Counter[tuple[str, ...]] = field(default_factory=Counter)


@dataclass
class EventUse:
    """All copies, waits or moves to the CPU of one kind from one place."""

    count: int = 0
    bytes: int = 0


Event = tuple[str, tuple[str, ...]]


class Recorder:
    """Thread-safe; a body wrapped by `wrap` reports each of its calls."""

    def __init__(self) -> None:
        self.operators: dict[str, OperatorUse] = {}
        self.events: dict[Event, EventUse] = {}
        self.trace: list[dict[str, Any]] = []
        self.trace_lost = 0
        self._lock = threading.Lock()
        self._began = time.perf_counter()

    def wrap(self, name: str, body: Callable[..., None]) -> Callable[..., None]:
        """The body of operator `name`, observed."""
        from gallium.vnpu.report import work

        def observed(*args: Any) -> None:
            start = time.perf_counter()
            body(*args)
            shapes = work.describe(args)
            self._operator(name, shapes, work.bytes_of(args), work.operations_of(name, args), start)

        return observed

    def event(self, what: str, size: int) -> None:
        """A copy or a wait, told by the runtime; or a move of an operator to the CPU."""
        where = place()
        with self._lock:
            use = self.events.setdefault((what, where), EventUse())
            use.count += 1
            use.bytes += size
        self._add_trace(what, "runtime", time.perf_counter(), 0.0, {"bytes": size})

    def _operator(self, name: str, shapes: str, size: int, operations: int, start: float) -> None:
        where = place()
        with self._lock:
            use = self.operators.setdefault(name, OperatorUse())
            use.calls += 1
            use.bytes += size
            use.operations += operations
            use.places[where] += 1
            if shapes in use.shapes or len(use.shapes) < MAX_SHAPES:
                use.shapes[shapes] += 1
        self._add_trace(name, "operator", start, time.perf_counter() - start, {"tensors": shapes})

    def _add_trace(self, name: str, category: str, start: float, seconds: float, args: dict[str, Any]) -> None:
        if len(self.trace) >= MAX_TRACE:
            self.trace_lost += 1
            return
        self.trace.append(
            {
                "name": name,
                "cat": category,
                "ph": "X",
                "ts": (start - self._began) * 1e6,
                "dur": seconds * 1e6,
                "pid": 0,
                "tid": threading.get_native_id(),
                "args": args,
            }
        )
