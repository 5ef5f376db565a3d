"""What the tests of operators share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from gallium.vnpu.loader import call_counts


@contextmanager
def called() -> Iterator[set[str]]:
    """Yields a set that holds, when the block has ended, the CANN functions that were called in it."""
    names: set[str] = set()
    before = call_counts()
    yield names
    names.update(name for name, count in call_counts().items() if count > before[name])
