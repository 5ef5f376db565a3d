"""Values that cross the public API: sampling parameters, messages, completions. Data and its validation only."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from gallium.errors import InvalidRequest

FinishReason = Literal["stop", "length", "cancelled", "error"]
Message = dict[str, Any]
"""One chat message in OpenAI's form: `role`, `content`, and optionally `reasoning_content`, `tool_calls`, …"""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How one request is sampled. Raises InvalidRequest (naming the field) on values out of range.

    `temperature` 0 is greedy; `top_k` 0, `top_p` 1, `min_p` 0, `repetition_penalty` 1 and the other
    penalties at 0 are off. `max_tokens` None means: until the context is full. `seed` None draws a fresh
    64-bit seed per request; a fixed seed makes the answer reproducible whatever else is in the batch.
    `logprobs` None is off, 0 gives the chosen token's only, N adds the N best alternatives.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = field(default_factory=dict)
    seed: int | None = None
    max_tokens: int | None = None
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop: bool = False
    ignore_eos: bool = False
    logprobs: int | None = None
    n: int = 1
    skip_special_tokens: bool = True

    def __post_init__(self) -> None:
        _within("temperature", self.temperature, 0.0, 1000.0)  # beyond float32, logits would become NaN
        _whole("top_k", self.top_k, 0, 2**31 - 1)
        _within("top_p", self.top_p, 0.0, 1.0, open_low=True)
        _within("min_p", self.min_p, 0.0, 1.0)
        _within("repetition_penalty", self.repetition_penalty, 0.001, 1000.0)
        _within("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _within("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        for bias in self.logit_bias.values():
            _within("logit_bias", bias, -100.0, 100.0)
        if self.seed is not None:
            _whole("seed", self.seed, -(2**63), 2**64 - 1)
        if self.max_tokens is not None:
            _whole("max_tokens", self.max_tokens, 1, 2**31 - 1)
        _whole("min_tokens", self.min_tokens, 0, 2**31 - 1)
        if self.logprobs is not None:
            _whole("logprobs", self.logprobs, 0, 20)
        _whole("n", self.n, 1, 128)
        if isinstance(self.stop, str) or not all(isinstance(s, str) and s for s in self.stop):
            raise InvalidRequest(f"stop must be a tuple of strings that are not empty, not {self.stop!r}.", "stop")
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InvalidRequest(
                f"min_tokens ({self.min_tokens}) is larger than max_tokens ({self.max_tokens}).", "min_tokens"
            )


def _whole(name: str, value: int, low: int, high: int) -> None:
    if not isinstance(value, int):
        raise InvalidRequest(f"{name} must be a whole number, not {value!r}.", name)
    _within(name, value, low, high)


def _within(name: str, value: float, low: float, high: float, *, open_low: bool = False) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value) or math.isinf(value):
        raise InvalidRequest(f"{name} must be a finite number, not {value!r}.", name)
    if value < low or value > high or (open_low and value == low):
        bracket = "(" if open_low else "["
        raise InvalidRequest(f"{name} must be in {bracket}{low}, {high}], not {value}.", name)


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """The natural-log probability of an emitted token under the model's raw distribution, and the best alternatives."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    """(token id, logprob), best first."""


@dataclass(frozen=True, slots=True)
class Delta:
    """One piece of one choice, as the engine emits it. The last piece of a choice has a `finish_reason`."""

    index: int
    """Which of the request's `n` choices."""
    token_ids: tuple[int, ...]
    text: str
    """New text: whole characters only, stop strings already cut, text that may begin a stop string held back."""
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    """The stop token id or stop string that ended the choice, if one did."""
    cached_tokens: int = 0
    """Prompt tokens that came from the prefix cache; set on the first piece of a choice."""
    accepted_prediction_tokens: int = 0
    """Tokens of the request's prediction that the answer has; set on the last piece of a choice."""
    rejected_prediction_tokens: int = 0
    """Tokens of the request's prediction that the answer has not; set on the last piece of a choice."""


@dataclass(frozen=True, slots=True)
class Completion:
    """One finished choice."""

    index: int
    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    prompt_token_ids: list[int]
    logprobs: list[TokenLogprob] | None = None
    stop_reason: int | str | None = None
    cached_tokens: int = 0
