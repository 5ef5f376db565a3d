"""/v1/chat/completions: answers to a conversation, streamed or whole."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from gallium.errors import InvalidRequest
from gallium.server.body import read_request
from gallium.server.chat_choice import ChatChoice
from gallium.server.conversation import Prompt, predicted, render
from gallium.server.generation import Generation, attended
from gallium.server.logprobs import chat_logprobs, shown_logprobs
from gallium.server.sampling import chat_params, wants_usage
from gallium.server.service import Service, json_response, new_id
from gallium.server.sse import KEEP_ALIVE, EventStream, event
from gallium.server.usage import Usage
from gallium.server.wire import ChatRequest
from gallium.text.router import StreamRouter, detect_format, starts_in_reasoning
from gallium.types import SamplingParams, TokenLogprob

_CLIENT_NAMES = {"prompt": "messages", "logprobs": "top_logprobs"}
"""What the engine calls a field that the chat API calls otherwise."""


async def chat_completions(service: Service, request: Request) -> Response | EventStream:
    """The endpoint."""
    wire = await read_request(request, ChatRequest, service.settings.max_body_bytes)
    service.check_model(wire.model)
    params = chat_params(wire)
    prompt = await asyncio.to_thread(render, service.assembly, wire)  # long prompts must not hold up other streams
    expected = [] if wire.prediction is None else await asyncio.to_thread(predicted, service.assembly, wire.prediction)
    answer = ChatAnswer(service, wire, params, prompt, Usage([prompt.token_ids], predicted=wire.prediction is not None))
    try:
        generation = service.generate([prompt.token_ids], params, expected)
    except InvalidRequest as refusal:
        refusal.param = _client_name(refusal.param, wire)
        raise
    headers = {"x-request-id": answer.id}
    if wire.stream:
        return EventStream(answer.frames(generation), generation, headers)
    async with attended(generation, request.receive):
        return json_response(await answer.whole(generation), headers=headers)


def _client_name(param: str | None, wire: ChatRequest) -> str | None:
    if param == "max_tokens" and wire.max_completion_tokens is not None:
        return "max_completion_tokens"
    return _CLIENT_NAMES.get(param or "", param)


@dataclass(frozen=True, slots=True)
class _Part:
    """What one chunk of a choice brings."""

    delta: dict[str, Any]
    logprobs: list[TokenLogprob] | None = None
    finish_reason: str | None = None


class ChatAnswer:
    """The answer to one chat request: its choices as they grow, and their JSON."""

    def __init__(
        self, service: Service, wire: ChatRequest, params: SamplingParams, prompt: Prompt, usage: Usage
    ) -> None:
        self.id = new_id("chatcmpl")
        self._service = service
        self._params = params
        self._streams_usage = wants_usage(wire)
        self._usage = usage
        fmt = detect_format(service.tokenizer.chat_template)
        reasoning = starts_in_reasoning(prompt.text)
        self._choices = [
            ChatChoice(StreamRouter(fmt, in_reasoning=reasoning, tools=prompt.tools)) for _ in range(params.n)
        ]
        self._base = {
            "id": self.id,
            "object": "chat.completion.chunk" if wire.stream else "chat.completion",
            "created": service.now(),
            "model": service.model_name,
            "system_fingerprint": service.fingerprint,
        }

    async def whole(self, generation: Generation) -> dict[str, Any]:
        """Wait for the end; the complete answer."""
        kept: list[list[TokenLogprob]] = [[] for _ in self._choices]
        async for batch in generation.batches():
            for number, delta in batch:
                self._usage.count(number, delta)
                self._choices[delta.index].feed(delta)
                kept[delta.index] += shown_logprobs(delta, self._params.include_stop)
        choices = []
        for index, choice in enumerate(self._choices):
            part = _Part(choice.message(), kept[index], choice.finish_reason)
            choices.append(self._choice(index, part, "message"))
        return self._base | {"choices": choices, "usage": self._usage.body()}

    async def frames(self, generation: Generation) -> AsyncGenerator[bytes, None]:
        """The chunks, framed. The role comes first, a finish_reason always in a chunk of its own."""
        opening = {"role": "assistant", "content": ""}
        yield b"".join(self._chunk(index, _Part(opening)) for index in range(len(self._choices)))
        pending: list[list[TokenLogprob]] = [[] for _ in self._choices]
        async for batch in generation.batches(self._service.settings.keep_alive_s):
            frames = [] if batch else [KEEP_ALIVE]
            for number, delta in batch:
                self._usage.count(number, delta)
                index = delta.index
                choice = self._choices[index]
                pending[index] += shown_logprobs(delta, self._params.include_stop)
                parts = [_Part(piece) for piece in choice.feed(delta)]
                if choice.finish_reason is not None:
                    parts.append(_Part({}, None, choice.finish_reason))
                for part in parts:  # the first part takes the probabilities of all tokens since the last one
                    entries, pending[index] = pending[index], []
                    frames.append(self._chunk(index, _Part(part.delta, entries, part.finish_reason)))
            if frames:
                yield b"".join(frames)
        if self._streams_usage:
            yield event(self._base | {"choices": [], "usage": self._usage.body()})

    def _chunk(self, index: int, part: _Part) -> bytes:
        chunk = self._base | {"choices": [self._choice(index, part, "delta")]}
        return event(chunk | {"usage": None} if self._streams_usage else chunk)

    def _choice(self, index: int, part: _Part, name: str) -> dict[str, Any]:
        logprobs = None
        if self._params.logprobs is not None and part.logprobs is not None:
            logprobs = chat_logprobs(part.logprobs, self._service.tokenizer)
        return {"index": index, name: part.delta, "logprobs": logprobs, "finish_reason": part.finish_reason}
