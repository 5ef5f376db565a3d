"""What keeps a start short: names that are imported on first use, and a garbage collector that waits."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any


def on_first_use(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """The `__getattr__` of a package whose names live in the modules `homes` says, imported when one is asked for."""

    def find(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        with uncollected():
            return getattr(import_module(homes[name]), name)

    return find


@contextmanager
def uncollected() -> Iterator[None]:
    """Let nothing be collected meanwhile: imports and loading make many objects, and nearly all of them stay.

    At the end they are old, as if collections had found them alive: else the next one would look at all of them.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            if not gc.get_freeze_count():  # else somebody else has frozen objects, and wants them to stay so
                gc.freeze()
                gc.unfreeze()  # both together move everything into the oldest generation
            gc.enable()
