"""Counts tokens as OpenAI's `usage` does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gallium.types import Delta


class Usage:
    """The figures of one request: each prompt counts once, whatever its number of choices."""

    def __init__(self, prompts: Sequence[Sequence[int]]) -> None:
        self._prompt = sum(len(prompt) for prompt in prompts)
        self._completion = 0
        self._cached: dict[int, int] = {}

    def count(self, number: int, delta: Delta) -> None:
        """Take in one delta of prompt `number`."""
        self._completion += len(delta.token_ids)
        if delta.index == 0:  # the other choices share what the first one has computed
            self._cached[number] = max(self._cached.get(number, 0), delta.cached_tokens)

    def body(self) -> dict[str, Any]:
        """The JSON object."""
        return {
            "prompt_tokens": self._prompt,
            "completion_tokens": self._completion,
            "total_tokens": self._prompt + self._completion,
            "prompt_tokens_details": {"cached_tokens": sum(self._cached.values())},
        }
