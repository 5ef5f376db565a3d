"""`gallium serve` in a process of its own, as its clients and its operator see it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import psutil

BACKEND = "cpu"
READY = re.compile(r" is ready at (http://\S+)/v1 ")
PATIENCE_S = 60  # a guard against tests that hang, no expectation


def patiently(complaint: str) -> Iterator[None]:
    """Yields, with pauses, until patience is over."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        yield
        time.sleep(0.02)
    raise AssertionError(complaint)


def idle(engine: dict[str, int]) -> bool:
    """Whether an engine has nothing to do, by its figures."""
    return engine["running"] == engine["waiting"] == 0


@dataclass
class Served:
    """A running server."""

    process: subprocess.Popen[str]
    url: str = ""
    lines: list[str] = field(default_factory=list)  # of standard error

    def health(self) -> dict[str, Any]:
        """The body of /health."""
        body: dict[str, Any] = httpx.get(self.url + "/health", timeout=PATIENCE_S).json()
        return body

    def settled(self) -> dict[str, Any]:
        """/health as soon as nothing is open and nothing runs any more."""
        bodies = (self.health() for _ in patiently("the server is still busy"))
        return next(body for body in bodies if not body["open_requests"] and idle(body["engine"]))

    def wait_for_line(self, part: str, end: str = "") -> None:
        """Until a line of standard error contains `part` and ends with `end`."""
        for _ in patiently(f"{part!r} is not in {self.lines}"):
            if any(part in line and line.endswith(end) for line in self.lines):
                return

    def memory(self) -> int:
        """Resident bytes."""
        found: int = psutil.Process(self.process.pid).memory_info().rss
        return found


@contextmanager
def served(*args: str, backend: str = BACKEND) -> Iterator[Served]:
    """`gallium serve` with these arguments, on a free port; at the end it must stop cleanly."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GALLIUM_")}
    command = [sys.executable, "-m", "gallium.cli.main", "serve", *args, "--backend", backend, "--port", "0"]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    server = Served(process)
    known = threading.Event()  # whether it gets ready

    def read() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            server.lines.append(line.rstrip("\n"))
            if found := READY.search(line):
                server.url = found[1]
                known.set()
        known.set()

    reader = threading.Thread(target=read)
    reader.start()
    try:
        assert known.wait(PATIENCE_S) and server.url, server.lines
        yield server
        server.settled()
        process.terminate()
        assert process.wait(PATIENCE_S) == 0, server.lines
    finally:
        process.kill()
        process.wait()
        reader.join()
        assert process.stderr is not None
        process.stderr.close()
    assert not [line for line in server.lines if "Traceback" in line], server.lines
    assert server.lines[-1] == "stopped."
