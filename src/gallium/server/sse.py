"""Server-sent events: framing, keep-alive comments, errors in mid-stream, and an end whatever happens."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

import msgspec
from starlette.types import Receive, Scope, Send

from gallium.errors import GalliumError
from gallium.server.failures import error_body
from gallium.server.generation import DisconnectedError, Generation, attended

log = logging.getLogger("gallium.server")
KEEP_ALIVE = b": keep-alive\n\n"
DONE = b"data: [DONE]\n\n"
HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # asks proxies not to collect events before passing them on
]
_encode = msgspec.json.Encoder().encode


def event(data: Any) -> bytes:
    """One event. JSON has no raw newline, so that one `data:` line is enough."""
    return b"data: " + _encode(data) + b"\n\n"


class EventStream:
    """An ASGI response that sends what `frames` yields, then [DONE]; an error becomes an event before it.

    Owns `generation`: it is cancelled when the client leaves or anything fails.
    """

    def __init__(self, frames: AsyncGenerator[bytes, None], generation: Generation, headers: Mapping[str, str]) -> None:
        self._frames = frames
        self._generation = generation
        self._headers = [*HEADERS, *((k.encode(), v.encode()) for k, v in headers.items())]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream to its end."""
        async with attended(self._generation, receive):
            await send({"type": "http.response.start", "status": 200, "headers": self._headers})
            try:
                async with aclosing(self._frames):
                    async for frame in self._frames:
                        await _send_body(send, frame)
                last = DONE
            except DisconnectedError:
                return
            except Exception as error:
                if not isinstance(error, GalliumError):
                    log.exception("a stream failed")
                last = event(error_body(error)) + DONE
            await _send_body(send, last)
            await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _send_body(send: Send, body: bytes) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": True})
