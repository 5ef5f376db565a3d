"""Writes a folder whole or not at all: beside its place, under a name with this process's number, until it is whole."""

from __future__ import annotations

import errno
import glob
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gallium.errors import CheckpointError, UsageError

MARK = "config.json"  # what makes a folder a model


@contextmanager
def replacing_folder(folder: Path, *, overwrite: bool, keep: Path, needs: int) -> Iterator[Path]:
    """A fresh folder to fill, which becomes `folder` at the end; on any error it vanishes and `folder` is as before.

    `keep` must not be replaced: it is being read. `needs` are the bytes that will be written.
    Raises UsageError if `folder` is there and may not be replaced, CheckpointError if the disk says no.
    """
    check_target(folder, overwrite=overwrite)
    if folder.exists() and keep.resolve().is_relative_to(folder.resolve()):
        raise UsageError(f"{folder} is what is being read; it cannot be overwritten. Give another name.")
    fresh = folder.with_name(f".{folder.name}.{os.getpid()}.unfinished")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _sweep(folder)
        free = shutil.disk_usage(folder.parent).free
        if needs > free:
            raise CheckpointError(
                f"{folder} would take {needs:,} bytes, but only {free:,} are free: free some space, or write to "
                "another disk."
            )
        fresh.mkdir()
        yield fresh
        _swap(fresh, folder)
    except OSError as cause:
        raise CheckpointError(f"{folder} could not be written: {_reason(cause)}. Nothing was changed.") from cause
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def check_target(folder: Path, *, overwrite: bool) -> None:
    """Raise UsageError if `folder` is there and may not be replaced."""
    try:
        _check_target(folder, overwrite)
    except OSError as cause:  # a name too long, a folder that may not be read
        raise UsageError(f"{folder} cannot be written: {_reason(cause)}. Give another name.") from cause


def _check_target(folder: Path, overwrite: bool) -> None:
    if not folder.name:
        raise UsageError(f"{folder} cannot be the name of a new folder.")
    if not folder.exists() and not folder.is_symlink():
        return
    if folder.is_dir() and not any(folder.iterdir()):
        return
    if not folder.is_dir() or folder.is_symlink():
        raise UsageError(f"{folder} is not a folder of its own; give the name of a new one.")
    if not overwrite:
        raise UsageError(f"{folder} exists: give another name, or --force to overwrite it.")
    if not (folder / MARK).exists():
        raise UsageError(f"{folder} is not the folder of a model (no {MARK}), so it is not overwritten.")


def _sweep(folder: Path) -> None:
    """Delete what processes that were killed have left beside `folder`."""
    for left in folder.parent.glob(f".{glob.escape(folder.name)}.*.unfinished"):
        owner = left.name.split(".")[-2]
        if owner.isdecimal() and (int(owner) == os.getpid() or not _is_running(int(owner))):
            shutil.rmtree(left, ignore_errors=True)


def _is_running(process: int) -> bool:
    if os.name != "posix":  # elsewhere signal 0 would end it
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def _swap(fresh: Path, folder: Path) -> None:
    """Give `fresh` its name; what had it before is deleted only afterwards."""
    if not folder.exists():
        fresh.replace(folder)
        return
    old = fresh.with_suffix(".replaced")
    folder.replace(old)
    try:
        fresh.replace(folder)
    except OSError:
        old.replace(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _reason(cause: OSError) -> str:
    if cause.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full; free some space, or write to another disk"
    return cause.strerror or str(cause)
