"""From the fields of a request to SamplingParams: OpenAI's defaults, and what cannot be honoured."""

from __future__ import annotations

from typing import Any

from gallium.errors import InvalidRequest
from gallium.server.failures import RefusedRequest
from gallium.server.wire import ChatRequest, CompletionRequest, SamplingRequest
from gallium.types import SamplingParams

MAX_STOPS = 64
MAX_TOP_LOGPROBS = 20
COMPLETION_TOKENS = 16  # OpenAI's default for /v1/completions
_SAME_NAME = (
    "temperature", "top_p", "n", "seed", "presence_penalty", "frequency_penalty", "logit_bias", "top_k", "min_p",
    "repetition_penalty", "min_tokens", "ignore_eos", "include_stop", "skip_special_tokens",
)  # fmt: skip


def chat_params(wire: ChatRequest) -> SamplingParams:
    """The parameters of a chat request. Raises InvalidRequest, naming the field as the client knows it."""
    check_stream_options(wire)
    best, asked = wire.max_completion_tokens, wire.max_tokens
    if best is not None and asked is not None and best != asked:
        raise InvalidRequest(
            f"max_tokens ({asked}) and max_completion_tokens ({best}) differ: give one of them.", "max_tokens"
        )
    name = "max_tokens" if best is None else "max_completion_tokens"
    _at_least_one(asked if best is None else best, name)
    return _params(wire, max_tokens=asked if best is None else best, logprobs=_chat_logprobs(wire))


def completion_params(wire: CompletionRequest) -> SamplingParams:
    """The parameters of a completion request; `max_tokens` 0 (only with echo) is left to the caller."""
    check_stream_options(wire)
    wanted = COMPLETION_TOKENS if wire.max_tokens is None else wire.max_tokens
    if wanted == 0 and not wire.echo:
        raise InvalidRequest("max_tokens must be at least 1, unless echo is true.", "max_tokens")
    if wire.best_of not in (None, wire.n or 1):
        raise RefusedRequest(
            f"best_of = {wire.best_of} is not supported unless n is the same: every answer is returned.",
            "best_of",
            code="unsupported_value",
        )
    return _params(wire, max_tokens=wanted or 1, logprobs=wire.logprobs)


def check_stream_options(wire: SamplingRequest) -> None:
    """Refuse options of a stream that is not asked for, and obfuscation."""
    options = wire.stream_options
    if options is None:
        return
    if not wire.stream:
        raise InvalidRequest("stream_options needs stream to be true.", "stream_options")
    if options.include_obfuscation:
        raise RefusedRequest(
            "stream_options.include_obfuscation is not supported: chunks are not padded.",
            "stream_options.include_obfuscation",
            code="unsupported_value",
        )


def wants_usage(wire: SamplingRequest) -> bool:
    """Whether a stream ends with the figures."""
    return wire.stream_options is not None and bool(wire.stream_options.include_usage)


def _chat_logprobs(wire: ChatRequest) -> int | None:
    top = wire.top_logprobs
    if top is not None and not 0 <= top <= MAX_TOP_LOGPROBS:
        raise InvalidRequest(f"top_logprobs must be in [0, {MAX_TOP_LOGPROBS}], not {top}.", "top_logprobs")
    if wire.logprobs:
        return top or 0
    if top:
        raise InvalidRequest("top_logprobs needs logprobs to be true.", "top_logprobs")
    return None


def _at_least_one(value: int | None, name: str) -> None:
    if value is not None and value < 1:
        raise InvalidRequest(f"{name} must be at least 1, not {value}.", name)


def _params(wire: SamplingRequest, *, max_tokens: int | None, logprobs: int | None) -> SamplingParams:
    stop = [wire.stop] if isinstance(wire.stop, str) else wire.stop or []
    if len(stop) > MAX_STOPS:
        raise InvalidRequest(f"stop has {len(stop)} strings; at most {MAX_STOPS} are possible.", "stop")
    fields: dict[str, Any] = {name: value for name in _SAME_NAME if (value := getattr(wire, name)) is not None}
    return SamplingParams(
        **fields,
        max_tokens=max_tokens,
        logprobs=logprobs,
        stop=tuple(stop),
        stop_token_ids=tuple(wire.stop_token_ids or ()),
    )
