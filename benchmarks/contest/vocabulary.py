"""A byte-level BPE tokenizer of any size, so that every id of a random model stands for some text."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

from gallium.text.token_bytes import byte_alphabet

END = "<|endoftext|>"
LETTERS = "abcdefghijklmnopqrstuvwxyz"
CUT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)  # GLM-4's


def end_token(vocab_size: int) -> int:
    """The id of the one special token: the last."""
    return vocab_size - 1


def vocabulary(size: int) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """The bytes, then words of two, three and four letters with a space before them or not, and their merges."""
    vocab = {char: i for i, char in enumerate(byte_alphabet())}
    merges: list[tuple[str, str]] = []
    shorter = [*LETTERS, "Ġ"]
    while len(vocab) < size - 1:
        longer = []
        for left, right in product(shorter, LETTERS):
            if len(vocab) >= size - 1:
                break
            vocab[left + right] = len(vocab)
            merges.append((left, right))
            longer.append(left + right)
        shorter = longer
    vocab[END] = end_token(size)
    return vocab, merges


def write_tokenizer(folder: Path, size: int) -> None:
    """tokenizer.json and tokenizer_config.json."""
    vocab, merges = vocabulary(size)
    added = {"id": vocab[END], "content": END, "special": True, "normalized": False, "lstrip": False, "rstrip": False,
             "single_word": False}  # fmt: skip
    tokenizer: dict[str, Any] = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [added], "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": CUT}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        ]},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "vocab": vocab, "merges": [list(pair) for pair in merges]},
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END, "pad_token": END,
              "model_max_length": 131072, "clean_up_tokenization_spaces": False}  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
