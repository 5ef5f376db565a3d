"""A contender as the contest sees it: a driver process that is asked one question at a time."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.machine import installed_environment

DRIVERS = Path(__file__).parent / "drivers"
ASK_LIMIT = 600.0  # seconds


class Refused(Exception):
    """The contender cannot do this; the message is the cell's content."""


class Process:
    """One driver in its contender's environment. `log` gets what the contender's libraries print."""

    def __init__(self, python: Path, driver: str, log: Path, environment: dict[str, str] | None = None) -> None:
        self.started = time.perf_counter()
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log = log.open("ab")
        self._process = subprocess.Popen(
            [str(python), str(DRIVERS / driver)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log,
            env=installed_environment() | (environment or {}), start_new_session=True,
        )  # fmt: skip
        self._rest = b""

    def load(self, plan: dict[str, Any], limit: float = ASK_LIMIT) -> dict[str, Any]:
        """Load a model up to its first token; the reply has `seconds` from the start of the process on."""
        reply = self._ask({"do": "load", **plan}, limit)
        return reply | {"seconds": time.perf_counter() - self.started}

    def ask(self, kind: str, limit: float = ASK_LIMIT, **asked: Any) -> float:
        """The figure that the driver answers with, mostly tokens per second. Raises Refused."""
        return float(self._ask({"do": kind, **asked}, limit)["value"])

    @property
    def alive(self) -> bool:
        """Whether it can be asked again."""
        return self._process.poll() is None

    def peak_memory(self) -> int:
        """Bytes that this process and its children have had in memory at most, each for itself."""
        return sum(_high_water(pid) for pid in _family(self._process.pid))

    def close(self) -> None:
        """End the driver and what it started."""
        if self._process.poll() is None:
            with suppress(OSError, subprocess.TimeoutExpired):
                self._send({"do": "quit"})
                self._process.wait(20)
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(OSError):
                if pipe is not None:
                    pipe.close()
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._log.close()

    def _send(self, asked: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asked).encode() + b"\n")
        self._process.stdin.flush()

    def _ask(self, asked: dict[str, Any], limit: float) -> dict[str, Any]:
        try:
            self._send(asked)
            reply: dict[str, Any] = json.loads(self._line(limit))
        except BrokenPipeError:
            raise Refused(self._end()) from None
        if "error" in reply:
            raise Refused(reply["error"])
        return reply

    def _line(self, limit: float) -> bytes:
        assert self._process.stdout is not None
        end = time.monotonic() + limit
        while b"\n" not in self._rest:
            ready, _, _ = select.select([self._process.stdout], [], [], max(0.0, end - time.monotonic()))
            if not ready:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()
                raise Refused(f"no answer within {limit:.0f} s")
            piece = os.read(self._process.stdout.fileno(), 1 << 16)
            if not piece:
                raise Refused(self._end())
            self._rest += piece
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    def _end(self) -> str:
        """How the process ended, in words."""
        code = self._process.wait()
        if code >= 0:
            return f"ended with code {code}"
        return f"ended by {signal.Signals(-code).name}"


def _family(pid: int) -> list[int]:
    """The process and all that descend from it."""
    children: dict[int, list[int]] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # ended meanwhile
        children.setdefault(int(fields[1]), []).append(int(status.parent.name))
    found, waiting = [], [pid]
    while waiting:
        found.append(one := waiting.pop())
        waiting += children.get(one, [])
    return found


def _high_water(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)
