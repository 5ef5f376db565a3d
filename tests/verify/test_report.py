"""The text and the page: everything that counts is there, and emulation is said first."""

from __future__ import annotations

import json
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest
from tests.verify.making import PROMPTS, cpu_and_reference, emulated, model

from gallium.verify.comparing import Comparison, compare
from gallium.verify.faults import self_test
from gallium.verify.opening import Pair
from gallium.verify.report import page, text
from gallium.verify.results import result_of, self_test_of


def pair_of(virtual: bool) -> Pair:
    tested, other = cpu_and_reference("glm4_moe-odd", "int8")
    return Pair("tiny <b>", False, model("glm4_moe-odd")[0], None, emulated(tested) if virtual else tested, other)


@pytest.fixture(scope="module")
def found() -> Comparison:
    pair = pair_of(False)
    return compare(pair.tested, pair.other, PROMPTS, 4)


class Page(HTMLParser):
    """Whether tags are closed in order, what is fetched, and the words."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.words = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.fetched += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


def read(html: str) -> Page:
    found = Page()
    found.feed(html)
    assert found.open == [] and found.fetched == []
    return found


def test_the_text_has_every_op_and_layer(found: Comparison) -> None:
    lines = text(result_of(pair_of(False), PROMPTS, found)).splitlines()
    assert lines[0] == "tiny <b> (glm4_moe, 3 layers), prompts of 8 and 5 tokens"
    starts = {line.split()[0] for line in lines if line.split()}
    assert {row.op for row in found.ops} <= starts and {"embedding", "0", "1", "2", "head"} <= starts
    assert any(line.startswith("Logits (drift): KL 0.") for line in lines)
    assert sum(line.startswith("Greedy decoding of prompt") for line in lines) == 2
    assert lines[-1].startswith("Verdict: drift (")
    assert "EMULATED" not in "\n".join(lines)


def test_the_page_stands_alone_and_has_the_same(found: Comparison) -> None:
    html = page(result_of(pair_of(False), PROMPTS, found))
    shown = read(html)
    assert "tiny <b>" in shown.words and "tiny &lt;b&gt;" in html
    for row in found.ops:
        assert row.op in shown.words and row.site in shown.words
    assert "EMULATED" not in shown.words


def test_emulation_is_said_everywhere(found: Comparison) -> None:
    pair = pair_of(True)
    result = result_of(pair, PROMPTS, found)
    assert result["emulated"] is True and result["tested"]["emulated"] is True
    assert text(result).startswith("EMULATED: cpu ran on emulated hardware.")
    html = page(result)
    assert "<title>gallium verify: cpu (EMULATED), int8 EMULATED</title>" in html
    assert '<p class="note">EMULATED: cpu ran on emulated hardware.' in html
    tested = self_test_of(pair, PROMPTS, [])
    assert text(tested).startswith("EMULATED") and '<p class="note">EMULATED' in page(tested)


def test_a_wrong_result_is_loud(found: Comparison) -> None:
    bad = replace(found.ops[3], finding=replace(found.ops[3].finding, verdict="wrong", error=float("inf")))
    result = result_of(pair_of(False), PROMPTS, replace(found, ops=[bad, *found.ops]))
    assert result["verdict"] == "wrong" and result["counts"]["wrong"] == 1
    assert "WRONG" in text(result) and "not finite" in text(result)
    assert '<span class="v wrong">WRONG</span>' in page(result)


def test_json_has_no_words_that_are_no_json(found: Comparison) -> None:
    bad = replace(found.ops[3].finding, error=float("inf"), got=float("nan"), mean=float("inf"))
    result = result_of(pair_of(False), PROMPTS, replace(found, ops=[replace(found.ops[3], finding=bad)]))
    again: dict[str, Any] = json.loads(json.dumps(result, allow_nan=False))
    assert again == result and again["places"][0]["error"] is None


def test_the_self_test_is_told(found: Comparison) -> None:
    pair = pair_of(False)
    result = self_test_of(pair, PROMPTS, list(self_test(pair.tested, pair.other, PROMPTS)))
    shown = text(result)
    assert shown.endswith("Self-test: every fault was found.")
    assert "swapped rope pairing" in shown and "rope in 1, gqa in 1" in shown
    assert "dropped router bias" in read(page(result)).words
