"""From errors to HTTP: the status, and the body in OpenAI's form {"error": {message, type, param, code}}."""

from __future__ import annotations

import logging
from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from gallium.errors import ContextTooLong, EngineDead, GalliumError, InvalidRequest, TemplateError

log = logging.getLogger("gallium.server")
INTERNAL = "the server failed on this request; its log says why. Please report it."


class RefusedRequest(InvalidRequest):
    """A request that HTTP or the API itself refuses, before any model is asked."""

    def __init__(
        self,
        message: str,
        param: str | None = None,
        *,
        code: str,
        status: int = 400,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message, param)
        self.code = code
        self.http_status = status
        self.headers = headers or {}


def error_body(error: BaseException) -> dict[str, Any]:
    """The JSON body for `error`. An error that is not Gallium's own reveals nothing of the server's inside."""
    status = status_of(error)
    return {
        "error": {
            "message": error.message if isinstance(error, GalliumError) else INTERNAL,
            "type": "invalid_request_error" if status < 500 else "server_error",
            "param": _param(error),
            "code": _code(error),
        }
    }


def status_of(error: BaseException) -> int:
    """The HTTP status for `error`."""
    return error.http_status if isinstance(error, GalliumError) else 500


def error_response(error: BaseException) -> Response:
    """The whole response for `error`."""
    headers = error.headers if isinstance(error, RefusedRequest) else None
    return Response(msgspec.json.encode(error_body(error)), status_of(error), headers, "application/json")


def _param(error: BaseException) -> str | None:
    if isinstance(error, InvalidRequest):
        return error.param
    return "messages" if isinstance(error, TemplateError) else None


def _code(error: BaseException) -> str | None:
    match error:
        case RefusedRequest():
            return error.code
        case ContextTooLong():
            return "context_length_exceeded"
        case InvalidRequest():
            return "invalid_value"
        case TemplateError():
            return "template_error"
        case EngineDead():
            return "engine_dead"
        case _:
            return None if isinstance(error, GalliumError) else "internal_error"


# -- handlers for Starlette ------------------------------------------------------------


async def on_gallium_error(request: Request, error: Exception) -> Response:
    """A deliberate error that an endpoint raised."""
    if status_of(error) >= 500:
        log.error("%s %s: %s", request.method, request.url.path, error)
    return error_response(error)


async def on_http_error(request: Request, error: Exception) -> Response:
    """What Starlette itself refuses: no such route, a method that the route does not have."""
    assert isinstance(error, HTTPException)
    texts = {
        404: (f"there is no {request.url.path} on this server.", "not_found"),
        405: (f"{request.url.path} does not take {request.method}.", "method_not_allowed"),
    }
    message, code = texts.get(error.status_code, (error.detail, "http_error"))
    headers = dict(error.headers or {})
    return error_response(RefusedRequest(message, code=code, status=error.status_code, headers=headers))


async def on_disconnect(request: Request, error: Exception) -> Response:
    """The client left before it got an answer; nobody reads this one."""
    return Response(status_code=499)


async def on_bug(request: Request, error: Exception) -> Response:
    """An error that nobody foresaw. Starlette raises it again afterwards, so that the log has the traceback."""
    return error_response(error)
