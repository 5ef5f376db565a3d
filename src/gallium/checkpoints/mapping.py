"""Maps files read-only, so that only what somebody looks at is ever read, and lets go of what has been read."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import threading
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gallium.errors import CheckpointError

PREFETCHED = 32 << 20  # bytes asked for at a time
MADV_POPULATE_READ = 22  # of Linux; Python has no name for it
PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
PICKLE_DANGER = "opening a pickle can run any program, so Gallium does not"


def map_file(path: Path) -> mmap.mmap:
    """The file's bytes, sliced as `bytes` and viewed through NumPy. Raises CheckpointError if there are none."""
    try:
        if path.exists() and not path.is_file():
            raise CheckpointError(f"{path} is not a file.")
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as cause:
        raise CheckpointError(f"{path} cannot be read: {cause.strerror or cause}.") from cause
    except ValueError as cause:  # mmap's word for an empty file
        raise CheckpointError(f"{path} is empty: the download did not finish, fetch it again.") from cause


def prefetch(view: NDArray[np.uint8]) -> None:
    """Bring a mapped file in, in the background and from its beginning on, so that its readers need not wait.

    The memory is the file cache's own, in pages of 2 MiB where system and file allow it. Whatever the system refuses
    is not needed: the pages then come when they are read.
    """
    mapped = _mapping(view)
    if mapped is None or not hasattr(mmap, "MADV_HUGEPAGE"):  # not Linux
        return
    with contextlib.suppress(OSError):  # a system without huge pages
        mapped.madvise(mmap.MADV_HUGEPAGE)
    start = np.frombuffer(mapped, np.uint8).ctypes.data
    madvise = ctypes.CDLL(None).madvise  # ctypes lets other threads run meanwhile, mmap's own method does not
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]

    def populate(held: mmap.mmap) -> None:
        for at in range(0, len(held), PREFETCHED):
            if madvise(start + at, min(PREFETCHED, len(held) - at), MADV_POPULATE_READ):
                return  # a system before Linux 5.14

    threading.Thread(target=populate, args=(mapped,), name="gallium-prefetch", daemon=True).start()


def is_pickle(head: bytes) -> bool:
    """Whether a file begins like a PyTorch pickle: a zip archive or a bare pickle stream."""
    return head.startswith(PICKLE_STARTS)


def release_pages(views: Iterable[NDArray[np.uint8]]) -> None:
    """Let go of the memory that reading these views has brought in: it stays in the system's file cache.

    The views stay valid. Without this call a model that was read and packed counts twice in the process's memory.
    """
    if not hasattr(mmap, "MADV_DONTNEED"):  # not this system's way; it takes the pages back when memory gets short
        return
    for mapped in {id(m): m for m in map(_mapping, views) if m is not None}.values():
        mapped.madvise(mmap.MADV_DONTNEED)


def _mapping(view: NDArray[np.uint8]) -> mmap.mmap | None:
    """The mapped file under a view."""
    base: object = view
    while isinstance(base, np.ndarray):
        base = base.base
    if isinstance(base, memoryview):
        base = base.obj
    return base if isinstance(base, mmap.mmap) else None
