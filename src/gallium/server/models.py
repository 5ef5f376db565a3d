"""/v1/models: the one model that is served."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from gallium.server.service import Service, json_response


async def list_models(service: Service, request: Request) -> Response:
    """GET /v1/models."""
    return json_response({"object": "list", "data": [model_card(service)]})


async def get_model(service: Service, request: Request) -> Response:
    """GET /v1/models/{id}."""
    service.check_model(request.path_params["model"])
    return json_response(model_card(service))


def model_card(service: Service) -> dict[str, Any]:
    """OpenAI's fields, and what a client cannot know otherwise."""
    assembly = service.assembly
    return {
        "id": service.model_name,
        "object": "model",
        "created": service.created,
        "owned_by": "gallium",
        "root": assembly.label,
        "max_model_len": assembly.engine.max_context,
        "architecture": assembly.spec.arch,
        "precision": assembly.precision,
    }
