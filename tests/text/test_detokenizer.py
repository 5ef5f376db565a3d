"""Detokenizer: pieces and flush are the whole text, and no character is ever shown broken."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.text.test_tokenizer import space_marked

from gallium.text.detokenizer import Detokenizer
from gallium.text.tokenizer import Tokenizer


def pieces_of(tokenizer: Tokenizer, ids: list[int], sizes: list[int], skip: bool = True) -> list[str]:
    """The text of `ids`, pushed in groups of these sizes (the last size repeats), and the flush."""
    detokenizer, out, at = Detokenizer(tokenizer, skip_special_tokens=skip), [], 0
    while at < len(ids):
        size = sizes[min(len(out), len(sizes) - 1)]
        out.append(detokenizer.push(ids[at : at + size]))
        at += size
    return [*out, detokenizer.flush()]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(0, 49151) | st.integers(0, 300), max_size=30),
    st.lists(st.integers(1, 4), min_size=1),
    st.booleans(),
)
def test_pieces_are_the_whole(smollm: Tokenizer, ids: list[int], sizes: list[int], skip: bool) -> None:
    assert "".join(pieces_of(smollm, ids, sizes, skip)) == smollm.decode(ids, skip_special_tokens=skip)


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="天气你好😀👨‍👩‍👧é aZ\n", max_size=20))
def test_no_broken_character_is_shown(smollm: Tokenizer, text: str) -> None:
    pieces = pieces_of(smollm, smollm.encode(text), [1])
    assert "\ufffd" not in "".join(pieces) and "".join(pieces) == text
    assert pieces[-1] == ""


def test_emoji_over_several_tokens(smollm: Tokenizer) -> None:
    ids = smollm.encode("😀")
    assert len(ids) > 1
    assert pieces_of(smollm, ids, [1]) == [""] * (len(ids) - 1) + ["😀", ""]
    assert pieces_of(smollm, ids[:-1], [1])[-1] == "\ufffd"  # unfinished at the end: shown, not lost


def test_visible_and_special_tokens(glm45: Tokenizer) -> None:
    ids = glm45.encode("<|assistant|><think>a</think>b<tool_call><|user|>")
    assert "".join(pieces_of(glm45, ids, [1])) == "<think>a</think>b<tool_call>"
    assert "".join(pieces_of(glm45, ids, [1], skip=False)) == "<|assistant|><think>a</think>b<tool_call><|user|>"


def test_ids_without_text(glm45: Tokenizer) -> None:
    """A hole of the vocabulary, and rows that are padding, add nothing."""
    assert pieces_of(glm45, [100_000, 151_400, 64], [1]) == ["", "", "a", ""]


@pytest.mark.parametrize("strip", [True, False])
def test_space_marked_vocabulary(tmp_path: Path, strip: bool) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(space_marked(strip)))
    tokenizer = Tokenizer.from_folder(tmp_path)

    @settings(max_examples=100, deadline=None)
    @given(st.lists(st.integers(0, 263), max_size=12))
    def check(ids: list[int]) -> None:
        assert "".join(pieces_of(tokenizer, ids, [1])) == tokenizer.decode(ids)

    check()
    assert "".join(pieces_of(tokenizer, tokenizer.encode("hi 天"), [1])) == ("" if strip else " ") + "hi 天"
