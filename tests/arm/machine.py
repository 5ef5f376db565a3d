"""Builds the kernels and the driver for arm64, and starts them on one of QEMU's processors."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.arm.emulated import EmulatedLibrary

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "arm64"
TRIPLE = "aarch64-linux-gnu"
PROCESSORS = {"cortex-a53": "neon", "neoverse-n1": "dotprod", "max": "i8mm"}
"""QEMU's processors, and the best level of each: Armv8.0, 8.2 with dot products, and all that QEMU has."""


def missing() -> str:
    """What this machine lacks for these tests; "" if it has all."""
    tools = [name for name in (f"{TRIPLE}-g++", "qemu-aarch64", "cmake") if shutil.which(name, path=_path()) is None]
    return f"arm64 is not tested: {', '.join(tools)} not found (on Debian: g++-{TRIPLE}, qemu-user)" if tools else ""


def build() -> None:
    """Bring build/arm64 up to date: the library as a package would have it, and the driver."""
    BUILD.mkdir(parents=True, exist_ok=True)
    with (BUILD / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _run(
            "cmake", "-S", str(ROOT), "-B", str(BUILD), "-DCMAKE_BUILD_TYPE=Release",
            "-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64", f"-DCMAKE_CXX_COMPILER={TRIPLE}-g++",
            "-DCMAKE_CXX_FLAGS=-Werror",
        )  # fmt: skip
        _run("cmake", "--build", str(BUILD), "--parallel", "2", "--target", "gallium_cpu")
        source, driver = Path(__file__).with_name("driver.cpp"), BUILD / "driver"
        if not driver.exists() or driver.stat().st_mtime < source.stat().st_mtime:
            flags = ("-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror")
            _run(f"{TRIPLE}-g++", *flags, str(source), "-o", str(driver), "-ldl", "-pthread")


def start(processor: str) -> EmulatedLibrary:
    """The library on a processor, at its best level, with two threads."""
    library = EmulatedLibrary(
        ["qemu-aarch64", "-cpu", processor, "-L", f"/usr/{TRIPLE}", str(BUILD / "driver"), str(library_file())]
    )
    library.ga_set_threads(2)
    return library


def library_file() -> Path:
    """The library for arm64."""
    return BUILD / "native" / "libgallium_cpu.so"


def _path() -> str:
    """Where tools are looked for: those of the test environment first."""
    return os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "PATH": _path()})
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout[-4000:]}{done.stderr[-4000:]}")
