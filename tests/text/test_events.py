"""Events are merged where they continue each other, and ends that may become markers are found."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.text.answers import merged

from gallium.text.events import (
    Content,
    Reasoning,
    ToolCallArguments,
    ToolCallStart,
    first_of,
    held_back,
    may_begin,
)

MARKERS = ("<think>", "</think>", "<tool_call>")


def test_neighbours_of_one_kind_become_one():
    first, second = ToolCallStart(0, "a", "f"), ToolCallStart(1, "b", "f")
    events = [
        *(Content(""), Reasoning("R"), Reasoning(""), Reasoning("S"), Content("A"), Content("B"), first),
        *(ToolCallArguments(0, ""), ToolCallArguments(0, "{"), ToolCallArguments(0, "}"), second),
        *(ToolCallArguments(1, "{}"), ToolCallArguments(2, "{}"), Content("C"), Reasoning("T")),
    ]
    assert merged(events) == [
        *(Reasoning("RS"), Content("AB"), first, ToolCallArguments(0, "{}"), second),
        *(ToolCallArguments(1, "{}"), ToolCallArguments(2, "{}"), Content("C"), Reasoning("T")),
    ]


@pytest.mark.parametrize(
    ("text", "length"),
    [("", 0), ("a", 0), ("a<", 1), ("a</th", 4), ("<think", 6), ("<think>", 0), ("<<", 1), ("<th<tool_", 6),
     ("<x", 0), ("a < b", 0), ("<tool_call", 10), ("<tool_cal ", 0)],
)  # fmt: skip
def test_held_back(text, length):
    assert held_back(text, MARKERS) == length


@given(text=st.text(alphabet="<>/thinkool_c", max_size=30) | st.lists(st.sampled_from(MARKERS)).map("".join))
def test_held_back_is_the_longest_beginning_of_a_marker(text):
    lengths = [n for n in range(1, len(text) + 1) if may_begin(text[len(text) - n :], MARKERS)]
    assert held_back(text, MARKERS) == max(lengths, default=0)


@pytest.mark.parametrize(
    ("text", "verdict"), [("", True), ("<", True), ("<think", True), ("<think>", False), ("<thinker", False)]
)
def test_may_begin(text, verdict):
    assert may_begin(text, MARKERS) is verdict


def test_first_of():
    text = "a</think><think></think>"
    assert first_of(text, MARKERS) == (1, "</think>")
    assert first_of(text, MARKERS, 2) == (9, "<think>")
    assert first_of("a<thin", MARKERS) is None
    assert first_of(text, ()) is None
