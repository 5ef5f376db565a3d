"""One generation of rank processes: started, listened to, watched and ended. It never polls.

A thread per process waits for its end. Whoever waits for messages waits for a bell too, which the first loss rings.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Collection, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, NoReturn

from gallium.engine.rank_messages import Failed
from gallium.errors import RankLost, UsageError

log = logging.getLogger("gallium.engine")
ROOT_CAUSE_S = 0.5  # when a rank fails, others that lost it fail too; the one that ended is soon known by its exit
LAST_WORDS_S = 20.0  # for ranks to end by themselves, with what they write at their exit


class RankProcesses:
    """`count` processes running `command`, each with a socket to this one. Numbers are ranks."""

    def __init__(
        self, command: Sequence[str], count: int, *, threads: int, patience_s: float, notify: Callable[[], None]
    ) -> None:
        """`notify` is called, in any thread, when a process is lost; `patience_s` is the longest silence."""
        if os.name != "posix":
            raise UsageError("several ranks need Linux or macOS: leave out --tp, --dp and --ep.")
        self._patience_s = patience_s
        self._notify = notify
        self._lock = threading.Lock()
        self._reason: str | None = None
        self._ending = False
        self._rang = threading.Event()
        self._bell, self._ring = socket.socketpair()
        lifeline, self._life = os.pipe()  # our end closes with this process, whatever ends it
        self.processes: list[subprocess.Popen[bytes]] = []
        self._connections: list[Connection] = []
        self._watchers: list[threading.Thread] = []
        try:
            for rank in range(count):
                self._start(rank, command, lifeline, threads)
        except BaseException:
            self.stop(now=True)
            raise
        finally:
            os.close(lifeline)

    def _start(self, rank: int, command: Sequence[str], lifeline: int, threads: int) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            # A rank that has stopped reading must not stop us for ever.
            seconds = max(1, int(self._patience_s))
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", seconds, 0))
            self._connections.append(Connection(ours.detach()))
            environment = {"OMP_NUM_THREADS": str(threads), **os.environ}
            process = subprocess.Popen(
                [*command, str(theirs.fileno()), str(lifeline)],
                stdin=subprocess.DEVNULL,
                stdout=2,  # standard output belongs to the answers
                pass_fds=(theirs.fileno(), lifeline),
                env=environment,
                start_new_session=True,  # Ctrl-C is for us; we end the ranks
            )
        self.processes.append(process)
        watcher = threading.Thread(target=self._watch, args=(rank, process), name=f"gallium-rank-{rank}", daemon=True)
        self._watchers.append(watcher)
        watcher.start()

    def _watch(self, rank: int, process: subprocess.Popen[bytes]) -> None:
        code = process.wait()
        if not self._ending:
            self.fail(f"rank {rank} ended with {_code(code)}")

    # -- any thread -------------------------------------------------------------------

    @property
    def lost(self) -> RankLost | None:
        """Why these processes are of no use any more, or None."""
        return None if self._reason is None else RankLost(self._reason)

    def fail(self, reason: str) -> None:
        """These processes are lost. The first reason counts."""
        with self._lock:
            if self._reason is not None or self._ending:
                return
            self._reason = reason
            self._ring.send(b"!")
            self._rang.set()
        self._notify()

    # -- the engine's thread ------------------------------------------------------------

    def send(self, ranks: Collection[int], message: object) -> None:
        """Send one message to some ranks. Raises RankLost."""
        payload = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
        for rank in ranks:
            try:
                self._connections[rank].send_bytes(payload)
            except OSError as cause:  # closed, or full for the whole time
                self._lose(f"rank {rank} does not take orders ({cause})")

    def receive(self, ranks: Collection[int]) -> tuple[int, Any]:
        """(rank, message): the next message of any rank. `ranks` are those that have to say something.

        Raises RankLost if one is lost, has failed by mistake, or is silent for too long; the error of a rank that
        refuses, which names it.
        """
        heard = wait([*self._connections, self._bell], self._patience_s)
        for rank, connection in enumerate(self._connections):
            if connection in heard:
                return rank, self._read(rank, connection)
        if not heard:
            who = ", ".join(map(str, sorted(ranks)))
            self._lose(f"rank {who} did not answer for {self._patience_s:g} s")
        assert self._reason is not None  # it was the bell
        raise RankLost(self._reason)

    def _read(self, rank: int, connection: Connection) -> Any:
        try:
            message = connection.recv()
        except (EOFError, OSError):
            self._lose(f"rank {rank} closed its connection")
        if not isinstance(message, Failed):
            return message
        if not self._rang.wait(ROOT_CAUSE_S):
            error = message.error(rank)
            self.fail(f"rank {rank} failed with {message.reason}")
            if error is not None:
                raise error
            log.error("rank %d failed:\n%s", rank, message.trace)
        assert self._reason is not None
        raise RankLost(self._reason)

    def _lose(self, reason: str) -> NoReturn:
        """Raises RankLost, with the exit of a process as the reason if there is one."""
        self._rang.wait(ROOT_CAUSE_S)
        self.fail(reason)
        assert self._reason is not None
        raise RankLost(self._reason)

    def stop(self, *, now: bool = False) -> None:
        """End all processes, by themselves if they can, and wait for them. Safe to call again."""
        with self._lock:
            self._ending = True
        for connection in self._connections:
            with contextlib.suppress(OSError):
                connection.close()  # ends a rank that waits for orders
        if not now and self._reason is None:
            deadline = time.monotonic() + LAST_WORDS_S
            for watcher in self._watchers:
                watcher.join(max(0.0, deadline - time.monotonic()))
        for process in self.processes:
            if process.poll() is None:
                process.kill()
        for watcher in self._watchers:
            watcher.join()
        if self._life >= 0:
            os.close(self._life)
            self._life = -1
        self._bell.close()
        self._ring.close()


def _code(code: int) -> str:
    """How a process ended, in words."""
    if code >= 0:
        return f"exit code {code}"
    with contextlib.suppress(ValueError):
        return f"signal {-code} ({signal.Signals(-code).name})"
    return f"signal {-code}"
