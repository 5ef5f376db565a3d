"""Tokenizer from GGUF metadata: pre-tokenizers against an independent BPE, token types, and what damaged data says."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.glm_tokenizer import gguf_metadata

from gallium.errors import TokenizerError
from gallium.text.pretokenizers import PRE_RULES
from gallium.text.token_bytes import byte_alphabet
from gallium.text.tokenizer import Tokenizer

LETTER_OF = {byte: char for char, byte in byte_alphabet().items()}
WORDS = (
    *("the", "Paris", " city", "天气", "12345", "'LL", "'s", "_weather", "😀", "é", "e\u0301", "٣"),
    *("\n", "  ", "\r\n", "\t", "?!", "_", "$", "Ab", "x1y22"),
)
KNOWN = st.characters(exclude_categories=("Cs", "Cn"))  # libraries differ in what they know of newer Unicode
TEXTS = st.lists(st.sampled_from(WORDS) | st.text(KNOWN, max_size=4)).map("".join)


def isolate(pieces: list[str], pattern: str) -> list[str]:
    """Cut each piece so that every match stands alone."""
    out = []
    for piece in pieces:
        at = 0
        for match in regex.finditer(pattern, piece):
            out += [piece[at : match.start()], match[0]]
            at = match.end()
        out.append(piece[at:])
    return [piece for piece in out if piece]


def reference(metadata: dict[str, Any]) -> Callable[[str], list[int]]:
    """BPE by its definition: the merge of the lowest rank first, the leftmost of equals."""
    rule = PRE_RULES[metadata["tokenizer.ggml.pre"]]
    vocab = {token: i for i, token in enumerate(metadata["tokenizer.ggml.tokens"])}
    ranks = {tuple(line.split(" ")): i for i, line in enumerate(metadata["tokenizer.ggml.merges"])}

    def encode(text: str) -> list[int]:
        pieces = [unicodedata.normalize("NFC", text) if rule.normal_form else text]
        for pattern in rule.patterns:
            pieces = isolate(pieces, pattern)
        ids = []
        for piece in pieces:
            symbols = [letter for b in piece.encode() if (letter := LETTER_OF[b]) in vocab]  # SmolLM2 lacks some
            if rule.whole_words_first and "".join(symbols) in vocab:
                symbols = ["".join(symbols)]
            while ranked := [(ranks[pair], i) for i, pair in enumerate(pairwise(symbols)) if pair in ranks]:
                _, i = min(ranked)
                symbols[i : i + 2] = ["".join(symbols[i : i + 2])]
            ids += [vocab[symbol] for symbol in symbols]
        return ids

    return encode


def test_default_model_encodes_as_defined(smollm: Tokenizer, smollm_metadata: dict[str, Any]) -> None:
    defined = reference(smollm_metadata)

    @settings(max_examples=100, deadline=None)
    @given(text=TEXTS)
    def check(text: str) -> None:
        assert smollm.encode(text) == defined(text)

    check()


@pytest.mark.parametrize("pre", list(PRE_RULES))
def test_every_pre_tokenizer_encodes_as_defined(pre: str) -> None:
    metadata = gguf_metadata("glm4", pre=pre)
    tokenizer, defined = Tokenizer.from_gguf(metadata), reference(metadata)

    @settings(max_examples=25, deadline=None)
    @given(text=TEXTS)
    def check(text: str) -> None:
        assert tokenizer.encode(text) == defined(text)

    check()


def test_default_model(smollm: Tokenizer) -> None:
    assert smollm.vocab_size == 49152
    assert smollm.eos_ids == (2, 0)  # <|im_end|> by the file, <|endoftext|> ends a plain continuation
    assert smollm.special_tokens["bos_token"] == "<|im_start|>"
    assert smollm.encode("hi", add_special_tokens=True) == smollm.encode("hi")
    assert smollm.encode("<|im_start|>user\n") == [1, 4093, 198]
    assert smollm.encode(" 42") == [216, 36, 34]  # digits one by one; a prefix space is a token of its own
    assert smollm.chat_template is not None


def test_types_and_padding() -> None:
    tokenizer = Tokenizer.from_gguf(gguf_metadata("glm45", padding=7))
    assert tokenizer.id_of("[PAD0]") is None
    assert tokenizer.vocab_size == tokenizer.id_of("<|video|>") + 1  # type: ignore[operator]
    assert {tokenizer.token(i) for i in tokenizer.eos_ids} == {"<|endoftext|>", "<|user|>", "<|observation|>"}
    assert tokenizer.decode(tokenizer.encode("<think>the</think><|user|>")) == "<think>the</think>"


def test_visible_tokens_marked_control_stay_visible() -> None:
    metadata = gguf_metadata("glm45")
    metadata["tokenizer.ggml.token_type"] = [3 if kind == 4 else kind for kind in metadata["tokenizer.ggml.token_type"]]
    tokenizer = Tokenizer.from_gguf(metadata)
    assert tokenizer.decode(tokenizer.encode("<think>a</think><tool_call>")) == "<think>a</think><tool_call>"


def test_begin_token() -> None:
    bos = {"tokenizer.ggml.bos_token_id": 289}
    assert Tokenizer.from_gguf(gguf_metadata(**bos)).encode("a", add_special_tokens=True) == [64]
    added = Tokenizer.from_gguf(gguf_metadata(**bos, **{"tokenizer.ggml.add_bos_token": True}))
    assert added.encode("a", add_special_tokens=True) == [289, 64] and added.encode("a") == [64]
    llama = Tokenizer.from_gguf(gguf_metadata(pre="llama-bpe", **bos))
    assert llama.encode("a", add_special_tokens=True) == [289, 64]


def test_eot_and_eom_end_an_answer() -> None:
    ends = {
        "tokenizer.ggml.eot_token_id": 290,
        "tokenizer.ggml.eom_token_id": 291,
        "tokenizer.ggml.eos_token_id": 10**9,
    }
    assert set(Tokenizer.from_gguf(gguf_metadata(**ends)).eos_ids) >= {290, 291, 287}


def test_template_of_the_file() -> None:
    assert Tokenizer.from_gguf(gguf_metadata(**{"tokenizer.chat_template": "X"})).chat_template == "X"
    assert Tokenizer.from_gguf(gguf_metadata(**{"tokenizer.chat_template": "  "})).chat_template is None


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("tokenizer.ggml.model", None, "carries no tokenizer"),
        ("tokenizer.ggml.model", "llama", "Hugging Face folder"),
        ("tokenizer.ggml.pre", None, "does not say"),
        ("tokenizer.ggml.pre", "martian", "'martian'"),
        ("tokenizer.ggml.tokens", None, "tokens is not a list"),
        ("tokenizer.ggml.tokens", ["a", "a"], "types for"),
        ("tokenizer.ggml.merges", ["ab"], "'ab' is not a merge"),
        ("tokenizer.ggml.merges", ["zz yy"], "damaged"),
        ("tokenizer.ggml.merges", None, "merges is not a list"),
        ("tokenizer.ggml.token_type", [1, 1], "types for 2"),
    ],
)
def test_damaged_metadata(key: str, value: Any, says: str) -> None:
    with pytest.raises(TokenizerError, match=says):
        Tokenizer.from_gguf({k: v for k, v in {**gguf_metadata(), key: value}.items() if v is not None})


def test_doubled_and_empty_vocabulary() -> None:
    with pytest.raises(TokenizerError, match="occurs twice"):
        Tokenizer.from_gguf(
            {**gguf_metadata(), "tokenizer.ggml.tokens": ["a", "a"], "tokenizer.ggml.token_type": [1, 1]}
        )
    with pytest.raises(TokenizerError, match="empty"):
        Tokenizer.from_gguf({**gguf_metadata(), "tokenizer.ggml.tokens": [], "tokenizer.ggml.token_type": []})
