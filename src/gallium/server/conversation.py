"""From a chat request's messages, tools and template options to the prompt's token ids."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from gallium.errors import InvalidRequest, TemplateError
from gallium.server.body import translate
from gallium.server.failures import RefusedRequest
from gallium.server.wire import ChatMessage, ChatRequest, Prediction, TokenizeRequest, Tool, ToolCall

if TYPE_CHECKING:
    from gallium.engine.assembly import Assembly

_TOOL_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_OWN_NAMES = frozenset({"self", "messages", "tools", "add_generation_prompt"})
EFFORTS: dict[str, tuple[str, ...]] = {
    "minimal": ("minimal",),
    "low": ("low", "high"),
    "medium": ("medium", "high"),
    "high": ("high",),
    "xhigh": ("xhigh", "max"),
    "max": ("max",),
}
"""OpenAI's efforts, and for each what a template may call it, nearest first; as Z.ai's own API maps them."""


@dataclass(frozen=True)
class Prompt:
    """A rendered conversation."""

    text: str
    token_ids: list[int]
    tools: list[dict[str, Any]] | None  # those that the model was told of


def render(assembly: Assembly, wire: ChatRequest | TokenizeRequest) -> Prompt:
    """Render and encode. Raises InvalidRequest (naming the field) or TemplateError."""
    template = assembly.template
    source = assembly.tokenizer.chat_template
    if template is None or source is None:
        raise TemplateError(f"{assembly.label} has no chat template: use /v1/completions with plain prompts.")
    messages = template_messages(wire.messages or [])
    tools = checked_tools(wire.tools)
    effort = None
    if isinstance(wire, ChatRequest):
        check_unchangeable(wire)
        effort = wire.reasoning_effort
        tools = tools if uses_tools(wire.tool_choice) else None
    if tools and not _mentions(source, "tools"):
        raise InvalidRequest(
            f"tools cannot be used: the chat template of {assembly.label} has no place for them.", "tools"
        )
    options = template_options(source, wire.chat_template_kwargs, effort)
    opened = True if wire.add_generation_prompt is None else wire.add_generation_prompt
    text = template.render(messages, tools=tools, add_generation_prompt=opened, **options)
    return Prompt(text, encode(assembly, text, "messages"), tools)


def encode(assembly: Assembly, text: str, param: str, *, add_special_tokens: bool = False) -> list[int]:
    """Text to token ids. Raises InvalidRequest if the text is not Unicode (a lone surrogate)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidRequest(f"{param} has a lone surrogate, which is not valid Unicode.", param) from None
    return assembly.tokenizer.encode(text, add_special_tokens=add_special_tokens)


def predicted(assembly: Assembly, prediction: Prediction) -> list[int]:
    """The tokens of a predicted answer. Raises InvalidRequest as `encode` does."""
    return encode(assembly, prediction.text, "prediction")


# -- messages ----------------------------------------------------------------------------


def template_messages(messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    """Messages as chat templates want them: content is a string, arguments of calls are mappings."""
    if not messages:
        raise InvalidRequest("messages is empty: it needs at least one message.", "messages")
    return [_template_message(message, f"messages[{i}]") for i, message in enumerate(messages)]


def _template_message(message: ChatMessage, at: str) -> dict[str, Any]:
    role = "system" if message.role == "developer" else message.role
    if role != "assistant":
        for name in ("tool_calls", "reasoning_content"):
            if getattr(message, name):
                raise InvalidRequest(f"{at}.{name} is for messages of the assistant only.", f"{at}.{name}")
    if role == "tool" and message.tool_call_id is None:
        raise InvalidRequest(f"{at}.tool_call_id is missing: which call does it answer?", f"{at}.tool_call_id")
    if role != "tool" and message.tool_call_id is not None:
        raise InvalidRequest(f"{at}.tool_call_id is for messages of tools only.", f"{at}.tool_call_id")
    if message.content is None and not (role == "assistant" and (message.tool_calls or message.reasoning_content)):
        raise InvalidRequest(f"{at}.content is missing.", f"{at}.content")
    out: dict[str, Any] = {"role": role, "content": _text(message.content, f"{at}.content")}
    for name in ("name", "tool_call_id", "reasoning_content"):
        if getattr(message, name) is not None:
            out[name] = getattr(message, name)
    if message.tool_calls:
        out["tool_calls"] = [_call(c, f"{at}.tool_calls[{i}]") for i, c in enumerate(message.tool_calls)]
    return out


def _text(content: str | list[dict[str, Any]] | None, at: str) -> str:
    """Text parts are joined without a separator, as the GLM templates do."""
    if content is None or isinstance(content, str):
        return content or ""
    texts = []
    for i, part in enumerate(content):
        kind, text = part.get("type"), part.get("text")
        if kind != "text":
            raise RefusedRequest(
                f"{at}[{i}].type {kind!r} is not supported: this model reads text only.",
                f"{at}[{i}].type",
                code="unsupported_content_type",
            )
        if not isinstance(text, str):
            raise InvalidRequest(f"{at}[{i}].text must be a string.", f"{at}[{i}].text")
        if more := sorted(part.keys() - {"type", "text"}):
            raise RefusedRequest(
                f"{at}[{i}].{more[0]} is not supported by this server.",
                f"{at}[{i}].{more[0]}",
                code="unknown_parameter",
            )
        texts.append(text)
    return "".join(texts)


def _call(call: ToolCall, at: str) -> dict[str, Any]:
    param = f"{at}.function.arguments"
    try:
        arguments = msgspec.json.decode(call.function.arguments.strip() or "{}")
    except (msgspec.DecodeError, UnicodeError, RecursionError) as fault:
        raise InvalidRequest(f"{param} is not valid JSON: {fault}.", param) from None
    if not isinstance(arguments, dict):
        raise InvalidRequest(f"{param} must be a JSON object.", param)
    return {"id": call.id, "type": "function", "function": {"name": call.function.name, "arguments": arguments}}


# -- tools and options ---------------------------------------------------------------------


def checked_tools(tools: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
    """The tools as they were sent, after a check; None if there are none."""
    for i, tool in enumerate(tools or []):
        at = f"tools[{i}]"
        try:
            known = msgspec.convert(tool, Tool)
        except msgspec.ValidationError as fault:
            raise translate(fault, at) from None
        if not _TOOL_NAME.fullmatch(known.function.name):
            raise InvalidRequest(
                f"{at}.function.name must be 1 to 64 letters, digits, dots, dashes or underscores.",
                f"{at}.function.name",
            )
        if known.function.strict:
            raise RefusedRequest(
                f"{at}.function.strict is not supported: arguments are not forced to match the schema.",
                f"{at}.function.strict",
                code="unsupported_value",
            )
    return tools or None


def uses_tools(choice: str | dict[str, Any] | None) -> bool:
    """Whether the model is told of the tools. Raises RefusedRequest for choices that would force a call."""
    if choice in (None, "auto"):
        return True
    if choice == "none":
        return False
    shown = "a named function" if isinstance(choice, dict) else repr(choice)
    raise RefusedRequest(
        f"tool_choice {shown} is not supported: choose 'auto' or 'none'.", "tool_choice", code="unsupported_value"
    )


def check_unchangeable(wire: ChatRequest) -> None:
    """Refuse the values of fields that this server has one way of doing."""
    refused = {
        "parallel_tool_calls": (wire.parallel_tool_calls is False, "the model decides how many calls it makes"),
        "store": (bool(wire.store), "answers are not kept"),
        "response_format": (
            wire.response_format not in (None, {"type": "text"}),
            "answers are free text; {'type': 'text'} is the only format",
        ),
    }
    for name, (wrong, why) in refused.items():
        if wrong:
            shown = msgspec.json.encode(getattr(wire, name)).decode()[:80]
            raise RefusedRequest(f"{name} = {shown} is not supported: {why}.", name, code="unsupported_value")


def template_options(source: str, given: Mapping[str, Any] | None, effort: str | None) -> dict[str, Any]:
    """Extra variables for the template; each must be one that it reads, or it would be ignored in silence."""
    options = dict(given or {})
    for name in options:
        param = f"chat_template_kwargs.{name}"
        if name in _OWN_NAMES:
            raise InvalidRequest(
                f"{param} is not a variable of the template: give it as a field of the request.", param
            )
        if not _mentions(source, name):
            raise InvalidRequest(f"{param} has no effect: this model's chat template does not read it.", param)
    return options if effort is None else options | _effort(source, effort)


def _effort(source: str, effort: str) -> dict[str, Any]:
    if effort in ("none", "minimal") and _mentions(source, "enable_thinking"):
        return {"enable_thinking": False}
    if _mentions(source, "reasoning_effort"):
        for name in EFFORTS.get(effort, ()):
            if re.search(rf"""['"]{name}['"]""", source):
                return {"reasoning_effort": name}
    raise RefusedRequest(
        f"reasoning_effort {effort!r} is not supported: this model's chat template has no such choice.",
        "reasoning_effort",
        code="unsupported_value",
    )


def _mentions(source: str, name: str) -> bool:
    return re.search(rf"\b{re.escape(name)}\b", source) is not None
