"""Counts tokens as OpenAI's `usage` does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gallium.types import Delta


class Usage:
    """The figures of one request: each prompt counts once, whatever its number of choices."""

    def __init__(self, prompts: Sequence[Sequence[int]], *, predicted: bool = False) -> None:
        self._predicted = predicted
        self._accepted = 0
        self._rejected = 0
        self._prompt = sum(len(prompt) for prompt in prompts)
        self._completion = 0
        self._cached: dict[int, int] = {}

    def count(self, number: int, delta: Delta) -> None:
        """Take in one delta of prompt `number`."""
        self._completion += len(delta.token_ids)
        self._accepted += delta.accepted_prediction_tokens
        self._rejected += delta.rejected_prediction_tokens
        if delta.index == 0:  # the other choices share what the first one has computed
            self._cached[number] = max(self._cached.get(number, 0), delta.cached_tokens)

    def body(self) -> dict[str, Any]:
        """The JSON object."""
        body: dict[str, Any] = {
            "prompt_tokens": self._prompt,
            "completion_tokens": self._completion,
            "total_tokens": self._prompt + self._completion,
            "prompt_tokens_details": {"cached_tokens": sum(self._cached.values())},
        }
        if self._predicted:
            body["completion_tokens_details"] = {
                "accepted_prediction_tokens": self._accepted,
                "rejected_prediction_tokens": self._rejected,
            }
        return body
