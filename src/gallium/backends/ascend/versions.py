"""What Ascend needs on a machine, looked up without starting anything: torch_npu, torch, CANN, driver, chips."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from gallium.backends.ascend.records import DATA

INSTALL = 'pip install "gallium[ascend]"'
CANN_HOMES = ("usr/local/Ascend/cann", "usr/local/Ascend/ascend-toolkit/latest", "usr/local/Ascend/nnae/latest")
CANN_VARIABLES = ("ASCEND_HOME_PATH", "ASCEND_TOOLKIT_HOME")
VERSION_FILES = ("*-linux/ascend_toolkit_install.info", "ascend_*_install.info", "version.cfg", "*/version.info")
DRIVER_FILE = "usr/local/Ascend/driver/version.info"
_VERSION = re.compile(r"version[^=\n]*=\s*\[?(?:[^\n:\]]*:)?([0-9][^\s:\]]*)", re.IGNORECASE)
_NUMBERS = re.compile(r"(\d+)\.(\d+)(?:\.(\d+)|\.(RC)(\d+))?", re.IGNORECASE)


class Release(NamedTuple):
    """One version of torch_npu and what goes with it; `listed`: whether its makers' list names it."""

    torch_npu: str
    torch: str
    cann: str
    pythons: tuple[str, ...]
    listed: bool


class Cann(NamedTuple):
    """A CANN on this machine; the version is "" where no file tells it."""

    home: Path
    version: str


@cache
def releases() -> dict[str, Release]:
    """All known versions of torch_npu, from data/versions.tsv."""
    text = (DATA / "versions.tsv").read_text(encoding="utf-8")
    rows = (line.split("\t") for line in text.splitlines() if not line.startswith("#"))
    return {row[0]: Release(row[0], row[1], row[2], tuple(row[3].split()), row[4] == "1") for row in rows}


@dataclass(frozen=True)
class Machine:
    """Where to look: the file system's root and the environment, which tests replace."""

    root: Path
    environment: Mapping[str, str]

    @staticmethod
    def this() -> Machine:
        """The real one."""
        return Machine(Path("/"), os.environ)

    def chips(self) -> int:
        """How many chips the driver shows, less those that ASCEND_RT_VISIBLE_DEVICES hides."""
        found = len(list((self.root / "dev").glob("davinci[0-9]*")))
        visible = self.environment.get("ASCEND_RT_VISIBLE_DEVICES", "").strip()
        return min(found, len(visible.split(","))) if visible else found

    def cann(self) -> Cann | None:
        """The CANN that the environment names, else one in a usual place."""
        named = [Path(self.environment[name]) for name in CANN_VARIABLES if self.environment.get(name)]
        for home in (*named, *(self.root / home for home in CANN_HOMES)):
            if home.is_dir():
                return Cann(home, _version_in(home))
        return None

    def driver(self) -> str:
        """The driver's version, "" if no file tells it."""
        return _version_of(self.root / DRIVER_FILE)

    def missing(self) -> list[str]:
        """Everything that keeps a real chip from being used, one line each, with the cure."""
        found = []
        if not self.chips():
            found.append(
                "no Ascend chip is here (/dev/davinci0): install the driver, in a container pass "
                "--device /dev/davinci0, or add --virtual to try without a chip"
            )
        found += missing_packages()
        cann = self.cann()
        if cann is None:
            found.append("CANN is not installed: see https://www.hiascend.com/cann/download")
        elif not self.environment.get("ASCEND_OPP_PATH"):
            found.append(f"CANN's environment is not set: run `source {_set_env(cann.home)}`")
        elif problem := _too_old(cann):
            found.append(problem)
        return found


def installed(package: str) -> str:
    """The version of a Python package without its local part, "" if it is not installed."""
    try:
        return metadata.version(package).split("+")[0]
    except metadata.PackageNotFoundError:
        return ""


def release_of(torch_npu: str) -> Release:
    """What goes with a version of torch_npu; one that the table lacks goes with the torch of the same number."""
    return releases().get(torch_npu) or Release(torch_npu, torch_npu.split(".post")[0], "", (), False)


def missing_packages() -> list[str]:
    """Why torch_npu cannot be imported by this Python, one line each, with the cure."""
    torch_npu, torch = installed("torch_npu"), installed("torch")
    if not torch_npu:
        return [f"torch_npu is not installed: {INSTALL}"]
    release = release_of(torch_npu)
    if torch != release.torch:
        found = f"torch {torch} is installed" if torch else "torch is not installed"
        return [f"torch_npu {torch_npu} needs torch {release.torch}, but {found}: pip install torch=={release.torch}"]
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    if release.pythons and python not in release.pythons:
        return [f"torch_npu {torch_npu} is made for Python {', '.join(release.pythons)}, this is {python}"]
    return []


def remark(cann: Cann) -> str:
    """What the list of versions says of torch_npu with this CANN, for a report."""
    release = release_of(installed("torch_npu"))
    if not cann.version:
        return "not checked against torch_npu's list of versions"
    if not release.listed:
        return f"torch_npu {release.torch_npu} is not on its makers' list of versions yet"
    same = _number(cann.version) == _number(release.cann)
    return "as torch_npu's list says" if same else f"newer than the {release.cann} of torch_npu's list"


def _too_old(cann: Cann) -> str:
    release = release_of(installed("torch_npu"))
    if not cann.version or not release.cann or _number(cann.version) >= _number(release.cann):
        return ""
    fitting = next((r for r in releases().values() if _number(r.cann) <= _number(cann.version)), None)
    other = f", or pip install torch=={fitting.torch} torch_npu=={fitting.torch_npu}" if fitting else ""
    return (
        f"torch_npu {release.torch_npu} needs CANN {release.cann}, but {cann.version} is installed: update CANN{other}"
    )


def _number(version: str) -> tuple[int, int, int, int]:
    """In order: 8.3.RC1 < 8.3.0 < 8.3.1."""
    found = _NUMBERS.match(version)
    if found is None:
        return 0, 0, 0, 0
    major, minor, patch, candidate, number = found.groups()
    return int(major), int(minor), -1 if candidate else int(patch or 0), int(number or 0)


def _version_in(home: Path) -> str:
    paths = (path for pattern in VERSION_FILES for path in sorted(home.glob(pattern)))
    return next((version for version in map(_version_of, paths) if version), "")


def _version_of(path: Path) -> str:
    try:
        found = _VERSION.search(path.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return ""
    return found.group(1) if found else ""


def _set_env(home: Path) -> Path:
    """CANN's script of settings, which stands beside or above its home."""
    return next(
        (path for path in (home / "set_env.sh", home.parent / "set_env.sh") if path.exists()), home / "set_env.sh"
    )
