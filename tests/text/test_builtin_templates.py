"""Gallium's own templates for GLM: the known-answer renderings of the families, and which one is chosen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.glm_tokenizer import write_folder

from gallium.errors import TemplateError
from gallium.text.builtin import FOLDER, builtin_template
from gallium.text.router import detect_format, starts_in_reasoning
from gallium.text.template import ChatTemplate
from gallium.text.tokenizer import Tokenizer

CALLS = [
    {
        "id": "a",
        "type": "function",
        "function": {"name": "get_weather", "arguments": '{"city": "Paris", "days": 2}'},
    },
    {"id": "b", "type": "function", "function": {"name": "get_time", "arguments": ""}},
]
CONVERSATION: list[dict[str, Any]] = [
    {"role": "system", "content": "S"},
    {"role": "user", "content": "U1"},
    {"role": "assistant", "content": "A1", "reasoning_content": "R1"},
    {"role": "user", "content": "U2"},
    {"role": "assistant", "content": None, "reasoning_content": "R2", "tool_calls": CALLS},
    {"role": "tool", "tool_call_id": "a", "content": "sunny"},
    {"role": "tool", "tool_call_id": "b", "content": [{"type": "text", "text": "noon"}]},
]
TOOLS = [{"type": "function", "function": {"name": "f", "description": '天气 "x" <b>', "strict": True}}]
KNOWN = {
    "glm45": (
        "[gMASK]<sop><|system|>⏎S<|user|>⏎U1<|assistant|>⏎<think></think>⏎A1<|user|>⏎U2<|assistant|>⏎<think>R2</think>⏎"
        "<tool_call>get_weather⏎<arg_key>city</arg_key>⏎<arg_value>Paris</arg_value>⏎<arg_key>days</arg_key>⏎"
        "<arg_value>2</arg_value>⏎</tool_call>⏎<tool_call>get_time⏎</tool_call><|observation|>⏎<tool_response>⏎sunny⏎"
        "</tool_response>⏎<tool_response>⏎noon⏎</tool_response><|assistant|>"
    ),
    "glm47": (
        "[gMASK]<sop><|system|>S<|user|>U1<|assistant|></think>A1<|user|>U2<|assistant|><think>R2</think><tool_call>"
        "get_weather<arg_key>city</arg_key><arg_value>Paris</arg_value><arg_key>days</arg_key><arg_value>2</arg_value>"
        "</tool_call><tool_call>get_time</tool_call><|observation|><tool_response>sunny</tool_response><tool_response>"
        "noon</tool_response><|assistant|><think>"
    ),
    "glm53": (
        "[gMASK]<sop><|system|>Reasoning Effort: Max<|system|>S<|user|>U1<|assistant|><think>R1</think>A1<|user|>U2"
        "<|assistant|><think>R2</think><tool_call>get_weather<arg_key>city</arg_key><arg_value>Paris</arg_value><arg_key>"
        "days</arg_key><arg_value>2</arg_value></tool_call><tool_call>get_time</tool_call><|observation|><tool_response>"
        "sunny</tool_response><tool_response>noon</tool_response><|assistant|><think>"
    ),
    "glm4": (
        "[gMASK]<sop><|system|>⏎S<|user|>⏎U1<|assistant|>⏎A1<|user|>⏎U2<|assistant|>get_weather⏎"
        '{"city": "Paris", "days": 2}<|assistant|>get_time⏎{}<|observation|>⏎sunny<|observation|>⏎noon<|assistant|>'
    ),
}  # fmt: skip


def render(name: str, messages: list[dict[str, Any]] = CONVERSATION, **kwargs: Any) -> str:
    text = ChatTemplate((FOLDER / f"{name}.jinja").read_text(encoding="utf-8"), {}).render(messages, **kwargs)
    assert "⏎" not in text
    return text.replace("\n", "⏎")


@pytest.mark.parametrize("name", list(KNOWN))
def test_known_answers(name: str) -> None:
    assert render(name) == KNOWN[name]


def test_old_reasoning_is_kept_or_dropped() -> None:
    kept = KNOWN["glm47"].replace("<|assistant|></think>A1", "<|assistant|><think>R1</think>A1")
    assert render("glm47", clear_thinking=False) == kept
    assert render("glm47", clear_thinking=True) == KNOWN["glm47"]
    dropped = KNOWN["glm53"].replace("<think>R1</think>A1", "<think></think>A1")
    assert render("glm53", clear_thinking=True) == dropped


@pytest.mark.parametrize("name", ["glm45", "glm47", "glm53"])
def test_reasoning_inside_the_content(name: str) -> None:
    messages = [*CONVERSATION[:2], {"role": "assistant", "content": "<think>R1</think>A1"}, *CONVERSATION[3:]]
    assert render(name, messages) == KNOWN[name]


def test_thinking_off() -> None:
    off = render("glm45", enable_thinking=False)
    assert off.endswith("<|assistant|>⏎<think></think>") and "U1/nothink<|" in off and "U2/nothink<|" in off
    said = [{"role": "user", "content": "U/nothink"}]
    assert render("glm45", said, enable_thinking=False).count("/nothink") == 1
    assert render("glm47", enable_thinking=False) == KNOWN["glm47"].removesuffix("<think>") + "</think>"
    assert render("glm53", enable_thinking=False) == KNOWN["glm53"]  # ignored there


@pytest.mark.parametrize(("given", "shown"), [("low", "Low"), ("high", "High"), ("max", "Max"), ("medium", "Max")])
def test_reasoning_effort(given: str, shown: str) -> None:
    assert render("glm53", reasoning_effort=given).startswith(
        f"[gMASK]<sop><|system|>Reasoning Effort: {shown}<|system|>S"
    )


BLOCK = (
    "<|system|>⏎# Tools⏎⏎You may call one or more functions to assist with the user query.⏎⏎You are provided with "
    "function signatures within <tools></tools> XML tags:⏎<tools>⏎{json}⏎</tools>⏎⏎For each function call, output the "
    "function name and arguments within the following XML format:⏎{call}"
)
EXAMPLE = (
    "<tool_call>{function-name}⏎<arg_key>{arg-key-1}</arg_key>⏎<arg_value>{arg-value-1}</arg_value>⏎"
    "<arg_key>{arg-key-2}</arg_key>⏎<arg_value>{arg-value-2}</arg_value>⏎...⏎</tool_call>"
)
AS_SENT = '{"type": "function", "function": {"name": "f", "description": "天气 \\"x\\" <b>", "strict": true}}'


def test_tools_block() -> None:
    """A system turn of its own before the user's; the tools as they were sent, except in 5.3."""
    expected = BLOCK.replace("{json}", AS_SENT).replace("{call}", EXAMPLE)
    assert render("glm45", tools=TOOLS) == KNOWN["glm45"].replace("<sop>", "<sop>" + expected)
    bare = BLOCK.replace("{json}", AS_SENT).replace("{call}", EXAMPLE.replace("⏎", ""))
    assert render("glm47", tools=TOOLS) == KNOWN["glm47"].replace("<sop>", "<sop>" + bare)
    inner = bare.replace(AS_SENT, '{"name": "f", "description": "天气 \\"x\\" <b>"}')
    deferred = [*TOOLS, {"type": "function", "function": {"name": "later", "defer_loading": True}}]
    assert render("glm53", tools=deferred) == KNOWN["glm53"].replace("Max<|", "Max" + inner + "<|", 1)


def test_tools_block_of_glm4() -> None:
    text = render("glm4", CONVERSATION[1:2], tools=TOOLS)
    assert text.startswith('[gMASK]<sop><|system|>⏎# 可用工具⏎⏎## f⏎⏎{⏎    "name": "f",')
    assert text.endswith("}⏎在调用上述函数时，请使用 Json 格式表示调用的参数。<|user|>⏎U1<|assistant|>")


def test_results_in_the_order_of_their_calls() -> None:
    swapped = [*CONVERSATION[:5], CONVERSATION[6], CONVERSATION[5]]
    assert render("glm53", swapped) == KNOWN["glm53"]
    assert "noon</tool_response><tool_response>sunny" in render("glm47", swapped)
    unknown = [*CONVERSATION[:5], {"role": "tool", "content": "x"}, CONVERSATION[5]]
    assert "<tool_response>sunny</tool_response><tool_response>x</tool_response>" in render("glm53", unknown)


def test_values_that_are_no_strings() -> None:
    arguments = {"s": "a\n<b>", "n": None, "o": {"k": ["é", 1.5]}, "t": True}
    message = {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"function": {"name": "f", "arguments": arguments}}],
    }
    assert render("glm47", [*CONVERSATION[1:2], message], add_generation_prompt=False).endswith(
        "<tool_call>f<arg_key>s</arg_key><arg_value>a⏎<b></arg_value><arg_key>n</arg_key><arg_value>null</arg_value>"
        '<arg_key>o</arg_key><arg_value>{"k": ["é", 1.5]}</arg_value><arg_key>t</arg_key><arg_value>true</arg_value>'
        "</tool_call>"
    )


def test_edge() -> None:
    assert render("glm_edge", CONVERSATION[:4]) == "<|system|>⏎S<|user|>⏎U1<|assistant|>⏎A1<|user|>⏎U2<|assistant|>"
    with pytest.raises(TemplateError, match="leave tools out"):
        render("glm_edge", tools=TOOLS)
    with pytest.raises(TemplateError, match="not tool"):
        render("glm_edge")


@pytest.mark.parametrize(
    ("name", "fmt", "reasons"),
    [("glm4", "glm4", False), ("glm45", "glm45", False), ("glm47", "glm47", True), ("glm53", "glm47", True),
     ("glm_edge", "plain", False)],
)  # fmt: skip
def test_format_and_start_are_recognised(name: str, fmt: str, reasons: bool) -> None:
    assert detect_format((FOLDER / f"{name}.jinja").read_text(encoding="utf-8")) == fmt
    assert starts_in_reasoning(render(name, CONVERSATION[:2]).replace("⏎", "\n")) is reasons


@pytest.mark.parametrize(
    ("model_type", "model_name", "family", "chosen"),
    [
        ("glm4_moe", "GLM-4.5-Air", "glm45", "glm45"),
        ("glm4_moe", "zai-org/GLM-4.6", "glm45", "glm45"),
        ("glm4_moe", "GLM-4.7", "glm45", "glm47"),
        ("glm4_moe", "mystery", "glm45", "glm45"),
        ("glm4_moe_lite", "GLM-4.7-Flash", "glm5", "glm47"),
        ("glm_moe_dsa", "GLM-5.1", "glm5", "glm47"),
        ("glm_moe_dsa", "GLM-5.3", "glm5", "glm53"),
        ("glm4", "GLM-Z1-9B-0414", "glm4", "glm4"),
        ("glm", "glm-4-9b-chat-hf", "glm4", "glm4"),
        ("glm", "glm-edge-1.5b-chat", "edge", "glm_edge"),
    ],
)
def test_choice(tmp_path: Path, model_type: str, model_name: str, family: str, chosen: str) -> None:
    tokenizer = Tokenizer.from_folder(write_folder(tmp_path, family))
    found = builtin_template(model_type, model_name, tokenizer)
    assert found is not None and found.name == chosen
    assert "no chat template" in found.notice
    assert ("guess" in found.notice) == (model_name == "mystery")


@pytest.mark.parametrize("adds_prefix", [True, False])
@pytest.mark.parametrize(("family", "name"), [("glm4", "glm4"), ("glm45", "glm45"), ("glm45", "glm47")])
def test_encoded_prompt_has_one_prefix(tmp_path: Path, family: str, name: str, adds_prefix: bool) -> None:
    """The template writes it, and GLM-4-9B's tokenizer would add it again."""
    tokenizer = Tokenizer.from_folder(write_folder(tmp_path, family, adds_prefix=adds_prefix))
    ids = tokenizer.encode(render(name).replace("⏎", "\n"))
    prefix, roles = [151331, 151333], (151335, 151336, 151337, 151338)
    assert ids[:3] == [*prefix, 151335] and not {*prefix} & {*ids[2:]}
    count = render(name).count
    assert [ids.count(role) for role in roles] == [
        count(f"<|{role}|>") for role in ("system", "user", "assistant", "observation")
    ]
    said = tokenizer.decode(ids)
    assert "<|" not in said and "[gMASK]" not in said and "U1" in said


def test_no_choice_for_other_models(smollm: Tokenizer, glm45: Tokenizer) -> None:
    assert builtin_template("glm", "SmolLM2", smollm) is None  # runs as `glm`, but has no GLM tokens
    assert builtin_template("llama", "GLM", glm45) is None
