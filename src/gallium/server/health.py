"""/health: whether requests are answered, by what, and how busy it is."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from gallium import __version__
from gallium.server.service import Service, json_response


async def health(service: Service, request: Request) -> Response:
    """200 while the engine answers, 503 with the reason while it restarts and when it is dead."""
    assembly = service.assembly
    engine = assembly.engine
    status, reason = engine.status, engine.failure
    body = {
        "status": status,
        "reason": None if status == "ok" else reason,
        "version": __version__,
        "model": service.model_name,
        "architecture": assembly.spec.arch,
        "backend": assembly.backend_name,
        "emulated": assembly.emulated,
        "precision": assembly.precision,
        "kv_precision": assembly.kv_precision,
        "kv_bytes": assembly.kv.num_bytes,
        "draft": None if assembly.draft is None else assembly.draft._asdict(),
        "max_context": engine.max_context,
        "open_requests": len(service.open),
        "engine": engine.stats()._asdict(),
    }
    return json_response(body, 200 if status == "ok" else 503, {"cache-control": "no-store"})
