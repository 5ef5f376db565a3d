"""When a choice ends, and which of its text may be shown: end tokens, stop strings, limits."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple, Protocol

from gallium.engine.sampling import ending_ids
from gallium.types import FinishReason, SamplingParams


class TextSource(Protocol):
    """What the stopper needs of a detokenizer."""

    def push(self, ids: list[int]) -> str:
        """The text that these tokens complete."""
        ...

    def flush(self) -> str:
        """What is still buffered, at the end."""
        ...


class NoText:
    """Stands in for a detokenizer when the model has no tokenizer: there is no text."""

    def push(self, ids: list[int]) -> str:
        """Nothing."""
        return ""

    def flush(self) -> str:
        """Nothing."""
        return ""


class Outcome(NamedTuple):
    """What one token did: text to show now, and whether and why the choice ended."""

    text: str
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None


class StopStrings:
    """Finds stop strings in text that arrives in pieces, however it is cut; holds back what may begin one.

    The string that is complete first wins; of two that end together, the one that begins first. The text that
    is passed on is the same for every way of cutting the input.
    """

    def __init__(self, stop: Collection[str], include_stop: bool = False) -> None:
        self._stop = tuple(stop)
        self._include = include_stop
        self._held = ""

    def push(self, text: str) -> tuple[str, str | None]:
        """(Text that may be shown, the stop string that was found)."""
        if not self._stop or not text:
            return text, None
        text = self._held + text
        hits = [(at + len(stop), at, stop) for stop in self._stop if (at := text.find(stop)) >= 0]
        if hits:
            end, at, stop = min(hits)
            self._held = ""
            return text[: end if self._include else at], stop
        keep = max(_overlap(text, stop) for stop in self._stop)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], None

    def flush(self) -> str:
        """What was held back in vain."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a proper beginning of `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if stop.startswith(text[len(text) - length :]):
            return length
    return 0


class Stopper:
    """Follows one choice, which may have at most `room` tokens, by max_tokens or by the context's end."""

    __slots__ = ("_ending", "_include", "_min_tokens", "_num_tokens", "_room", "_source", "_strings")

    def __init__(self, params: SamplingParams, eos_ids: Collection[int], room: int, source: TextSource) -> None:
        self._ending = ending_ids(params, eos_ids)
        self._include = params.include_stop
        self._min_tokens = params.min_tokens
        self._room = room
        self._source = source
        self._strings = StopStrings(params.stop, params.include_stop)
        self._num_tokens = 0

    def push(self, token_id: int) -> Outcome:
        """Take one drawn token. An end token is not shown unless `include_stop` asks for it.

        Stop strings count only from `min_tokens` on; text that came earlier never takes part in one.
        """
        self._num_tokens += 1
        ended = token_id in self._ending
        text = "" if ended and not self._include else self._source.push([token_id])
        last = ended or self._num_tokens >= self._room
        if last:
            text += self._source.flush()
        found = None
        if self._num_tokens >= self._min_tokens:
            text, found = self._strings.push(text)
        if found is not None:
            return Outcome(text, "stop", found)
        if not last:
            return Outcome(text)
        text += self._strings.flush()
        return Outcome(text, "stop", token_id) if ended else Outcome(text, "length")

    def flush(self) -> str:
        """The text still held back, for a choice that ends from outside."""
        text, found = self._strings.push(self._source.flush())
        return text if found is not None else text + self._strings.flush()
