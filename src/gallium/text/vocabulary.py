"""Vocabulary: tokens and merges of a byte-level BPE tokenizer as mapped arrays, read only where something is asked.

Building such a tokenizer from its JSON takes as long as everything else of a start together. A packed folder has the
same in `vocabulary.safetensors`, beside the JSON that it was made from: a start then builds what the prompt needs
(growing.py).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

import msgspec
import numpy as np
from numpy.typing import NDArray

from gallium.checkpoints.safetensors_file import read_with_metadata
from gallium.errors import CheckpointError

VOCABULARY_FILE = "vocabulary.safetensors"
SOURCES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
"""What the file was made from: it is left aside when one of them has changed."""
KEY, VERSION = "gallium.vocabulary", 1
PLAIN = {"dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
         "fuse_unk": False, "byte_fallback": False}  # fmt: skip
"""Settings of a BPE model with which a word's tokens depend on the tokens and merges within it alone."""


class About(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the file has besides the arrays."""

    version: int
    checksums: dict[str, int]  # CRC-32 of each of SOURCES that is there
    shell: str  # tokenizer.json without tokens and merges
    ignore_merges: bool
    special_tokens: dict[str, str]
    eos_ids: list[int]
    chat_template: str | None


class Merge(NamedTuple):
    """One way to make a token."""

    rank: int
    left: int
    right: int


class Vocabulary:
    """Look-ups over the arrays. Texts are in the tokenizer's own alphabet, ids as the model has them."""

    def __init__(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Raises CheckpointError unless the arrays fit each other."""
        self._text = arrays["text"].data
        self._ends = arrays["ends"]
        self._ids = arrays["ids"]
        self._order = arrays["order"]
        self._merge_ends, self._merges = arrays["merge_ends"], arrays["merges"].reshape(-1, 3)
        count = len(self._ends)
        if not (
            len(self._ids) == len(self._order) == len(self._merge_ends) == count
            and count and self._ends[-1] == len(self._text) and self._merge_ends[-1] == len(self._merges)
        ):  # fmt: skip
            raise CheckpointError(f"{VOCABULARY_FILE} is damaged: its arrays do not fit each other.")
        self.size = int(self._ids[-1]) + 1

    def text(self, token: int) -> str | None:
        """The token of an id, None if there is none."""
        at = int(np.searchsorted(self._ids, token))
        return str(self._entry(at), "utf-8") if at < len(self._ids) and self._ids[at] == token else None

    def find(self, text: str) -> int | None:
        """The id of a token, None if it is none."""
        at = self._find(text.encode())
        return None if at is None else int(self._ids[at])

    def merges(self, text: str) -> list[Merge]:
        """The merges that make a token."""
        at = self._find(text.encode())
        if at is None:
            return []
        start = int(self._merge_ends[at - 1]) if at else 0
        return [Merge(*row) for row in self._merges[start : int(self._merge_ends[at])].tolist()]

    def _entry(self, at: int) -> memoryview:
        return self._text[int(self._ends[at - 1]) if at else 0 : int(self._ends[at])]

    def _find(self, text: bytes) -> int | None:
        low, high = 0, len(self._order)
        while low < high:
            middle = (low + high) // 2
            if bytes(self._entry(int(self._order[middle]))) < text:
                low = middle + 1
            else:
                high = middle
        if low == len(self._order):
            return None
        at = int(self._order[low])
        return at if self._entry(at) == text else None


def tables(vocab: Mapping[str, int], merges: Iterable[tuple[str, str]]) -> dict[str, NDArray[Any]]:
    """The arrays of a Vocabulary: texts by id; their order; and by id the merges, (rank, left id, right id)."""
    tokens = sorted(vocab, key=vocab.__getitem__)
    texts = [token.encode() for token in tokens]
    ways: dict[str, list[tuple[int, int, int]]] = {}
    for rank, (left, right) in enumerate(merges):
        ways.setdefault(left + right, []).append((rank, vocab[left], vocab[right]))
    rows = [row for token in tokens for row in ways.get(token, ())]
    return {
        "text": np.frombuffer(b"".join(texts), np.uint8),
        "ends": np.cumsum([len(text) for text in texts], dtype=np.int32),
        "ids": np.array([vocab[token] for token in tokens], np.int32),
        "order": np.array(sorted(range(len(texts)), key=texts.__getitem__), np.int32),
        "merge_ends": np.cumsum([len(ways.get(token, ())) for token in tokens], dtype=np.int32),
        "merges": np.array(rows, np.int32).reshape(-1, 3),
    }


def write_vocabulary(
    folder: Path, full: str, *, special_tokens: dict[str, str], eos_ids: Iterable[int], chat_template: str | None
) -> bool:
    """Write the file for a tokenizer in `folder`, whose whole JSON is `full`; False if it is of a kind without one."""
    from safetensors.numpy import save

    shell: dict[str, Any] = json.loads(full)
    model = shell["model"]
    if model.get("type") != "BPE" or any(model.get(key, off) not in (off, "") for key, off in PLAIN.items()):
        return False
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ", 1)) for m in model["merges"]]
    vocab: dict[str, int] = model["vocab"]
    added = {entry["content"]: entry["id"] for entry in shell["added_tokens"]}
    if not vocab or len(set((vocab | added).values())) < len(vocab | added):
        return False
    whole_words = bool(model.get("ignore_merges", False))
    if whole_words and (shell["normalizer"] or any(entry["single_word"] for entry in shell["added_tokens"])):
        return False  # a word might then be the text of an added token, which only the model's own tokens may be
    letters = {token: i for token, i in vocab.items() if len(token) == 1}
    shell["model"] = model | {"vocab": letters | added, "merges": []}
    about = About(
        VERSION, checksums(folder), json.dumps(shell, ensure_ascii=False), whole_words, special_tokens, list(eos_ids),
        chat_template,
    )  # fmt: skip
    metadata = {KEY: msgspec.json.encode(about).decode()}
    (folder / VOCABULARY_FILE).write_bytes(save(tables(vocab | added, merges), metadata))
    return True


def read_vocabulary(folder: Path) -> tuple[About, Vocabulary] | None:
    """The file of a folder; None if there is none, or if the tokenizer's own files have changed since (with a warning).

    Raises CheckpointError if it is damaged.
    """
    path = folder / VOCABULARY_FILE
    if not path.exists():
        return None
    tensors, metadata = read_with_metadata(path)
    try:
        about = msgspec.json.decode(metadata[KEY], type=About)
        kinds = {"U8": np.uint8, "I32": np.int32}
        vocabulary = Vocabulary({name: t.data.view(kinds[t.storage]) for name, t in tensors.items()})
    except (KeyError, msgspec.DecodeError) as cause:
        raise CheckpointError(f"{path} is damaged ({cause}): delete it, or convert the model again.") from cause
    if about.version != VERSION or about.checksums != checksums(folder):
        logging.getLogger(__name__).warning(
            "%s is not used: it is of another version, or the tokenizer's files have changed since. Answers stay right,"
            " but starts take longer: convert the model again.",
            path,
        )
        return None
    return about, vocabulary


def checksums(folder: Path) -> dict[str, int]:
    """CRC-32 of the tokenizer's own files."""
    return {name: crc32((folder / name).read_bytes()) for name in SOURCES if (folder / name).exists()}
