"""Brings OpenAI-style messages into the form that chat templates are written for."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gallium.errors import InvalidRequest
from gallium.types import Message

TEXT_PARTS = ("text", "input_text", "output_text")


def prepare_messages(messages: Iterable[Mapping[str, Any]], *, wants_parts: bool = False) -> list[Message]:
    """Copies of `messages` as a template expects them; the originals stay as they are.

    - Content that is a list of text parts becomes one string (joined without a separator), absent content "".
      Templates of GLM-5.1 and 5.2 have a list branch for tool results that drops their text, so a list is passed on
      only to a template that can read nothing else (`wants_parts`), and never for role `tool`.
    - `tool_calls[].function.arguments` given as a JSON text becomes a mapping (GLM-4.6 and later insist on one).
    - `reasoning`, as some clients call it, is also given as `reasoning_content`.

    Raises InvalidRequest, with `param` "messages", for what is not a message.
    """
    return [_prepare(message, f"messages[{i}]", wants_parts) for i, message in enumerate(messages)]


def _prepare(message: Mapping[str, Any], where: str, wants_parts: bool) -> Message:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise InvalidRequest(f"{where} is not a message: it needs a role and a content.", "messages")
    made = dict(message)
    made["content"] = flatten_content(message.get("content"), where)
    if wants_parts and made["role"] != "tool":
        made["content"] = [{"type": "text", "text": made["content"]}]
    if made.get("reasoning_content") is None and isinstance(made.get("reasoning"), str):
        made["reasoning_content"] = made["reasoning"]
    if made.get("tool_calls"):
        made["tool_calls"] = _tool_calls(made["tool_calls"], where)
    return made


def flatten_content(content: Any, where: str = "content") -> str:
    """The text of a message's content. Raises InvalidRequest for parts that are not text."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence):
        raise InvalidRequest(f"{where}.content must be a text or a list of text parts.", "messages")
    texts = []
    for part in content:
        if isinstance(part, str):
            texts.append(part)
            continue
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        if not isinstance(part, Mapping) or kind not in TEXT_PARTS or not isinstance(part.get("text"), str):
            raise InvalidRequest(
                f"{where}.content has a part of type {kind!r}; this model takes text parts only.", "messages"
            )
        texts.append(part["text"])
    return "".join(texts)


def _tool_calls(calls: Any, where: str) -> list[dict[str, Any]]:
    if not isinstance(calls, Sequence) or isinstance(calls, str):
        raise InvalidRequest(f"{where}.tool_calls must be a list.", "messages")
    return [_tool_call(call, f"{where}.tool_calls[{i}]") for i, call in enumerate(calls)]


def _tool_call(call: Any, where: str) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise InvalidRequest(f"{where} has no function name.", "messages")
    prepared = {**function, "arguments": _arguments(function.get("arguments"), where)}
    return {**call, "function": prepared} if "function" in call else prepared


def _arguments(value: Any, where: str) -> dict[str, Any]:
    if value is None or value == "":  # what many clients send for a call without arguments
        return {}
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as cause:
            raise InvalidRequest(f"{where}.function.arguments is not valid JSON: {cause}.", "messages") from cause
    if not isinstance(value, Mapping):
        raise InvalidRequest(f"{where}.function.arguments must be a JSON object.", "messages")
    return dict(value)


def to_glm4_dialect(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None) -> list[Message]:
    """Prepared messages as the templates of GLM-4-9B (2024) want them, which know neither tool calls nor role tool.

    Tools stand on the system message; a call is an assistant message with the function's name as `metadata`; a
    result has the role `observation`.
    """
    made: list[Message] = []
    for message in messages:
        if message["role"] == "tool":
            made.append({**message, "role": "observation"})
        elif message.get("tool_calls"):
            if message["content"]:
                made.append({"role": "assistant", "content": message["content"]})
            for call in message["tool_calls"]:
                function = call.get("function", call)
                text = json.dumps(function["arguments"], ensure_ascii=False)
                made.append({"role": "assistant", "metadata": function["name"], "content": text})
        else:
            made.append(message)
    if tools:
        if not made or made[0]["role"] != "system":
            made.insert(0, {"role": "system", "content": ""})
        made[0] = {**made[0], "tools": list(tools)}
    return made
