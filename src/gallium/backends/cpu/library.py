"""Loads the native library, checks that it fits, and chooses instruction-set level and thread count."""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from gallium.backends.cpu.cores import find_cores
from gallium.errors import BackendError, UsageError
from gallium.settings import environment

ABI_VERSION = 5
FILE_NAME = "libgallium_cpu.dylib" if sys.platform == "darwin" else "libgallium_cpu.so"
MAX_THREADS = 256
PINNING = ("auto", "on", "off")
"""Values of GALLIUM_PIN; cores.py says what they do."""


def find() -> Path:
    """The library's file, GALLIUM_CPU_LIBRARY if that is set. Raises BackendError when there is none."""
    chosen = environment("GALLIUM_CPU_LIBRARY")
    if chosen is not None:
        if not Path(chosen).is_file():
            raise BackendError(f"there is no native library at {chosen} (GALLIUM_CPU_LIBRARY).")
        return Path(chosen)
    package = find_spec("gallium")
    for folder in (package.submodule_search_locations or ()) if package else ():
        path = Path(folder) / "_native" / FILE_NAME
        if path.exists():
            return path
    raise BackendError(
        "the native kernels are missing from this installation: reinstall Gallium "
        "(`pip install --force-reinstall gallium`), or in a source checkout run `make native`."
    )


@cache
def load() -> ctypes.CDLL:
    """The library, loaded once, at the level and thread count that the environment asks for.

    Raises BackendError when it is missing, damaged or of another version, and UsageError for a GALLIUM_CPU_LEVEL,
    GALLIUM_THREADS or GALLIUM_PIN that this machine does not have.
    """
    path = find()
    try:
        library = ctypes.CDLL(str(path))
        found = library.ga_abi_version()
    except (OSError, AttributeError) as cause:
        raise BackendError(f"the native kernels at {path} do not load: {cause}. Reinstall Gallium.") from cause
    if found != ABI_VERSION:
        raise BackendError(
            f"the native kernels at {path} have ABI version {found}, not {ABI_VERSION}: reinstall Gallium."
        )
    wanted = environment("GALLIUM_CPU_LEVEL")
    if wanted is not None:
        _set_level(library, wanted)
    _pin_threads(library)
    _set_threads(library, threads_wanted(None))
    return library


def best_level() -> str:
    """The best level of this machine."""
    return _level_names(load())[int(load().ga_best_level())]


def available_levels() -> tuple[str, ...]:
    """The levels that can be set here, weakest first, those that run in software included (see `is_emulated`)."""
    return _available(load())


def is_emulated(name: str) -> bool:
    """Whether this build runs a level in software: "amx-emulated", and "avx512" in the build of `make test-levels`."""
    return bool(load().ga_emulated(_level_names(load()).index(name)))


def level() -> str:
    """The level in use."""
    return _level_names(load())[int(load().ga_level())]


def set_level(name: str) -> None:
    """Use one level from now on. Raises UsageError if the machine does not have it. Not while a kernel runs."""
    _set_level(load(), name)


def threads() -> int:
    """Threads that kernels use."""
    return int(load().ga_threads())


def set_threads(count: int) -> None:
    """Use so many threads from now on. Not while a kernel runs."""
    _set_threads(load(), count)


def threads_wanted(asked: int | None) -> int:
    """`asked`, else GALLIUM_THREADS, else the cores that this process may use (cores.py)."""
    if asked is not None:
        return asked
    text = environment("GALLIUM_THREADS")
    if text is None:
        return usable_cores()
    if not text.isdigit() or not 1 <= int(text) <= MAX_THREADS:
        raise UsageError(f"GALLIUM_THREADS must be a number from 1 to {MAX_THREADS}, not {text!r}.")
    return int(text)


def usable_cores() -> int:
    """Physical cores by affinity, lowered by a cgroup quota."""
    return min(MAX_THREADS, find_cores().threads)


def _level_names(library: ctypes.CDLL) -> list[str]:
    """All levels of this architecture, weakest first; the index is the native code."""
    library.ga_level_name.restype = ctypes.c_char_p
    names: list[str] = []
    while (name := library.ga_level_name(len(names))) is not None:
        names.append(name.decode("ascii"))
    return names


def _available(library: ctypes.CDLL) -> tuple[str, ...]:
    return tuple(name for code, name in enumerate(_level_names(library)) if library.ga_has_level(code))


def _set_level(library: ctypes.CDLL, name: str) -> None:
    names = _level_names(library)
    if name not in names or library.ga_set_level(names.index(name)) != 0:
        known = ", ".join(_available(library))
        raise UsageError(
            f"instruction-set level {name!r} is not available here; choose from {known} (GALLIUM_CPU_LEVEL)."
        )


def pinned() -> tuple[int, ...]:
    """The CPUs of the kernels' threads as GALLIUM_PIN wants it; empty: wherever the system puts them."""
    wanted = environment("GALLIUM_PIN") or "auto"
    if wanted not in PINNING:
        raise UsageError(f"GALLIUM_PIN must be one of {', '.join(PINNING)}, not {wanted!r}.")
    return find_cores().pinned(wanted)


def _pin_threads(library: ctypes.CDLL) -> None:
    cpus = pinned()
    if cpus and library.ga_pin_threads((ctypes.c_int32 * len(cpus))(*cpus), len(cpus)) != 0:
        raise UsageError("this system cannot pin threads: leave out GALLIUM_PIN.")


def _set_threads(library: ctypes.CDLL, count: int) -> None:
    if library.ga_set_threads(count) != 0:
        raise UsageError(f"threads must be from 1 to {MAX_THREADS}, not {count}.")
