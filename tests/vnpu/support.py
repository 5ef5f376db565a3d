"""What the tests of operators share."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

from gallium.vnpu.loader import core, function_indices


@contextmanager
def called() -> Iterator[set[str]]:
    """Yields a set that holds, when the block has ended, the CANN functions that were called in it."""
    names: set[str] = set()
    before = _counts()
    yield names
    names.update(name for name, count in _counts().items() if count > before[name])


def _counts() -> dict[str, int]:
    library = core()
    indices = function_indices(library)
    library.ga_vnpu_call_counts.restype = ctypes.POINTER(ctypes.c_uint64)
    counts = library.ga_vnpu_call_counts()
    return {name: counts[index] for name, index in indices.items()}
