"""Tokenizer: text to token ids and back, over the `tokenizers` library, from a Hugging Face folder or a GGUF file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gallium.errors import InvalidRequest, TokenizerError
from gallium.text.token_bytes import byte_rule
from gallium.text.tokenizer_parts import TokenizerParts

GLM_ENDS = ("<|endoftext|>", "<|user|>", "<|observation|>")
"""GLM has no end-of-turn token: the role token that would follow ends the answer. Some files list only the first."""


class Tokenizer:
    """A checkpoint's tokenizer. Nothing changes after loading; safe to use from several threads.

    `vocab_size` is the number of ids that stand for something: a model may have more rows, which are padding.
    """

    def __init__(self, parts: TokenizerParts) -> None:
        core: Any = parts.core
        self._core = core
        self._core.no_truncation()
        self._core.no_padding()
        self.where = parts.where
        self.special_tokens = parts.special_tokens
        self.chat_template = parts.chat_template
        self._added = self._core.get_added_tokens_decoder()
        self.special_ids = frozenset(i for i, token in self._added.items() if token.special)
        self.eos_ids = tuple(dict.fromkeys((*parts.eos_ids, *self._glm_ends())))
        self.vocab_size = parts.vocab_size or max(core.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        self._rule = byte_rule(self._core.decoder, parts.where)
        self._bytes: list[bytes | None] = [None] * self.vocab_size

    @classmethod
    def from_folder(cls, path: Path) -> Tokenizer:
        """Read `tokenizer.json` and what stands beside it. Raises TokenizerError if it is missing or damaged."""
        from gallium.text.tokenizer_folder import read_folder

        return cls(read_folder(Path(path)))

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any]) -> Tokenizer:
        """Build it from a GGUF file's metadata. Raises TokenizerError if absent, damaged or of an unknown kind."""
        from gallium.text.tokenizer_gguf import read_metadata

        return cls(read_metadata(metadata))

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        """Token ids of `text`; special tokens written in it are recognised.

        Leave `add_special_tokens` off for a rendered chat: the template has written the prefix, and it would double.
        Raises InvalidRequest if the text is not valid Unicode.
        """
        if not isinstance(text, str):
            raise InvalidRequest(f"The text to encode must be a string, not {type(text).__name__}.")
        try:
            text.encode("utf-8")  # the library says nothing helpful of text that cannot be
        except UnicodeEncodeError as cause:
            at = cause.start
            raise InvalidRequest(
                f"The text holds half of a surrogate pair (U+{ord(text[at]):04X} at character {at}), which is not a "
                "character; send valid Unicode."
            ) from cause
        return list(self._core.encode(text, add_special_tokens=add_special_tokens).ids)

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of `ids`; bytes that are not UTF-8 become U+FFFD. Ids that stand for nothing have no text."""
        skipped = self.special_ids if skip_special_tokens else frozenset()
        text = b"".join(self.token_bytes(i) for i in ids if i not in skipped).decode("utf-8", "replace")
        return text.removeprefix(" ") if self.drops_leading_space else text

    def token_bytes(self, token_id: int) -> bytes:
        """The exact bytes that this token adds to the text; empty for an id that stands for nothing."""
        if not 0 <= token_id < self.vocab_size:
            return b""
        known = self._bytes[token_id]
        if known is None:
            known = self._bytes[token_id] = self._make_bytes(token_id)
        return known

    def _make_bytes(self, token_id: int) -> bytes:
        added = self._added.get(token_id)
        if added is not None:
            return str(added.content).encode("utf-8")
        entry = self._core.id_to_token(token_id)
        return b"" if entry is None else self._rule.to_bytes(entry)

    def id_of(self, token: str) -> int | None:
        """The id of a vocabulary entry or special token, None if there is none."""
        found: int | None = self._core.token_to_id(token)
        return found

    def token(self, token_id: int) -> str:
        """The vocabulary entry of an id. Raises InvalidRequest for an id that stands for nothing."""
        entry: str | None = self._core.id_to_token(token_id) if 0 <= token_id < self.vocab_size else None
        if entry is None:
            raise InvalidRequest(f"Token id {token_id} is not in the vocabulary (0 to {self.vocab_size - 1}).")
        return entry

    @property
    def definition(self) -> str:
        """All that encoding depends on, as JSON."""
        found: str = self._core.to_str(pretty=False)
        return found

    def entries(self) -> dict[int, str]:
        """Every id that stands for something, and its vocabulary entry or special token."""
        return {token_id: entry for entry, token_id in self._core.get_vocab(with_added_tokens=True).items()}

    def rules(self) -> tuple[str, list[tuple[str, ...]]]:
        """The kind of its model (BPE, Unigram …), and the merges, in order; [] if it has none."""
        model = json.loads(self.definition)["model"]
        merges = model.get("merges", ())
        return model["type"], [tuple(pair.split(" ") if isinstance(pair, str) else pair) for pair in merges]

    @property
    def drops_leading_space(self) -> bool:
        """True if text loses one space at its very beginning (SentencePiece puts it there)."""
        return self._rule.drops_leading_space

    def save(self, folder: Path) -> None:
        """Write `tokenizer.json` and `tokenizer_config.json`, each complete or not at all."""
        config: dict[str, Any] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            "added_tokens_decoder": {str(i): _flags(token) for i, token in sorted(self._added.items())},
            **self.special_tokens,
        }
        if self.chat_template is not None:
            config["chat_template"] = self.chat_template
        _replace(folder / "tokenizer.json", self.definition)
        _replace(folder / "tokenizer_config.json", json.dumps(config, ensure_ascii=False, indent=2) + "\n")

    def _glm_ends(self) -> Iterable[int]:
        ids = [i for token in GLM_ENDS if (i := self.id_of(token)) is not None and i in self._added]
        return ids if len(ids) == len(GLM_ENDS) and self.id_of("[gMASK]") is not None else ()


def _flags(token: Any) -> dict[str, Any]:
    names = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
    return {name: getattr(token, name) for name in names}


def _replace(path: Path, text: str) -> None:
    part = path.with_name(path.name + ".part")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    except OSError as cause:
        part.unlink(missing_ok=True)
        raise TokenizerError(f"{path} could not be written: {cause.strerror or cause}.") from cause
