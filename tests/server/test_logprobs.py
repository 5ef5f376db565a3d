"""Log-probabilities in both forms."""

from __future__ import annotations

import math
from typing import cast

from tests.server.fakes import EOS, ByteTokenizer

from gallium.server.logprobs import LegacyLogprobs, chat_logprobs, shown_logprobs
from gallium.text.tokenizer import Tokenizer
from gallium.types import Delta, TokenLogprob

TOKENIZER = cast(Tokenizer, ByteTokenizer(None))
A, B = TokenLogprob(97, -0.5, ((97, -0.5), (98, -1.5))), TokenLogprob(98, -1.0)


def test_chat_form_has_exact_bytes() -> None:
    half = TokenLogprob(0xC3, -0.1)
    first, second = chat_logprobs([A, half], TOKENIZER)["content"]
    assert first["token"] == "a" and first["bytes"] == [97]
    assert [entry["token"] for entry in first["top_logprobs"]] == ["a", "b"]
    assert second == {"token": "\ufffd", "logprob": -0.1, "bytes": [0xC3], "top_logprobs": []}


def test_probability_zero_is_a_number_in_json() -> None:
    (entry,) = chat_logprobs([TokenLogprob(97, -math.inf)], TOKENIZER)["content"]
    assert entry["logprob"] == -9999.0


def test_legacy_form_counts_characters_not_bytes() -> None:
    tokens = [TokenLogprob(byte, -1.0) for byte in "é€x".encode()]
    lists = LegacyLogprobs(TOKENIZER, skip_special_tokens=True).add(tokens)
    assert lists["text_offset"] == [0, 0, 1, 1, 1, 2]
    assert lists["tokens"] == ["bytes:\\xc3", "bytes:\\xa9", "bytes:\\xe2", "bytes:\\x82", "bytes:\\xac", "x"]


def test_legacy_form_over_several_pieces() -> None:
    growing = LegacyLogprobs(TOKENIZER, skip_special_tokens=True)
    assert growing.add([104])["token_logprobs"] == [None]
    lists = growing.add([A])
    assert lists["text_offset"] == [1]
    assert lists["top_logprobs"] == [{"a": -0.5, "b": -1.5}]
    assert growing.add([B])["top_logprobs"] == [{"b": -1.0}]  # the drawn token is always among them


def test_special_tokens_have_a_width_only_if_they_are_shown() -> None:
    tokens = [TokenLogprob(EOS, -1.0), B]
    assert LegacyLogprobs(TOKENIZER, skip_special_tokens=True).add(tokens)["text_offset"] == [0, 0]
    assert LegacyLogprobs(TOKENIZER, skip_special_tokens=False).add(tokens)["text_offset"] == [0, len("<|endoftext|>")]


def test_an_end_token_that_is_not_shown_has_none() -> None:
    ended = Delta(0, (EOS,), "", (A,), "stop", EOS)
    assert shown_logprobs(ended, include_stop=False) == ()
    assert shown_logprobs(ended, include_stop=True) == (A,)
    assert shown_logprobs(Delta(0, (97,), "", (A,), "stop", "a"), include_stop=False) == (A,)  # a stop string
    assert shown_logprobs(Delta(0, (97,), "a", (A,), "length"), include_stop=False) == (A,)
