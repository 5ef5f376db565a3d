"""Detokenizer: token ids to text as they arrive, never cutting a character in two."""

from __future__ import annotations

import codecs
from collections.abc import Iterable

from gallium.text.tokenizer import Tokenizer


class Detokenizer:
    """Turns one sequence's tokens into text, piece by piece, in constant time per token.

    A character whose bytes are spread over several tokens is held back until it is whole. The pushed pieces and the
    flush together are what `Tokenizer.decode` gives for all ids.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special_tokens: bool = True) -> None:
        self._token_bytes = tokenizer.token_bytes
        self._skipped = tokenizer.special_ids if skip_special_tokens else frozenset()
        self._drops_space = tokenizer.drops_leading_space
        self._at_start = True
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, ids: Iterable[int]) -> str:
        """The text that these tokens complete. Bytes that can no longer become a character are U+FFFD."""
        data = b"".join([self._token_bytes(i) for i in ids if i not in self._skipped])
        return self._trim(self._decoder.decode(data))

    def flush(self) -> str:
        """The rest, at the end: U+FFFD if a character was left unfinished."""
        return self._trim(self._decoder.decode(b"", final=True))

    def _trim(self, text: str) -> str:
        if self._at_start and text:
            self._at_start = False
            if self._drops_space:
                return text.removeprefix(" ")
        return text
