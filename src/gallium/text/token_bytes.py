"""From a vocabulary entry to the exact bytes it stands for, for the two ways of writing bytes that checkpoints use."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from gallium.errors import TokenizerError

SPACE_MARK = "\u2581"
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def byte_alphabet() -> dict[str, int]:
    """Character → byte of GPT-2's byte-level alphabet.

    Printable Latin-1 characters stand for themselves, the other bytes for the characters from U+0100 on, in order.
    """
    plain = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    table = {chr(byte): byte for byte in sorted(plain)}
    others = [byte for byte in range(256) if byte not in plain]
    table.update({chr(0x100 + i): byte for i, byte in enumerate(others)})
    return table


_ALPHABET = byte_alphabet()


class ByteRule(NamedTuple):
    """How a tokenizer writes bytes: `to_bytes` for one entry, and whether the text loses a space at its beginning."""

    name: str
    to_bytes: Callable[[str], bytes]
    drops_leading_space: bool


def from_byte_level(entry: str) -> bytes:
    """The bytes of a byte-level entry; one with a character outside the alphabet stands for its own text."""
    try:
        return bytes(map(_ALPHABET.__getitem__, entry))
    except KeyError:
        return entry.encode("utf-8")


def from_marked(entry: str) -> bytes:
    """The bytes of a SentencePiece-style entry: `▁` is a space, `<0x0A>` one byte."""
    match = _BYTE_TOKEN.fullmatch(entry)
    return bytes([int(match[1], 16)]) if match else entry.replace(SPACE_MARK, " ").encode("utf-8")


BYTE_LEVEL = ByteRule("byte-level", from_byte_level, False)


def byte_rule(decoder: Any, where: str) -> ByteRule:
    """The rule that a `tokenizers` decoder follows. Raises TokenizerError for one that is not a plain join of bytes."""
    if decoder is None:
        raise TokenizerError(f"{where} has no decoder, so its tokens cannot be turned into text; it is damaged.")
    state = json.loads(decoder.__getstate__())
    steps = state["decoders"] if state["type"] == "Sequence" else [state]
    kinds = {step["type"] for step in steps}
    if "ByteLevel" in kinds and kinds <= {"ByteLevel", "Fuse"}:
        return BYTE_LEVEL
    if kinds <= {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"} and all(map(_is_plain, steps)):
        dropped = sum(_dropped_spaces(step) for step in steps)
        return ByteRule("space-marked", from_marked, dropped > 0)
    raise TokenizerError(
        f"{where} has a decoder of kind {', '.join(sorted(kinds))}, which Gallium does not know; "
        "it knows byte-level and SentencePiece-style ones."
    )


def _is_plain(step: dict[str, Any]) -> bool:
    if step["type"] == "Replace":
        return bool(step["pattern"] == {"String": SPACE_MARK} and step["content"] == " ")
    if step["type"] == "Strip":
        return bool(step["content"] == " " and step["start"] <= 1 and step["stop"] == 0)
    return bool(step["type"] != "Metaspace" or step["replacement"] == SPACE_MARK)


def _dropped_spaces(step: dict[str, Any]) -> int:
    if step["type"] == "Strip":
        return int(step["start"])
    return int(step["type"] == "Metaspace" and step.get("prepend_scheme", "always") != "never")
