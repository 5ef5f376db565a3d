"""Byte-level BPE tokenizers with GLM's special tokens at their ids, for tests: no GLM tokenizer can be had offline.

The layout of the special tokens is that of GLM-4.5's tokenizer_config.json; GLM-5's and GLM-Edge's known ids lie at
the same distances from `<|endoftext|>`. The vocabulary beside them is the 256 bytes and a few merges.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gallium.text.token_bytes import byte_alphabet

FIRST_SPECIAL = {"glm4": 151329, "glm45": 151329, "glm5": 154820, "edge": 59246}
ROLES = (
    "<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>",
    "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>",
)  # fmt: skip
MEDIA = tuple(
    f"<|{side}_of_{kind}|>" for kind in ("image", "video", "audio", "transcription") for side in ("begin", "end")
)
CODE = ("<|code_prefix|>", "<|code_middle|>", "<|code_suffix|>")
VISIBLE = (
    "<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>",
    "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>", "/nothink",
)  # fmt: skip
BOXES = ("<|begin_of_box|>", "<|end_of_box|>", "<|image|>", "<|video|>")
CUT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_WORDS = ("the", "Ġthe", "and", "ing", "Paris", "天气", "get", "_weather", "Ġcity")


def special_tokens(family: str) -> list[tuple[str, bool]]:
    """(Token, whether it is special), in the order of their ids from FIRST_SPECIAL on."""
    found = [(token, True) for token in ROLES]
    if family in ("glm45", "glm5"):
        found += [(token, True) for token in (*MEDIA, *CODE)]
        found += [(token, False) for token in VISIBLE]
        found += [(token, True) for token in BOXES]
    return found


def small_vocab() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """The 256 bytes, and the merges that build a few words."""
    vocab = {char: i for i, char in enumerate(byte_alphabet())}
    letters = {byte: char for char, byte in byte_alphabet().items()}
    merges: list[tuple[str, str]] = []
    for word in _WORDS:
        parts = [c if c in vocab else "".join(letters[b] for b in c.encode()) for c in word]
        pieces = [char for part in parts for char in part]
        left = pieces[0]
        for right in pieces[1:]:
            if left + right not in vocab:
                vocab[left + right] = len(vocab)
                merges.append((left, right))
            left += right
    return vocab, merges


def tokenizer_json(family: str = "glm45", *, adds_prefix: bool = False, first: int | None = None) -> dict[str, Any]:
    """The content of a tokenizer.json. `adds_prefix`: as GLM-4-9B's, which puts [gMASK]<sop> before every text."""
    vocab, merges = small_vocab()
    first = FIRST_SPECIAL[family] if first is None else first
    added = [
        {"id": first + i, "content": token, "special": special, "normalized": False, "lstrip": False, "rstrip": False,
         "single_word": False}
        for i, (token, special) in enumerate(special_tokens(family))
    ]  # fmt: skip
    vocab.update({entry["content"]: entry["id"] for entry in added})
    prefix = {"[gMASK]": first + 2, "<sop>": first + 4}
    post = {
        "type": "TemplateProcessing",
        "single": [
            *({"SpecialToken": {"id": token, "type_id": 0}} for token in prefix),
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {token: {"id": token, "ids": [i], "tokens": [token]} for token, i in prefix.items()},
    }  # fmt: skip
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": CUT}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
            ],
        },
        "post_processor": post if adds_prefix else None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "vocab": vocab, "merges": [list(pair) for pair in merges]},
    }


def tokenizer_config(family: str = "glm45", **more: Any) -> dict[str, Any]:
    """The content of a tokenizer_config.json, in the `added_tokens_decoder` dialect."""
    first = FIRST_SPECIAL[family]
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    return {
        "added_tokens_decoder": {
            str(first + i): {"content": token, "special": special, **flags}
            for i, (token, special) in enumerate(special_tokens(family))
        },
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "tokenizer_class": "PreTrainedTokenizer",
        **more,
    }


def write_folder(path: Path, family: str = "glm45", *, adds_prefix: bool = False, **config: Any) -> Path:
    """A folder with a tokenizer of the family."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "tokenizer.json").write_text(json.dumps(tokenizer_json(family, adds_prefix=adds_prefix)), encoding="utf-8")
    (path / "tokenizer_config.json").write_text(json.dumps(tokenizer_config(family, **config)), encoding="utf-8")
    return path


def gguf_metadata(family: str = "glm45", *, pre: str = "glm4", padding: int = 3, **more: Any) -> dict[str, Any]:
    """A GGUF file's tokenizer: the same entries, without the gap before the special tokens, and padded at the end."""
    vocab, merges = small_vocab()
    specials = special_tokens(family)
    tokens = [*vocab, *(token for token, _ in specials), *(f"[PAD{i}]" for i in range(padding))]
    types = [1] * len(vocab) + [3 if special else 4 for _, special in specials] + [5] * padding
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": [" ".join(pair) for pair in merges],
        "tokenizer.ggml.eos_token_id": len(vocab),
        **more,
    }
