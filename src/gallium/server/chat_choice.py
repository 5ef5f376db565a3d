"""One choice of a chat answer: the router's events as OpenAI's deltas, and put together as a message."""

from __future__ import annotations

from typing import Any

from gallium.text.router import (
    Content,
    Reasoning,
    RouterEvent,
    StreamRouter,
    ToolCallArguments,
    ToolCallStart,
)
from gallium.types import Delta


class ChatChoice:
    """Follows one choice to its end."""

    def __init__(self, router: StreamRouter) -> None:
        self._router = router
        self._content: list[str] = []
        self._reasoning: list[str] = []
        self._calls: dict[int, dict[str, Any]] = {}
        self.finish_reason: str | None = None  # as the client sees it

    def feed(self, delta: Delta) -> list[dict[str, Any]]:
        """Take in one delta; the `delta` objects of the chunks to send for it."""
        events = self._router.feed(delta.text)
        if delta.finish_reason is not None:
            events = [*events, *self._router.close(truncated=delta.finish_reason != "stop")]
        pieces = [piece for event in events if (piece := self._piece(event)) is not None]
        if delta.finish_reason is not None:
            whole = self._router.unfinished is None  # half a call is not one to run
            called = bool(self._calls) and whole and delta.finish_reason == "stop"
            self.finish_reason = "tool_calls" if called else delta.finish_reason
        return pieces

    def message(self) -> dict[str, Any]:
        """The whole message. `content` is null if there are calls and no text."""
        content = "".join(self._content)
        out: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
        if self._reasoning:
            out["reasoning_content"] = "".join(self._reasoning)
        if self._calls:
            out["content"] = content or None
            out["tool_calls"] = [self._calls[index] for index in sorted(self._calls)]
        return out

    def _piece(self, event: RouterEvent) -> dict[str, Any] | None:
        match event:
            case Content(text):
                self._content.append(text)
                return {"content": text} if text else None
            case Reasoning(text):
                self._reasoning.append(text)
                return {"reasoning_content": text} if text else None
            case ToolCallStart(index, call_id, name):
                self._calls[index] = _call(call_id, name)
                return {"tool_calls": [{"index": index, **_call(call_id, name)}]}
            case ToolCallArguments(index, text):
                self._calls[index]["function"]["arguments"] += text
                return {"tool_calls": [{"index": index, "function": {"arguments": text}}]} if text else None


def _call(call_id: str, name: str) -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": ""}}
