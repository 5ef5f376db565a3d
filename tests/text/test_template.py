"""ChatTemplate: Hugging Face's dialect of Jinja2, the forms of messages, and what failing templates say."""

from __future__ import annotations

import subprocess
import sys
from datetime import datetime
from typing import Any

import pytest

from gallium.errors import InvalidRequest, TemplateError
from gallium.text.template import ChatTemplate
from gallium.text.tokenizer import Tokenizer

USER = [{"role": "user", "content": "hi"}]


def render(source: str, messages: list[dict[str, Any]] = USER, **kwargs: Any) -> str:
    return ChatTemplate(source, {"bos_token": "<s>"}).render(messages, **kwargs)


def test_default_model_s_template(smollm: Tokenizer) -> None:
    template = ChatTemplate(smollm.chat_template or "", smollm.special_tokens)
    assert template.render(USER) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert template.render(USER, add_generation_prompt=False).endswith("hi<|im_end|>\n")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{{ bos_token }}x", "<s>x"),
        ("a\n  {% if true %}\nb\n  {% endif %}\nc", "a\nb\nc"),  # trim_blocks and lstrip_blocks
        ("{% for m in [1, 2, 3] %}{% if m == 2 %}{% break %}{% endif %}{{ m }}{% endfor %}", "1"),
        ("{{ {'k': '天<气>', 'n': [1, 2.5, none]} | tojson }}", '{"k": "天<气>", "n": [1, 2.5, null]}'),
        ("{{ {'b': 1, 'a': 2} | tojson(separators=(',', ':'), sort_keys=true) }}", '{"a":2,"b":1}'),
        ("{{ {'k': 1} | tojson(indent=2) }}", '{\n  "k": 1\n}'),
        ("{{ '天' | tojson(ensure_ascii=true) }}", '"\\u5929"'),
        ("a{% generation %}{{ messages[0].content }}{% endgeneration %}b", "ahib"),
        ("{{ tools is none }} {{ documents is none }} {{ add_generation_prompt }}", "True True True"),
        ("{{ enable_thinking is defined }}", "False"),
    ],
)
def test_dialect(source: str, expected: str) -> None:
    assert render(source) == expected


def test_arguments_of_the_caller() -> None:
    assert (
        render("{{ enable_thinking }}{{ reasoning_effort }}", enable_thinking=False, reasoning_effort="low")
        == "Falselow"
    )
    assert render("{{ tools[0].name }}{{ documents[0] }}", tools=[{"name": "f"}], documents=["d"]) == "fd"
    assert render("{{ strftime_now('%Y') }}") == datetime.now().strftime("%Y")
    assert render("{{ bos_token }}", bos_token="B") == "B"


def test_same_as_transformers(smollm: Tokenizer) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    source = (
        "{%- for m in messages %}\n  {%- if m.role == 'user' %}\nU: {{ m.content }}\n  {%- else %}\n{{ m | tojson }}"
        "{% endif %}\n{% endfor %}{{ tools | tojson(indent=1) }}"
    )
    messages = [*USER, {"role": "assistant", "content": "天"}]
    tools = [{"type": "function", "function": {"name": "f", "description": "é"}}]
    theirs = render_jinja_template([messages], tools=tools, chat_template=source, add_generation_prompt=True)[0][0]
    assert render(source, messages, tools=tools) == theirs


def test_content_lists_become_text() -> None:
    source = "{% for m in messages %}[{{ m.role }}:{{ m.content }}]{% endfor %}"
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [
        {"role": "user", "content": parts},
        {"role": "assistant", "content": None},
        {"role": "tool", "content": ["x", "y"]},
    ]
    assert render(source, messages) == "[user:ab][assistant:][tool:xy]"
    assert messages[0]["content"] is parts  # the caller's messages stay as they are


def test_tool_result_is_not_lost_in_a_list_branch() -> None:
    """GLM-5.1's and 5.2's list branch looks for tool names; text parts that reach it vanish (vllm#39611, #39614)."""
    source = (
        "{% for m in messages %}{% if m.content is string %}<r>{{ m.content }}</r>{% else %}"
        "<r>{% for t in m.content %}{{ t.name }}{% endfor %}</r>{% endif %}{% endfor %}"
    )
    assert render(source, [{"role": "tool", "content": [{"type": "text", "text": "sunny"}]}]) == "<r>sunny</r>"


def test_template_that_reads_only_parts() -> None:
    source = "{% for m in messages %}{% for p in m['content'] %}({{ p.type }}={{ p.text }}){% endfor %}{% endfor %}"
    assert render(source) == "(text=hi)"


def test_glm4_2024_dialect() -> None:
    """Its template knows neither tool calls nor role tool: calls are `metadata`, tools stand on a message."""
    source = (
        "[gMASK]<sop>{% for item in messages %}{% if item['tools'] is defined %}<|system|>\n"
        "{% for tool in item['tools'] %}## {{ tool['function']['name'] }}{% endfor %}{% endif %}"
        "{% if item['content'] %}<|{{ item['role'] }}|>{{ item['metadata'] }}\n{{ item['content'] }}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    call = {"function": {"name": "f", "arguments": '{"城": "北京"}'}}
    messages = [
        *USER,
        {"role": "assistant", "content": "C", "tool_calls": [call]},
        {"role": "tool", "content": "ok"},
    ]
    assert render(source, messages, tools=[{"type": "function", "function": {"name": "f"}}]) == (
        "[gMASK]<sop><|system|>\n## f<|user|>\nhi<|assistant|>\nC<|assistant|>f\n"
        '{"城": "北京"}<|observation|>\nok<|assistant|>'
    )
    system = [{"role": "system", "content": "S"}, *USER]
    assert render(source, system, tools=[{"function": {"name": "f"}}]).startswith(
        "[gMASK]<sop><|system|>\n## f<|system|>\nS<|user|>"
    )


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [('{"a": [1]}', "{'a': [1]}"), ("", "{}"), (None, "{}"), ({"a": 1}, "{'a': 1}")],
)
def test_arguments_become_mappings(arguments: Any, expected: str) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}
    message = {"role": "assistant", "tool_calls": [call]}
    assert render("{{ messages[0].tool_calls[0].function.arguments }}", [message]) == expected
    assert call["function"]["arguments"] == arguments


def test_reasoning_is_also_reasoning_content() -> None:
    assert render("{{ messages[0].reasoning_content }}", [{"role": "assistant", "reasoning": "R"}]) == "R"


@pytest.mark.parametrize(
    ("message", "says"),
    [
        ({"content": "x"}, r"messages\[0\] is not a message"),
        ("text", "is not a message"),
        ({"role": "user", "content": 3}, "must be a text"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, "image_url"),
        ({"role": "user", "content": [7]}, "int"),
        ({"role": "assistant", "tool_calls": "x"}, "must be a list"),
        ({"role": "assistant", "tool_calls": [{}]}, "no function name"),
        (
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]},
            "not valid JSON",
        ),
        (
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]},
            "JSON object",
        ),
        (
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[" * 100_000}}]},
            "not valid",
        ),
    ],
)
def test_bad_messages(message: Any, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says) as caught:
        render("x", [message])
    assert caught.value.param == "messages"


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ nothing.at.all }}", "nothing"),
        ("{% for i in range(10 ** 9) %}{% endfor %}", "OverflowError"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "append"),
        ("{{ 1 // 0 }}", "ZeroDivisionError"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
        ("{% if %}", "damaged, line 1"),
        ("{{ x | nofilter }}", "damaged"),
    ],
)
def test_failing_templates(source: str, says: str) -> None:
    with pytest.raises(TemplateError, match=says):
        render(source)


def test_jinja2_is_imported_only_to_render() -> None:
    code = (
        "import sys, gallium.text.template as t, gallium.text.router, gallium.text.detokenizer;"
        "t.ChatTemplate('x', {}); assert not {'jinja2', 'tokenizers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
