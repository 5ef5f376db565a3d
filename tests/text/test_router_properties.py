"""StreamRouter over generated answers: cutting does not matter, nothing is lost, and rendered calls come back."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.text.answers import FORMATS, TAGGED, TOOLS, Answer, answer, function

from gallium.text.builtin import FOLDER
from gallium.text.router import RouterFormat, detect_format, starts_in_reasoning
from gallium.text.template import ChatTemplate

TAGS = (
    "<think>", "</think>", "<tool_call>", "</tool_call>",
    "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>",
)  # fmt: skip
WORDS = (
    *("get_weather", "get_time", "get", "nope", "city", "days", "units", "options", "anything", "path"),
    *("\n", " ", "<", "</", "<th", "ink>", "_call>", "{", "}", "[", "]", '"', "\\", "5", "null", "天气", "😀"),
    *('{"city": "Paris"}', "{'days': 2}", "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>"),
)
TEXTS = st.lists(st.sampled_from(TAGS) | st.sampled_from(WORDS) | st.text(max_size=3), max_size=16).map("".join)


@settings(max_examples=600, deadline=None)
@given(
    fmt=st.sampled_from(FORMATS),
    text=TEXTS,
    cuts=st.lists(st.integers(0, 200), max_size=6),
    in_reasoning=st.booleans(),
    tools=st.sampled_from([TOOLS, TOOLS, TOOLS, None]),
    truncated=st.booleans(),
)
def test_any_split_gives_the_same_answer(
    fmt: RouterFormat, text: str, cuts: list[int], in_reasoning: bool, tools: Any, truncated: bool
) -> None:
    options = {"in_reasoning": in_reasoning, "tools": tools, "truncated": truncated}
    whole = answer(fmt, text, **options)
    bounds = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    assert answer(fmt, *(text[a:b] for a, b in pairwise(bounds)), **options) == whole
    assert answer(fmt, *text, **options) == whole


def letters(*texts: str) -> str:
    """Texts without blanks and the tags of reasoning, of which formats may drop some."""
    return re.sub(r"\s", "", "".join(re.sub("</?think>", "", text) for text in texts))


@settings(max_examples=300, deadline=None)
@given(fmt=st.sampled_from(FORMATS), text=TEXTS, in_reasoning=st.booleans(), tools=st.sampled_from([TOOLS, None]))
def test_text_outside_of_calls_is_never_lost(fmt: RouterFormat, text: str, in_reasoning: bool, tools: Any) -> None:
    made = answer(fmt, text, in_reasoning=in_reasoning, tools=tools)
    if not made.calls:
        cut = text.partition("</think>") if made.reasoning else (text,)
        assert letters(made.reasoning, made.content) == letters(*cut)
    if tools is None:
        assert not made.calls


@settings(max_examples=300, deadline=None)
@given(fmt=st.sampled_from(FORMATS), text=TEXTS)
def test_arguments_are_an_object_or_the_call_is_unfinished(fmt: RouterFormat, text: str) -> None:
    made = answer(fmt, text)
    for name, arguments in made.calls:
        try:
            assert isinstance(json.loads(arguments), dict)
        except ValueError:
            assert made.unfinished is not None and made.unfinished in {call[0] for call in made.calls}, name


# -- from a template and back --------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
RAW = st.text(max_size=12) | st.sampled_from([
    "", " a\n", "5", "null", '"quoted"', '{"a": 1}', "<b>&amp;</b>", "if a <b: </arg_value> c", "<tool_call>x",
    "a</tool_call>b", "</arg_key>", "<arg_key>x</arg_key>", "C:\\n\\", "天气 😀",
])  # fmt: skip
SCHEMAS: dict[str, tuple[Any, st.SearchStrategy[Any]]] = {
    "text": ("string", RAW),
    "whole": ("integer", st.integers()),
    "number": ("number", st.floats(allow_nan=False, allow_infinity=False) | st.integers()),
    "yes": ("boolean", st.booleans()),
    "list": ("array", st.lists(JSON, max_size=3)),
    "object": ("object", st.dictionaries(st.text(max_size=4), JSON, max_size=3)),
    "nothing": ("null", st.none()),
    "choice": ({"anyOf": [{"type": "integer"}, {"type": "string", "enum": ["low", "high"]}]},
               st.integers() | st.sampled_from(["low", "high"])),
}  # fmt: skip
ARGUMENTS = st.fixed_dictionaries({}, optional={key: values for key, (_, values) in SCHEMAS.items()})
NAMES = ("f", "f2", "look_up", "server.look-up")
OFFERED = [function(name, **{key: schema for key, (schema, _) in SCHEMAS.items()}) for name in NAMES]
TEMPLATES = {
    name: ChatTemplate((FOLDER / f"{name}.jinja").read_text(encoding="utf-8"), {})
    for name in ("glm4", "glm45", "glm47", "glm53")
}


def rendered_answer(name: str, message: dict[str, Any]) -> tuple[str, bool]:
    """What the model would have written for this message to be in its history, and if its answer opened in reasoning.

    Role tokens end an answer or, within GLM-4's several calls, are special and never become text.
    """
    template, user = TEMPLATES[name], {"role": "user", "content": "U"}
    prompt = template.render([user], tools=OFFERED)
    history = template.render([user, message], tools=OFFERED, add_generation_prompt=False)
    if not history.startswith(prompt):  # without reasoning the history closes what the prompt opens
        prompt = prompt.removesuffix("<think>")
    assert history.startswith(prompt)
    return history[len(prompt) :].replace("<|assistant|>", ""), starts_in_reasoning(prompt)


@pytest.mark.parametrize("name", list(TEMPLATES))
def test_rendered_calls_come_back(name: str) -> None:
    fmt = detect_format(TEMPLATES[name].source)

    @settings(max_examples=120, deadline=None)
    @given(
        calls=st.lists(st.tuples(st.sampled_from(NAMES), ARGUMENTS), min_size=1, max_size=3),
        thought=st.sampled_from(["", "Hm.\n\nYes."]) if fmt in TAGGED else st.just(""),
        said=st.sampled_from(["", "I look."]) if fmt in TAGGED else st.just(""),
    )
    def check(calls: list[tuple[str, dict[str, Any]]], thought: str, said: str) -> None:
        message = {
            "role": "assistant", "content": said, "reasoning_content": thought,
            "tool_calls": [{"function": {"name": name, "arguments": arguments}} for name, arguments in calls],
        }  # fmt: skip
        text, in_reasoning = rendered_answer(name, message)
        made = answer(fmt, *text, in_reasoning=in_reasoning, tools=OFFERED)
        assert [(name, json.loads(arguments)) for name, arguments in made.calls] == calls
        assert made == Answer(said, thought, made.calls)

    check()
