"""create_app and serve: the routes, the middleware, and a model behind a port."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.routing import Route

from gallium.errors import EngineDead, GalliumError
from gallium.server.access import LogRequests
from gallium.server.auth import RequireApiKey
from gallium.server.chat import chat_completions
from gallium.server.completions import completions
from gallium.server.failures import on_bug, on_disconnect, on_gallium_error, on_http_error
from gallium.server.generation import DisconnectedError
from gallium.server.health import health
from gallium.server.lifecycle import Server
from gallium.server.listener import listen, url_of
from gallium.server.models import get_model, list_models
from gallium.server.service import Service
from gallium.server.settings import ServerSettings
from gallium.server.tokenize import detokenize, tokenize

if TYPE_CHECKING:
    from gallium.engine.assembly import Assembly

Endpoint = Callable[[Service, Request], Awaitable[Any]]
ROUTES: Sequence[tuple[str, str, Endpoint]] = (
    ("POST", "/v1/chat/completions", chat_completions),
    ("POST", "/v1/completions", completions),
    ("GET", "/v1/models", list_models),
    ("GET", "/v1/models/{model:path}", get_model),
    ("GET", "/health", health),
    ("POST", "/tokenize", tokenize),
    ("POST", "/detokenize", detokenize),
)


def create_app(assembly: Assembly, settings: ServerSettings = ServerSettings()) -> Starlette:  # noqa: B008 - frozen
    """The ASGI application for a running model; `app.state.service` holds what its endpoints share."""
    service = Service(assembly, settings)
    middleware = [Middleware(LogRequests)]
    if settings.cors_origins:  # outside the key check, for a browser's preflight carries no key
        middleware.append(
            Middleware(
                CORSMiddleware, allow_origins=settings.cors_origins, allow_methods=["GET", "POST"], allow_headers=["*"]
            )
        )
    if settings.api_key is not None:
        middleware.append(Middleware(RequireApiKey, api_key=settings.api_key))
    app = Starlette(
        routes=[Route(path, partial(endpoint, service), methods=[method]) for method, path, endpoint in ROUTES],
        middleware=middleware,
        exception_handlers={
            GalliumError: on_gallium_error,
            HTTPException: on_http_error,
            ClientDisconnect: on_disconnect,
            DisconnectedError: on_disconnect,
            Exception: on_bug,
        },
    )
    app.state.service = service
    return app


def serve(
    assembly: Assembly,
    host: str = "127.0.0.1",
    port: int = 8000,
    *,
    api_key: str | None = None,
    settings: ServerSettings | None = None,
    listener: socket.socket | None = None,
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM, then let open requests finish within the grace time. The engine stays up.

    `listener` is a socket of `listen(host, port)`, made before the model was loaded; without one, it is made here.
    `on_ready(url)` is called when requests are answered. Give the key here or in `settings`.
    Raises GalliumError if the port cannot be had.
    """
    settings = settings or ServerSettings(api_key=api_key)
    if api_key is not None and settings.api_key != api_key:
        raise ValueError("two API keys were given")
    sock = listener or listen(host, port)
    url = url_of(sock)
    make_server(assembly, sock, settings, lambda: on_ready(url) if on_ready else None).run_until_stopped()


def make_server(
    assembly: Assembly, sock: socket.socket, settings: ServerSettings, on_ready: Callable[[], None]
) -> Server:
    """The server of `serve`, not yet running."""
    app = create_app(assembly, settings)
    service: Service = app.state.service

    def on_grace_over() -> None:
        service.abort_all(EngineDead("the server was stopped before the answer was complete."))

    return Server(app, sock, grace_s=settings.grace_s, on_ready=on_ready, on_grace_over=on_grace_over)
