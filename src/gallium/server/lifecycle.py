"""Starts and stops the HTTP server: ready means ready, and stopping lets open requests finish."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from types import FrameType

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

log = logging.getLogger("gallium.server")
KEEP_ALIVE_S = 30  # for connections between two requests
LAST_WORDS_S = 5  # after the grace time, for errors to reach their clients
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Server(uvicorn.Server):
    """uvicorn on a socket that is already open.

    On the first SIGINT or SIGTERM it stops accepting; open requests have `grace_s` to finish, then
    `on_grace_over` must end them. A second SIGINT ends the grace time, a third one waits for nobody. The signals
    are not raised again afterwards: the caller still has an engine to close.
    """

    def __init__(
        self,
        app: ASGIApp,
        sock: socket.socket,
        *,
        grace_s: float,
        on_ready: Callable[[], None],
        on_grace_over: Callable[[], None],
    ) -> None:
        config = uvicorn.Config(
            _quiet_when_cancelled(app),
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=int(grace_s) + LAST_WORDS_S,
        )
        super().__init__(config)
        self._sock = sock
        self._grace_s = grace_s
        self._on_ready = on_ready
        self._on_grace_over = on_grace_over
        self._hurries = False

    def run_until_stopped(self) -> None:
        """Serve; returns after a clean stop."""
        asyncio.run(self.serve(sockets=[self._sock]))

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn, then say so."""
        await super().startup(sockets)
        if self.started:
            self._on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn, with the grace time."""
        if self.server_state.tasks:
            log.info("stopping: open requests have %g s to end in; another Ctrl-C ends them now", self._grace_s)
        timer = asyncio.get_running_loop().call_later(self._grace_s, self._on_grace_over)
        try:
            await super().shutdown(sockets)
        finally:
            timer.cancel()

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Handle the signals while serving; only the main thread can."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {which: signal.signal(which, self.handle_exit) for which in SIGNALS}
        try:
            yield
        finally:
            for which, handler in before.items():
                signal.signal(which, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """First signal: stop gently. SIGINT again: end open requests now; and again: leave them."""
        if self.should_exit and sig == signal.SIGINT:
            self.force_exit = self._hurries
            self._hurries = True
            asyncio.get_running_loop().call_soon_threadsafe(self._on_grace_over)
        self.should_exit = True


def _quiet_when_cancelled(app: ASGIApp) -> ASGIApp:
    """`app`; a request that the stopping server gives up is no bug, and needs no traceback in the log."""

    async def quiet(scope: Scope, receive: Receive, send: Send) -> None:
        with suppress(asyncio.CancelledError):
            await app(scope, receive, send)

    return quiet
