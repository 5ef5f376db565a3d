"""What a piece of code asks of the virtual NPU: kernels, copies, waits, and operators moved to the CPU."""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from gallium.vnpu.library import core_with_lock
from gallium.vnpu.loader import call_counts
from gallium.vnpu.report.fallbacks import FallbackWatch


@dataclass
class Seen:
    """Filled when the block has ended."""

    kernels: Counter[str] = field(default_factory=Counter)  # CANN's functions and how often each was called
    events: Counter[str] = field(default_factory=Counter)  # "copy host to device", "wait for a stream", …

    def count(self, kind: str) -> int:
        """How many events begin with these words: "copy", "wait", "CPU fallback"."""
        return sum(number for what, number in self.events.items() if what.startswith(kind))


@contextmanager
def watched() -> Iterator[Seen]:
    """Observe what the block does, as the report of `gallium npu run --report` does for a whole program."""
    seen = Seen()

    def notice(what: str, size: int) -> None:
        seen.events[what] += 1

    before = call_counts()
    _observe(notice)
    try:
        with FallbackWatch(notice):  # type: ignore[no-untyped-call]
            yield seen
    finally:
        _observe(_nothing)
        seen.kernels.update({name: n - before[name] for name, n in call_counts().items() if n > before[name]})


def _nothing(what: str, size: int) -> None:
    """An observer that is told and forgets."""


def _observe(notice: object) -> None:
    python = core_with_lock()
    python.ga_vnpu_set_observer.argtypes = [ctypes.py_object]
    python.ga_vnpu_set_observer.restype = None
    python.ga_vnpu_set_observer(notice)
