"""The library that holds all of CANN's symbols, and where it lies."""

from __future__ import annotations

import ctypes
from functools import cache
from importlib.util import find_spec
from pathlib import Path

CORE = "libgallium_cann.so"


@cache
def libraries() -> Path:
    """The folder of the emulated CANN. Raises RuntimeError if this build has none."""
    package = find_spec("gallium")
    for folder in (package.submodule_search_locations or ()) if package else ():  # an editable installation has two
        if (path := Path(folder) / "_native" / "vnpu").joinpath(CORE).exists():
            return path
    raise RuntimeError("this build of gallium has no virtual NPU (it is built on Linux only).")


@cache
def core() -> ctypes.CDLL:
    """The library that holds all of CANN's symbols; its functions run without the interpreter lock."""
    return ctypes.CDLL(str(libraries() / CORE), mode=ctypes.RTLD_GLOBAL)


@cache
def core_with_lock() -> ctypes.PyDLL:
    """The same library, for its functions that take Python objects."""
    return ctypes.PyDLL(str(libraries() / CORE))
