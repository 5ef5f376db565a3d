"""Starts programs on the virtual NPU in processes of their own, as a user does."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

HERE = Path(__file__).parent
GALLIUM = Path(sys.executable).with_name("gallium")
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node")


def environment(**more: str) -> dict[str, str]:
    """This process's environment without what makes it a virtual NPU program, on one thread."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GALLIUM_VNPU")}
    return kept | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"} | more


def start(*arguments: object, stdin: str | None = None, **variables: str) -> subprocess.Popen[str]:
    """`gallium npu ...`, running."""
    process = subprocess.Popen(
        [GALLIUM, "npu", *map(str, arguments)], env=environment(**variables), text=True,
        stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    if stdin is not None and process.stdin is not None:
        process.stdin.write(stdin)
        process.stdin.close()
        process.stdin = None
    return process


def finish(process: subprocess.Popen[str], seconds: float = 240) -> subprocess.CompletedProcess[str]:
    """What it printed, when it has ended."""
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        raise AssertionError(f"no end after {seconds} s\n{out}{err}") from None
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def run(*arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    """`gallium npu ...` that ends well."""
    done = finish(start(*arguments, **variables))
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def printed(text: str, label: str) -> list[str]:
    """The words after `label:` on its line."""
    for line in text.splitlines():
        if line.startswith(label + ":"):
            return line.removeprefix(label + ":").split()
    raise AssertionError(f"no line {label!r} in:\n{text}")


def numbers(words: Iterable[str]) -> list[float]:
    return [float(word) for word in words]
