"""An optional API key, as plain ASGI middleware: "Authorization: Bearer KEY"."""

from __future__ import annotations

import hmac

from starlette.types import ASGIApp, Receive, Scope, Send

from gallium.server.failures import RefusedRequest, error_response

OPEN_PATHS = frozenset({"/health"})
"""What probes must be able to ask without a key."""


class RequireApiKey:
    """Lets only requests with the key through; compares in constant time."""

    def __init__(self, app: ASGIApp, api_key: str) -> None:
        self._app = app
        self._expected = api_key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 401."""
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS or self._has_key(scope):
            await self._app(scope, receive, send)
            return
        refusal = RefusedRequest(
            "this server needs its API key: send it as 'Authorization: Bearer KEY'.",
            code="invalid_api_key",
            status=401,
            headers={"www-authenticate": "Bearer"},
        )
        await error_response(refusal)(scope, receive, send)

    def _has_key(self, scope: Scope) -> bool:
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        scheme, _, key = (given[0] if len(given) == 1 else b"").partition(b" ")
        return scheme.lower() == b"bearer" and hmac.compare_digest(key.strip(), self._expected)
