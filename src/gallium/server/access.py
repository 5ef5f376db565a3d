"""One line per request in the log, as plain ASGI middleware: who asked for what, how it ended, how long it took."""

from __future__ import annotations

import logging
import time
from urllib.parse import quote

from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger("gallium.access")


class LogRequests:
    """Writes the line when the answer is over: streams are timed to their end."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, then log it."""
        if scope["type"] != "http" or not log.isEnabledFor(logging.INFO):
            await self._app(scope, receive, send)
            return
        start = time.perf_counter()
        status = "failed"  # nothing was answered: a bug, which is logged elsewhere
        ended = False

        async def watched(message: Message) -> None:
            nonlocal status, ended
            if message["type"] == "http.response.start":
                status = str(message["status"])
            ended = message["type"] == "http.response.body" and not message.get("more_body", False)
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            client = scope.get("client")
            path = quote(scope["path"])  # a client must not be able to write lines of its own
            note = "" if ended or status == "failed" else " (the client left)"
            took = time.perf_counter() - start
            log.info("%s %s %s %s %.2f s%s", client[0] if client else "-", scope["method"], path, status, took, note)
