"""GrowingCore: a `tokenizers.Tokenizer` that has only those tokens and merges that texts have needed so far.

BPE works word by word, and in a word it can use only tokens that are pieces of it and merges that make such tokens. So
a model that has these gives the same tokens as the whole one. Which words a text has, the library itself says, with any
model that knows the single letters: added tokens, normalising and splitting are its own, and so is BPE.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

from gallium.text.vocabulary import About, Vocabulary

LONGEST_TEXT = 1 << 14  # characters; for a longer one, and after so many words, the whole tokenizer is built
MOST_WORDS = 2000
LONGEST_WORD = 64  # letters: the pieces of a word are as many as its square


class GrowingCore:
    """The part of `tokenizers.Tokenizer` that Tokenizer uses."""

    def __init__(self, about: About, vocabulary: Vocabulary, whole: Callable[[], Any]) -> None:
        """`whole` builds the library's tokenizer from its JSON, for what is too much to grow."""
        import tokenizers

        self._core = tokenizers.Tokenizer.from_str(about.shell)
        self._about = about
        self._vocabulary = vocabulary
        self._build = whole
        self._whole: Any = None
        self._lock = threading.Lock()  # while it grows, nobody may look
        self._words: set[str] = set()
        self._vocab: dict[str, int] = json.loads(about.shell)["model"]["vocab"]
        self._merges: dict[int, tuple[str, str]] = {}  # by rank

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return self._vocabulary.size

    @property
    def decoder(self) -> Any:
        """As the library's."""
        return self._core.decoder

    def no_truncation(self) -> None:
        """As the library's."""
        self._core.no_truncation()

    def no_padding(self) -> None:
        """As the library's."""
        self._core.no_padding()

    def get_added_tokens_decoder(self) -> dict[int, Any]:
        """As the library's."""
        added: dict[int, Any] = self._core.get_added_tokens_decoder()
        return added

    def id_to_token(self, token: int) -> str | None:
        """As the library's."""
        return self._vocabulary.text(token)

    def token_to_id(self, text: str) -> int | None:
        """As the library's."""
        return self._vocabulary.find(text)

    def to_str(self, pretty: bool = False) -> str:
        """The whole tokenizer."""
        whole: str = self._built().to_str(pretty)
        return whole

    def encode(self, text: str, *, add_special_tokens: bool) -> Any:
        """As the library's."""
        with self._lock:
            core = self._whole if self._whole is not None else self._fitting(text)
            return core.encode(text, add_special_tokens=add_special_tokens)

    def _fitting(self, text: str) -> Any:
        """The library's tokenizer, grown or built so that it has what this text needs."""
        if len(text) > LONGEST_TEXT:
            return self._built()
        new = _words(self._core.encode(text, add_special_tokens=False)) - self._words
        if new and (len(self._words) + len(new) > MOST_WORDS or max(map(len, new)) > LONGEST_WORD):
            return self._built()
        if new:
            self._grow(new)
        return self._core

    def _grow(self, words: set[str]) -> None:
        from tokenizers.models import BPE

        vocabulary, vocab = self._vocabulary, self._vocab
        for piece in {w[i:j] for w in words for i in range(len(w)) for j in range(i + 1, len(w) + 1)} - vocab.keys():
            token = vocabulary.find(piece)
            if token is not None:
                vocab[piece] = token
                for rank, left, right in vocabulary.merges(piece):
                    self._merges[rank] = vocabulary.text(left) or "", vocabulary.text(right) or ""
        merges = [self._merges[rank] for rank in sorted(self._merges)]
        self._core.model = BPE(vocab=vocab, merges=merges, ignore_merges=self._about.ignore_merges)
        self._words |= words

    def _built(self) -> Any:
        if self._whole is None:
            self._whole = self._build()
            self._whole.no_truncation()
            self._whole.no_padding()
        return self._whole


def _words(encoding: Any) -> set[str]:
    """The words of an encoded text: the tokens of each, joined."""
    words: dict[int, str] = {}
    for word, token in zip(encoding.word_ids, encoding.tokens, strict=True):
        if word is not None:
            words[word] = words.get(word, "") + token
    return set(words.values())
