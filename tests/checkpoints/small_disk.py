"""A disk of a few megabytes, for tests that fill it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

NAMESPACE = ("unshare", "--map-root-user", "--mount")


def small_disk(place: Path, size: int) -> list[str]:
    """A command that runs another with a disk of `size` bytes at `place`, and afterwards lists its files on stderr."""
    place.mkdir()
    script = f'mount -t tmpfs -o size={size} none {place} && "$@"; code=$?; find {place} -type f >&2; exit $code'
    return [*NAMESPACE, "sh", "-c", script, "sh"]


def _can_mount() -> bool:
    try:
        done = subprocess.run([*NAMESPACE, "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True)
    except OSError:
        return False
    return done.returncode == 0


needs_small_disk = pytest.mark.skipif(not _can_mount(), reason="this machine lets nobody mount a disk of its own")
