"""/tokenize and /detokenize: what the model sees of a text or of a conversation."""

from __future__ import annotations

import asyncio

from starlette.requests import Request
from starlette.responses import Response

from gallium.errors import InvalidRequest
from gallium.server.body import read_request
from gallium.server.conversation import encode, render
from gallium.server.service import Service, json_response
from gallium.server.wire import DetokenizeRequest, TokenizeRequest


async def tokenize(service: Service, request: Request) -> Response:
    """POST /tokenize: {count, max_model_len, tokens, token_strs}."""
    wire = await read_request(request, TokenizeRequest, service.settings.max_body_bytes)
    service.check_model(wire.model)
    ids = await asyncio.to_thread(_ids, service, wire)
    strings = None
    if wire.return_token_strs:
        strings = [service.tokenizer.token_bytes(i).decode("utf-8", "replace") for i in ids]
    limit = service.assembly.engine.max_context
    return json_response({"count": len(ids), "max_model_len": limit, "tokens": ids, "token_strs": strings})


def _ids(service: Service, wire: TokenizeRequest) -> list[int]:
    if (wire.prompt is None) == (wire.messages is None):
        raise InvalidRequest("give either prompt or messages.", "prompt")
    if wire.prompt is None:
        if wire.add_special_tokens is not None:
            raise InvalidRequest(
                "add_special_tokens is for prompt; a chat template writes its own.", "add_special_tokens"
            )
        return render(service.assembly, wire).token_ids
    for name in ("tools", "chat_template_kwargs", "add_generation_prompt"):
        if getattr(wire, name) is not None:
            raise InvalidRequest(f"{name} is for messages, not for prompt.", name)
    special = True if wire.add_special_tokens is None else wire.add_special_tokens
    return encode(service.assembly, wire.prompt, "prompt", add_special_tokens=special)


async def detokenize(service: Service, request: Request) -> Response:
    """POST /detokenize: {prompt}."""
    wire = await read_request(request, DetokenizeRequest, service.settings.max_body_bytes)
    service.check_model(wire.model)
    size = service.tokenizer.vocab_size
    for i, token_id in enumerate(wire.tokens):
        if not 0 <= token_id < size:
            raise InvalidRequest(f"tokens[{i}] is {token_id}, but ids are 0 to {size - 1}.", f"tokens[{i}]")
    text = service.tokenizer.decode(wire.tokens, skip_special_tokens=bool(wire.skip_special_tokens))
    return json_response({"prompt": text})
