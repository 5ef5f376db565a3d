"""StreamRouter: what each family's answers are split into, and the bugs that other engines' parsers have had."""

from __future__ import annotations

import json

import pytest
from tests.text.answers import FORMATS, TAGGED, Answer, answer, one_by_one, route

from gallium.text.router import (
    Content,
    Reasoning,
    RouterFormat,
    ToolCallArguments,
    ToolCallStart,
    detect_format,
    starts_in_reasoning,
)

WEATHER = {
    "glm45": "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n</tool_call>",
    "glm47": "<tool_call>get_weather<arg_key>city</arg_key><arg_value>Paris</arg_value></tool_call>",
    "glm4": 'get_weather\n{"city": "Paris"}',
}
TIME = {
    "glm45": "<tool_call>get_time\n</tool_call>",
    "glm47": "<tool_call>get_time</tool_call>",
    "glm4": "get_time\n{}",
}
CALLS = (("get_weather", '{"city": "Paris"}'), ("get_time", "{}"))
CALLING: tuple[RouterFormat, ...] = ("glm4", *TAGGED)


@pytest.mark.parametrize(
    ("fmt", "in_reasoning", "text", "reasoning", "content"),
    [
        ("plain", False, "<think>a</think>\nb", "", "<think>a</think>\nb"),
        ("plain", False, "\n a <b", "", "\n a <b"),
        ("plain", True, "\na\n</think>\n\nb", "a", "b"),
        ("glm4", False, "\nHello", "", "Hello"),
        ("glm4", True, "why\n</think>\n\nBecause", "why", "Because"),
        ("glm45", False, "\n<think>R1\nR2</think>\nA1\n\nA2\n", "R1\nR2", "A1\n\nA2\n"),
        ("glm45", False, "\n<think></think>\nA", "", "A"),
        ("glm45", False, "\nA", "", "A"),
        ("glm47", True, "R</think>A", "R", "A"),
        ("glm47", True, " R </think>\n A", " R ", "\n A"),
        ("glm47", False, "A", "", "A"),
    ],
)
def test_reasoning_and_content(fmt, in_reasoning, text, reasoning, content):
    assert one_by_one(fmt, text, in_reasoning=in_reasoning) == Answer(content, reasoning)


@pytest.mark.parametrize("fmt", CALLING)
def test_several_calls(fmt):
    text = WEATHER[fmt] + "\n" + TIME[fmt]
    assert one_by_one(fmt, text) == Answer(calls=CALLS)
    assert one_by_one(fmt, f"R</think>\n{text}", in_reasoning=True) == Answer(reasoning="R", calls=CALLS)


@pytest.mark.parametrize("fmt", TAGGED)
def test_blanks_around_calls_belong_to_the_format(fmt):
    text = f"I look.\n\n{WEATHER[fmt]}\n{TIME[fmt]}\n\nDone.\n"
    assert one_by_one(fmt, text) == Answer("I look.Done.\n", calls=CALLS)


# -- the bugs of other parsers: glm.md, section 3.6 ----------------------------------------


@pytest.mark.parametrize("fmt", CALLING)
def test_call_without_arguments_is_not_dropped(fmt):
    assert one_by_one(fmt, TIME[fmt]) == Answer(calls=(("get_time", "{}"),))


@pytest.mark.parametrize("fmt", CALLING)
def test_several_tags_in_one_piece_do_not_merge_calls(fmt):
    text = WEATHER[fmt] + TIME[fmt] + WEATHER[fmt]
    for cut in range(len(text)):
        assert answer(fmt, text[:cut], text[cut:]).calls == (*CALLS, CALLS[0])


@pytest.mark.parametrize("fmt", CALLING)
def test_name_is_neither_cut_nor_wrong(fmt):
    """`get` begins the names of the other tools; it must not be taken for them, nor they for it."""
    text = TIME[fmt].replace("get_time", "get") + "\n" + WEATHER[fmt]
    assert one_by_one(fmt, text).calls == (("get", "{}"), CALLS[0])


@pytest.mark.parametrize("fmt", TAGGED)
def test_call_inside_reasoning_is_not_swallowed(fmt):
    text = f"<think>I need the time.\n{TIME[fmt]}"
    expected = Answer(reasoning="I need the time.", calls=(("get_time", "{}"),))
    assert one_by_one(fmt, text) == expected
    assert one_by_one(fmt, text.removeprefix("<think>"), in_reasoning=True) == expected
    assert one_by_one(fmt, text + "\n</think>\n") == expected  # closed too late
    assert one_by_one(fmt, text + "</think></think>Done.").content == "Done."


@pytest.mark.parametrize(
    "arguments",
    [
        "city</arg_key><arg_value>Paris</arg_value>",
        "<arg_key>city</arg_key>Paris</arg_value>",
        "<arg_key>city<arg_value>Paris</arg_value>",
        "<arg_key>city</arg_key><arg_value>Paris",
        "<arg_key><arg_key>city</arg_key></arg_key><arg_value>Paris</arg_value>",
        '{"city": "Paris"}',
        "{'city': 'Paris'}",
    ],
)
@pytest.mark.parametrize("fmt", TAGGED)
def test_missing_and_doubled_argument_tags_do_not_empty_the_call(fmt, arguments):
    text = f"<tool_call>get_weather\n{arguments}\n</tool_call>".replace("\n", "\n" * (fmt == "glm45"))
    made = one_by_one(fmt, text)
    assert [(name, json.loads(said)["city"].strip()) for name, said in made.calls] == [("get_weather", "Paris")]
    assert (made.content, made.unfinished) == ("", None)


@pytest.mark.parametrize("fmt", TAGGED)
def test_second_argument_without_its_opening_tag(fmt):
    text = (
        "<tool_call>get_weather<arg_key>city</arg_key><arg_value>Paris</arg_value>"
        "days</arg_key><arg_value>2</arg_value></tool_call>"
    )
    assert one_by_one(fmt, text) == Answer(calls=(("get_weather", '{"city": "Paris", "days": 2}'),))


@pytest.mark.parametrize("fmt", TAGGED)
def test_strings_are_encoded_once(fmt):
    value = 'say "hi"\n\t<b>C:\\dir</b> {"a": 1} 天气 😀'
    text = f"<tool_call>get<arg_key>path</arg_key><arg_value>{value}</arg_value></tool_call>"
    ((_, arguments),) = one_by_one(fmt, text).calls
    assert json.loads(arguments) == {"path": value}


def test_an_object_written_as_a_string_is_an_object():
    text = '<tool_call>get<arg_key>options</arg_key><arg_value>"{\\"a\\": 1}"</arg_value></tool_call>'
    assert one_by_one("glm47", text).calls == (("get", '{"options": {"a": 1}}'),)


@pytest.mark.parametrize("fmt", CALLING)
def test_id_and_name_come_once(fmt):
    steps, _ = route(fmt, list(WEATHER[fmt]))
    starts = [event for step in steps for event in step if isinstance(event, ToolCallStart)]
    assert [event.name for event in starts] == ["get_weather"]
    assert all(isinstance(event, ToolCallArguments) for step in steps[-2:] for event in step)


@pytest.mark.parametrize("fmt", CALLING)
def test_arguments_stream_while_they_come(fmt):
    """Strings at once, not when the call ends: a file's content may take minutes."""
    text = WEATHER[fmt].replace("Paris", "Paris and much, much more")
    before = text[: text.index("much more")]
    steps, _ = route(fmt, list(before))
    sent = [event.delta for step in steps[:-1] for event in step if isinstance(event, ToolCallArguments)]
    assert "".join(sent) == '{"city": "Paris and much, '
    assert len(sent) > 15


def test_call_starts_before_its_arguments_come():
    steps, _ = route("glm47", ["<tool_call>get_weather<arg_key>"])
    assert [type(event) for event in steps[0]] == [ToolCallStart]


@pytest.mark.parametrize(
    ("fmt", "prompt", "text"),
    [
        ("glm45", "<|user|>\nhi/nothink<|assistant|>\n<think></think>", "\nHello."),
        ("glm45", "<|user|>\nhi<|assistant|>", "\nHello."),  # thinks as it likes
        ("glm47", "<|user|>hi<|assistant|></think>", "Hello."),
        ("glm47", "<|user|>hi<|assistant|></think>", "</think>Hello."),
        ("glm47", "<|user|>hi<|assistant|><think>", "</think>Hello."),
        ("glm47", "<|user|>hi<|assistant|><think>", "<think></think>Hello."),
    ],
)
def test_skipped_thinking_does_not_make_the_answer_reasoning(fmt, prompt, text):
    assert one_by_one(fmt, text, in_reasoning=starts_in_reasoning(prompt)) == Answer("Hello.")


@pytest.mark.parametrize(
    ("fmt", "prompt", "text"),
    [
        ("glm45", "<|user|>\nhi<|assistant|>", "\n<think>Hm.</think>\nHello."),
        ("glm47", "<|user|>hi<|assistant|><think>", "Hm.</think>Hello."),
        ("glm47", "<|user|>hi<|assistant|><think>", "<think>Hm.</think>Hello."),
        ("glm4", "<|user|>\nhi<|assistant|>\n<think>\n", "Hm.\n</think>\n\nHello."),
    ],
)
def test_reasoning_does_not_reach_the_content(fmt, prompt, text):
    assert one_by_one(fmt, text, in_reasoning=starts_in_reasoning(prompt)) == Answer("Hello.", "Hm.")


@pytest.mark.parametrize("tools", [None, [], [{"type": "web_search"}]])
@pytest.mark.parametrize("fmt", FORMATS)
def test_without_tools_nothing_is_a_call_and_no_text_comes_twice(fmt, tools):
    text = f"See:\n{WEATHER['glm45']}\n{TIME['glm47']}\n{WEATHER['glm4']} "
    assert one_by_one(fmt, text, tools=tools) == Answer(text)
    assert one_by_one(fmt, f"R</think>{text}", tools=tools, in_reasoning=True) == Answer(text, "R")


# -- what is not quite a call ------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>launch_missiles<arg_key>city</arg_key><arg_value>Paris</arg_value></tool_call>",
        "<tool_call>get_weatherman</tool_call>",
        '<tool_call>{"name": "get_time", "arguments": {}}</tool_call>',
        "The tag <tool_call> opens a call, </tool_call> closes it.",
        "<tool_call>get_time is what I would write.",
        "<tool_call>",
        "<tool_call></tool_call>",
        "<tool_call>get_wea",
        "a <tool_cal",
        "1 < 2 </arg_key> <think> </think> x",
    ],
)
@pytest.mark.parametrize("fmt", TAGGED)
def test_text_that_is_no_call_is_passed_on(fmt, text):
    assert one_by_one(fmt, text) == Answer(text)
    assert one_by_one(fmt, f"{text}</think>A", in_reasoning=True).reasoning == text.partition("</think>")[0].rstrip(
        " " * (fmt == "glm45")
    )


@pytest.mark.parametrize(
    "text", ["get_weather", "get_weather\n", "get_weather\nis a function.", "launch\n{}", "I say:\nget_time\n{}", "{}"]
)
def test_text_that_is_no_call_of_glm4(text):
    assert one_by_one("glm4", text) == Answer(text)


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("text", ["<thin", "<", "<think", "</thin", "a\n<tool", " \n "])
def test_marker_that_never_comes_is_text(fmt, text):
    made = one_by_one(fmt, text)
    assert made.content.strip() == text.strip() and not made.reasoning
    made = one_by_one(fmt, text, in_reasoning=True)
    assert made.reasoning.strip() == text.strip() and not made.content


@pytest.mark.parametrize("fmt", TAGGED)
def test_call_after_what_was_none(fmt):
    unknown = "<tool_call>nope</tool_call>"
    assert one_by_one(fmt, unknown + TIME[fmt]) == Answer(unknown, calls=(("get_time", "{}"),))


# -- calls that do not end ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ("<tool_call>get_weather<arg_key>", ""),
        ("<tool_call>get_weather<arg_key>city</arg_key>", ""),
        ("<tool_call>get_weather<arg_key>city</arg_key><arg_value>Par", '{"city": "Par'),
        ("<tool_call>get_weather<arg_key>days</arg_key><arg_value>1", ""),
        ("<tool_call>get_weather<arg_key>city</arg_key><arg_value>P</arg_value><arg_key>da", '{"city": "P"'),
    ],
)
@pytest.mark.parametrize("truncated", [True, False])
def test_half_a_call_is_not_closed(text, arguments, truncated):
    made = one_by_one("glm47", text, truncated=truncated)
    assert made == Answer(calls=(("get_weather", arguments),), unfinished="get_weather")


def test_forgotten_closing_tag_is_forgiven_unless_the_answer_was_cut_off():
    text = WEATHER["glm47"].removesuffix("</tool_call>")
    assert one_by_one("glm47", text) == Answer(calls=CALLS[:1])
    cut = one_by_one("glm47", text, truncated=True)
    assert cut == Answer(calls=(("get_weather", '{"city": "Paris'),), unfinished="get_weather")


def test_json_without_its_closing_tag():
    text = '<tool_call>get_weather{"city": "Paris"}'
    assert one_by_one("glm47", text) == Answer(calls=CALLS[:1])
    assert one_by_one("glm47", text, truncated=True) == Answer(calls=(("get_weather", ""),), unfinished="get_weather")


@pytest.mark.parametrize("end", ["", "</tool_call>"])
def test_arguments_that_are_no_json_come_as_written(end):
    """An empty object in their place would run a command that nobody gave."""
    made = one_by_one("glm47", '<tool_call>get_weather{"city": Paris' + end + TIME["glm47"] * bool(end))
    assert made.calls[0] == ("get_weather", '{"city": Paris')
    assert (made.unfinished, len(made.calls), made.content) == ("get_weather", 1 + bool(end), "")


@pytest.mark.parametrize("text", ['get_weather\n{"city": "Par', "get_weather\n{", 'get_weather\n{"city": Paris}'])
def test_unfinished_and_broken_calls_of_glm4(text):
    name, _, arguments = text.partition("\n")
    assert one_by_one("glm4", text) == Answer(calls=((name, arguments),), unfinished="get_weather")


@pytest.mark.parametrize("stray", ["<arg_key>city", "<arg_key>city</arg_key>"])
def test_words_of_a_call_that_are_no_argument_are_shown(stray):
    text = f"<tool_call>get_weather{stray}</tool_call>"
    assert one_by_one("glm47", text) == Answer(stray, calls=(("get_weather", "{}"),))


@pytest.mark.parametrize("fmt", CALLING)
def test_runaway_calls(fmt):
    """A fine-tune that never learned to stop writes hundreds (PrimeIntellect-ai/renderers#66)."""
    assert answer(fmt, *((WEATHER[fmt] + TIME[fmt]) * 150)).calls == CALLS * 150


# -- text that goes out, and when --------------------------------------------------------------


@pytest.mark.parametrize("fmt", FORMATS)
def test_plain_text_is_sent_at_once(fmt):
    steps, _ = route(fmt, ["Hello", " world", ", 1 < 2"])
    assert [step[-1] for step in steps[:2] if step][-1] == Content(" world")
    assert steps[2] == [Content(", 1 < 2")]


def test_what_may_be_a_marker_waits():
    steps, _ = route("glm47", ["Hm", " </", "thi", "s</think", ">"], in_reasoning=True)
    assert steps == [[Reasoning("Hm")], [], [], [Reasoning(" </this")], [], []]


@pytest.mark.parametrize(
    ("source", "fmt"),
    [
        (None, "plain"),
        ("{{ messages }}", "plain"),
        ("<|user|><|assistant|>", "plain"),
        ("[gMASK]<sop>", "glm4"),
        ("<|observation|>", "glm4"),
        ("<tool_call>{{ x }}\\n<arg_key>{{ k }}</arg_key>\\n<arg_value>", "glm45"),
        ("<tool_call>{{ x }}\n<arg_key>{{ k }}</arg_key>\n<arg_value>", "glm45"),
        ("[gMASK]<tool_call>{{ x }}<arg_key>{{ k }}</arg_key><arg_value>", "glm47"),
        ("<tool_call>{{ call | tojson }}</tool_call>", "plain"),  # other families' calls are no GLM calls
    ],
)
def test_format_by_template(source, fmt):
    assert detect_format(source) == fmt
