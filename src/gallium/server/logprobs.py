"""Log-probabilities as the two APIs show them."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gallium.types import Delta, TokenLogprob

if TYPE_CHECKING:
    from gallium.text.tokenizer import Tokenizer

NEVER = -9999.0
"""What OpenAI sends for a probability of 0; JSON has no infinity."""


def shown_logprobs(delta: Delta, include_stop: bool) -> tuple[TokenLogprob, ...]:
    """Those of a delta's tokens that belong to the answer: an end token that is not shown does not."""
    hidden = delta.finish_reason == "stop" and isinstance(delta.stop_reason, int) and not include_stop
    return delta.logprobs[:-1] if hidden else delta.logprobs


def chat_logprobs(entries: Sequence[TokenLogprob], tokenizer: Tokenizer) -> dict[str, Any]:
    """`logprobs` of a chat choice. A token that is a part of a character has U+FFFD as its text; `bytes` is exact."""
    content = []
    for entry in entries:
        best = [_chat_entry(token_id, logprob, tokenizer) for token_id, logprob in entry.top]
        content.append(_chat_entry(entry.token_id, entry.logprob, tokenizer) | {"top_logprobs": best})
    return {"content": content, "refusal": None}


def _chat_entry(token_id: int, logprob: float, tokenizer: Tokenizer) -> dict[str, Any]:
    raw = tokenizer.token_bytes(token_id)
    return {"token": raw.decode("utf-8", "replace"), "logprob": max(logprob, NEVER), "bytes": list(raw)}


class LegacyLogprobs:
    """`logprobs` of a completion choice, which grows: four parallel lists, and offsets into the text in characters."""

    def __init__(self, tokenizer: Tokenizer, *, skip_special_tokens: bool) -> None:
        self._tokenizer = tokenizer
        self._not_shown = tokenizer.special_ids if skip_special_tokens else frozenset()
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._offset = 0

    def add(self, entries: Sequence[TokenLogprob | int]) -> dict[str, Any]:
        """The lists for these tokens; a bare token id has no probability (the first of a prompt)."""
        out: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for entry in entries:
            token_id = entry if isinstance(entry, int) else entry.token_id
            out["tokens"].append(self._text(token_id))
            out["text_offset"].append(self._offset)
            if token_id not in self._not_shown:
                self._offset += len(self._decoder.decode(self._tokenizer.token_bytes(token_id)))
            if isinstance(entry, int):
                out["token_logprobs"].append(None)
                out["top_logprobs"].append(None)
                continue
            best: dict[str, float] = {}
            for token_id, logprob in (*entry.top, (entry.token_id, entry.logprob)):
                best.setdefault(self._text(token_id), max(logprob, NEVER))
            out["token_logprobs"].append(max(entry.logprob, NEVER))
            out["top_logprobs"].append(best)
        return out

    def _text(self, token_id: int) -> str:
        """The token's text; in OpenAI's own escape if its bytes are not whole characters."""
        raw = self._tokenizer.token_bytes(token_id)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)
