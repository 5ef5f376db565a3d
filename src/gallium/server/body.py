"""Reads a request's JSON body into a typed request; every fault becomes an error that names the field."""

from __future__ import annotations

import re
from typing import TypeVar

import msgspec
from starlette.requests import Request

from gallium.server.failures import RefusedRequest
from gallium.server.wire import REASONS, UNSUPPORTED

T = TypeVar("T")
_PLACE = re.compile(r" - at `(?:key` in `)?\$\.?(.*)`$")
_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(.*)`", re.DOTALL)


async def read_request(request: Request, kind: type[T], max_bytes: int) -> T:
    """The body as a `kind`. Raises RefusedRequest: 413 too large, 415 not JSON by its header, 400 anything else."""
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media != "application/json":
        raise RefusedRequest(
            f"the body must be JSON, with the header 'Content-Type: application/json', not {media or 'none'!r}.",
            code="unsupported_media_type",
            status=415,
        )
    return parse(await _read(request, max_bytes), kind)


async def _read(request: Request, max_bytes: int) -> bytes:
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > max_bytes:
        raise _too_large(max_bytes)
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_bytes:
            raise _too_large(max_bytes)
    return bytes(body)


def _too_large(max_bytes: int) -> RefusedRequest:
    return RefusedRequest(
        f"the body is larger than this server's limit of {max_bytes} bytes.",
        code="request_too_large",
        status=413,
        headers={"connection": "close"},  # what was not read must not be taken for the next request
    )


def parse(body: bytes, kind: type[T]) -> T:
    """Decode one JSON document. Raises RefusedRequest, with the path of the faulty field as its `param`."""
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as fault:
        raise translate(fault) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as fault:
        raise RefusedRequest(f"the body is not valid JSON: {fault}.", code="invalid_json") from None


def translate(fault: msgspec.ValidationError, under: str = "") -> RefusedRequest:
    """msgspec's words in ours; `under` is the path of the object that was checked."""
    text = str(fault)
    place = _PLACE.search(text)
    what = text[: place.start()] if place else text
    path = _join(under, place[1] if place else "")
    if found := _UNKNOWN.fullmatch(what):
        return unsupported(_join(path, found[1]), found[1])
    if found := _MISSING.fullmatch(what):
        param = _join(path, found[1])
        return RefusedRequest(f"{param} is missing.", param, code="missing_required_parameter")
    if path in UNSUPPORTED:
        return unsupported(path, path)
    return RefusedRequest(f"{path or 'the body'}: {what[:1].lower()}{what[1:]}.", path or None, code="invalid_type")


def unsupported(param: str, field: str) -> RefusedRequest:
    """A field that this server does not honour."""
    reason = REASONS.get(field)
    return RefusedRequest(
        f"{param} is not supported" + (f": {reason}." if reason else " by this server."),
        param,
        code="unsupported_parameter" if reason else "unknown_parameter",
    )


def _join(path: str, name: str) -> str:
    if not path or not name:
        return path or name
    return path + name if name.startswith("[") else f"{path}.{name}"
