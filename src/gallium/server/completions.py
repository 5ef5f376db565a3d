"""/v1/completions: plain text or token ids continued as they are, without a chat template."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from gallium.errors import InvalidRequest
from gallium.server.body import read_request
from gallium.server.conversation import encode
from gallium.server.generation import Generation, attended
from gallium.server.logprobs import LegacyLogprobs, shown_logprobs
from gallium.server.sampling import completion_params, wants_usage
from gallium.server.scoring import check_scoring
from gallium.server.service import Service, json_response, new_id
from gallium.server.sse import KEEP_ALIVE, EventStream, event
from gallium.server.usage import Usage
from gallium.server.wire import CompletionRequest
from gallium.types import Delta, SamplingParams, TokenLogprob

MAX_CHOICES = 1024
_LISTS = ("tokens", "token_logprobs", "top_logprobs", "text_offset")


async def completions(service: Service, request: Request) -> Response | EventStream:
    """The endpoint."""
    wire = await read_request(request, CompletionRequest, service.settings.max_body_bytes)
    service.check_model(wire.model)
    params = completion_params(wire)
    prompts = await asyncio.to_thread(read_prompts, service, wire.prompt)
    for prompt in prompts:
        check_prompt(service, prompt)
    if len(prompts) * params.n > MAX_CHOICES:
        raise InvalidRequest(f"{len(prompts)} prompts with n = {params.n}: at most {MAX_CHOICES} answers.", "prompt")
    if wire.echo and params.logprobs is not None:
        check_scoring(service.assembly, prompts)
    answer = Completions(service, wire, params, prompts)
    generation = service.generate(prompts if wire.max_tokens != 0 else [], params)
    headers = {"x-request-id": answer.id}
    if wire.stream:
        return EventStream(answer.frames(generation), generation, headers)
    async with attended(generation, request.receive):
        return json_response(await answer.whole(generation), headers=headers)


def read_prompts(service: Service, prompt: str | list[Any]) -> list[list[int]]:
    """The prompts as token ids. Raises InvalidRequest for anything but OpenAI's four forms."""
    if isinstance(prompt, str):
        return [encode(service.assembly, prompt, "prompt", add_special_tokens=True)]
    if not prompt:
        raise InvalidRequest("prompt is an empty list.", "prompt")
    if all(isinstance(entry, str) for entry in prompt):
        return [
            encode(service.assembly, text, f"prompt[{i}]", add_special_tokens=True) for i, text in enumerate(prompt)
        ]
    if _are_ids(prompt):
        return [prompt]
    for i, entry in enumerate(prompt):
        if not isinstance(entry, list) or not _are_ids(entry):
            raise InvalidRequest(
                f"prompt[{i}] does not fit: prompt is a string, a list of strings, a list of token ids, "
                "or a list of lists of token ids.",
                f"prompt[{i}]",
            )
    return prompt


def check_prompt(service: Service, prompt: list[int]) -> None:
    """Raise InvalidRequest for what no engine can continue; an echo alone never reaches the engine's own check."""
    rows = service.assembly.spec.vocab_size
    if not prompt:
        raise InvalidRequest("the prompt is empty: it needs at least one token.", "prompt")
    if wrong := [token_id for token_id in prompt if not 0 <= token_id < rows][:1]:
        raise InvalidRequest(f"the prompt has token id {wrong[0]}, but ids are 0 to {rows - 1}.", "prompt")


def _are_ids(entries: list[Any]) -> bool:
    return all(type(entry) is int for entry in entries)


class Completions:
    """The answer to one request: choice `i * n + j` is the j-th continuation of prompt i."""

    def __init__(
        self, service: Service, wire: CompletionRequest, params: SamplingParams, prompts: Sequence[list[int]]
    ) -> None:
        self.id = new_id("cmpl")
        self._service = service
        self._params = params
        self._prompts = prompts
        self._usage = Usage(prompts)
        self._streams_usage = wants_usage(wire)
        self._echo = bool(wire.echo)
        self._only_echo = wire.max_tokens == 0
        skip = params.skip_special_tokens
        self._logprobs = [
            LegacyLogprobs(service.tokenizer, skip_special_tokens=skip) for _ in range(len(prompts) * params.n)
        ]
        self._base = {
            "id": self.id,
            "object": "text_completion",
            "created": service.now(),
            "model": service.model_name,
            "system_fingerprint": service.fingerprint,
        }

    async def whole(self, generation: Generation) -> dict[str, Any]:
        """Wait for the end; the complete answer."""
        done = await self._echoes()
        async for batch in generation.batches():
            for number, delta in batch:
                _extend(done[number * self._params.n + delta.index], self._piece(number, delta))
        return self._base | {"choices": done, "usage": self._usage.body()}

    async def frames(self, generation: Generation) -> AsyncGenerator[bytes, None]:
        """The chunks, framed."""
        if self._echo:
            yield b"".join(self._chunk(choice) for choice in await self._echoes())
        async for batch in generation.batches(self._service.settings.keep_alive_s):
            pieces = [self._piece(number, delta) for number, delta in batch]
            frames = [self._chunk(piece) for piece in pieces if _says_something(piece)]
            if frames or not batch:
                yield b"".join(frames) or KEEP_ALIVE
        if self._streams_usage:
            yield event(self._base | {"choices": [], "usage": self._usage.body()})

    def _chunk(self, choice: dict[str, Any]) -> bytes:
        chunk = self._base | {"choices": [choice]}
        return event(chunk | {"usage": None} if self._streams_usage else chunk)

    def _piece(self, number: int, delta: Delta) -> dict[str, Any]:
        self._usage.count(number, delta)
        index = number * self._params.n + delta.index
        entries = shown_logprobs(delta, self._params.include_stop)
        return self._choice(index, delta.text, entries, delta.finish_reason)

    async def _echoes(self) -> list[dict[str, Any]]:
        """Every choice as it begins: empty, or with the prompt's text and its probabilities."""
        finish = "length" if self._only_echo else None
        out = []
        for number, prompt in enumerate(self._prompts):
            text = ""
            entries: list[TokenLogprob | int] = []
            if self._echo:  # shown by the same rule as the answer, so that offsets fit
                text = self._service.tokenizer.decode(prompt, skip_special_tokens=self._params.skip_special_tokens)
                if self._params.logprobs is not None:
                    entries = [prompt[0], *await self._service.score(prompt, self._params.logprobs)]
            for index in range(self._params.n):
                out.append(self._choice(number * self._params.n + index, text, entries, finish))
        return out

    def _choice(
        self, index: int, text: str, entries: Sequence[TokenLogprob | int], finish_reason: str | None
    ) -> dict[str, Any]:
        logprobs = None if self._params.logprobs is None else self._logprobs[index].add(entries)
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}


def _extend(choice: dict[str, Any], piece: dict[str, Any]) -> None:
    choice["text"] += piece["text"]
    choice["finish_reason"] = piece["finish_reason"]
    if choice["logprobs"] is not None:
        for name in _LISTS:
            choice["logprobs"][name] += piece["logprobs"][name]


def _says_something(piece: dict[str, Any]) -> bool:
    return bool(piece["text"] or piece["finish_reason"] or piece["logprobs"])
