"""A model in rank processes: starts them, hands them their steps, and starts them again when one is lost."""

from __future__ import annotations

import logging
import os
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from gallium.engine.loading import Progress
from gallium.engine.processes import RankProcesses
from gallium.engine.rank_messages import Loaded, MakeCaches, Order, Ready
from gallium.engine.rank_messages import Progress as RankProgress
from gallium.engine.runner import NOTHING, LaneStep, Runner, StepResult
from gallium.errors import EngineDead, GalliumError, RankLost
from gallium.ops.handles import Placement
from gallium.settings import EngineSettings

log = logging.getLogger("gallium.engine")
COMMAND = (sys.executable, "-P", "-m", "gallium.engine.rank")  # -P: the working directory may hold a select.py
PATIENCE_S = 600.0  # the longest silence of a rank: a first step may have to compile its kernels
MOST_RESTARTS = 3  # in a row: before the ranks have run for STEADY_S
STEADY_S = 60.0


class RankRunner(Runner):
    """`settings.world` processes, in `settings.groups` lanes of `settings.tp` ranks."""

    def __init__(
        self,
        path: Path,
        backend: str,
        settings: EngineSettings,
        *,
        command: Sequence[str] = COMMAND,
        patience_s: float = PATIENCE_S,
    ) -> None:
        threads = settings.threads or max(1, _cores() // settings.world)
        self._settings = replace(settings, threads=threads)
        self._path = str(path)
        self._backend = backend
        self._command = command
        self._patience_s = patience_s
        self._notify: Callable[[], None] = lambda: None
        self._processes: RankProcesses | None = None
        self._caches: MakeCaches | None = None
        self._ready_since = 0.0
        self._restarts = 0  # in a row
        self._interrupted = False

    # -- starting ---------------------------------------------------------------------

    def load(self, progress: Progress | None = None) -> list[Loaded]:
        """Start the processes and let them load; what each has. `progress` follows the slowest.

        Raises what a rank refuses, naming it, and EngineDead if one ends; none is left then.
        """
        orders = [
            Order(self._path, self._backend, self._settings, placement)
            for placement in placements(self._settings, f"tcp://127.0.0.1:{_free_port()}")
        ]
        processes = RankProcesses(
            self._command,
            len(orders),
            threads=self._settings.threads or 1,
            patience_s=self._patience_s,
            notify=lambda: self._notify(),
        )
        self._processes = processes
        if self._interrupted:
            processes.fail("it was shut down")
        try:
            for rank, order in enumerate(orders):
                processes.send([rank], order)
            loaded: dict[int, Loaded] = {}
            done = dict.fromkeys(range(len(orders)), 0)
            while len(loaded) < len(orders):
                rank, message = processes.receive(done.keys() - loaded.keys())
                if isinstance(message, Loaded):
                    loaded[rank] = message
                elif isinstance(message, RankProgress):
                    slowest = min(done.values())
                    done[rank] = message.done
                    if progress is not None and min(done.values()) > slowest:
                        progress(min(done.values()), message.total)
            return [loaded[rank] for rank in range(len(orders))]
        except BaseException:  # Ctrl-C among them
            processes.stop(now=True)
            raise

    def make_caches(self, num_blocks: int, block_size: int) -> None:
        """Give every rank its KV cache; then steps can run. Raises as `load`."""
        self._caches = MakeCaches(num_blocks, block_size)
        processes, ranks = self._started(), range(self._settings.world)
        try:
            processes.send(ranks, self._caches)
            ready: set[int] = set()
            while len(ready) < len(ranks):
                rank, message = processes.receive(set(ranks) - ready)
                if isinstance(message, Ready):
                    ready.add(rank)
        except BaseException:  # Ctrl-C among them
            processes.stop(now=True)
            raise
        self._ready_since = time.monotonic()

    # -- Runner -------------------------------------------------------------------------

    def run(self, lanes: Sequence[LaneStep | None]) -> list[StepResult]:
        """See Runner. A lane without work takes part if experts are exchanged between lanes."""
        processes, tp = self._started(), self._settings.tp
        results = [NOTHING] * len(lanes)
        awaited = set()
        try:
            for number, lane in enumerate(lanes):
                if lane is not None or self._settings.ep > 1:
                    processes.send(range(number * tp, (number + 1) * tp), lane)
                if lane is not None:
                    awaited.add(number * tp)
            while awaited:
                rank, message = processes.receive(awaited)
                results[rank // tp] = message
                awaited.remove(rank)
        except RankLost:
            raise
        except GalliumError as refusal:
            raise processes.lost or refusal from None
        return results

    @property
    def lost(self) -> RankLost | None:
        """See Runner."""
        return self._processes.lost if self._processes is not None else None

    def watch(self, notify: Callable[[], None]) -> None:
        """See Runner."""
        self._notify = notify

    def restart(self, why: RankLost) -> None:
        """See Runner. A start whose ranks are lost is tried again; one that a rank refuses would be refused again."""
        assert self._caches is not None
        if time.monotonic() - self._ready_since >= STEADY_S:
            self._restarts = 0
        while True:
            self._restarts += 1
            if self._restarts > MOST_RESTARTS:
                raise EngineDead(f"{why}: loss {self._restarts} in a row, so the engine does not start again")
            self.close()
            try:
                self.load()
                self.make_caches(self._caches.num_blocks, self._caches.block_size)
                return
            except RankLost as lost:
                if self._interrupted:
                    raise
                log.error("%s while the engine restarted", lost)
                why = lost
            except GalliumError as refusal:
                raise EngineDead(f"{why}, and the restart failed: {refusal.message.rstrip('.')}") from None

    def interrupt(self) -> None:
        """See Runner. There is no way back."""
        self._interrupted = True
        if self._processes is not None:
            self._processes.fail("it was shut down")

    def close(self) -> None:
        """End the processes."""
        if self._processes is not None:
            self._processes.stop()

    def _started(self) -> RankProcesses:
        assert self._processes is not None, "load comes first"
        return self._processes


def placements(settings: EngineSettings, rendezvous: str = "") -> list[Placement]:
    """The place of every rank."""
    return [Placement(rank, settings.tp, settings.groups, settings.ep, rendezvous) for rank in range(settings.world)]


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def _cores() -> int:
    """The cores that this process may use."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
