"""StreamRouter: splits an answer into content, reasoning and tool calls as it streams, whatever the pieces.

Formats: `plain` (text as it is), `glm4` (GLM-4, 0414, Z1: "name, newline, JSON"), `glm45` (GLM-4.5, 4.6: tags with
newlines), `glm47` (GLM-4.7, 5.x: tags without). The last two share one parser; they differ in what whitespace around
reasoning and text belongs to the format.

What happens to text that is not quite a call:
- no tools in the request: nothing is a call, tags are passed on as text;
- a name that the request does not offer, or a `<tool_call>` with no call after it: passed on as text, unchanged,
  where it stood (in the reasoning, if it stood there);
- a call that the answer ends in the middle of: its arguments stop short and are not closed, so that nobody runs half
  a command; `unfinished` has its name. So it is with arguments that should be JSON and are not: they come as written.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

from gallium.text.calls import CALL, CallReader, ObjectReader, TagReader, read_name
from gallium.text.events import (
    Content,
    Reasoning,
    RouterEvent,
    ToolCallArguments,
    ToolCallStart,
    append_event,
    first_of,
    held_back,
    may_begin,
)
from gallium.text.tools_glm import ToolSet

__all__ = [
    "Content", "Reasoning", "RouterEvent", "RouterFormat", "StreamRouter", "ToolCallArguments", "ToolCallStart",
    "detect_format", "starts_in_reasoning",
]  # fmt: skip

RouterFormat = Literal["plain", "glm4", "glm45", "glm47"]
THINK, END_THINK = "<think>", "</think>"


def detect_format(chat_template: str | None) -> RouterFormat:
    """The format of a model's answers, told by its chat template."""
    source = chat_template or ""
    if CALL in source and "</arg_key>" in source:
        with_newlines = any(f"</arg_key>{newline}<arg_value>" in source for newline in ("\n", "\\n"))
        return "glm45" if with_newlines else "glm47"
    return "glm4" if "<|observation|>" in source or "[gMASK]" in source else "plain"


def starts_in_reasoning(rendered_prompt: str) -> bool:
    """True if the prompt ends inside `<think>`, so that the answer begins with reasoning."""
    return rendered_prompt.rstrip().endswith(THINK)


class StreamRouter:
    """Splits one answer. Feed it text in any pieces, then close it; neighbouring events are merged within a piece.

    `in_reasoning`: the prompt ended inside `<think>`. `tools`: the request's tools, None or empty to leave everything
    that looks like a call in the text.
    """

    def __init__(self, fmt: RouterFormat, *, in_reasoning: bool, tools: Iterable[Mapping[str, Any]] | None) -> None:
        self._tools = ToolSet(tools if fmt != "plain" else None)
        self._tagged = bool(self._tools) and fmt in ("glm45", "glm47")
        self._named = bool(self._tools) and fmt == "glm4"
        self._trims = fmt != "glm47"
        self._fresh = fmt != "plain" or in_reasoning
        self._after_call = False
        self._state: Callable[[bool], bool] = self._content
        if self._fresh:
            self._state = self._reasoning_opening if in_reasoning else self._opening
        self._text = ""
        self._events: list[RouterEvent] = []
        self._call: CallReader | None = None
        self._call_name = ""
        self._num_calls = 0
        self.unfinished: str | None = None
        """The name of a call whose arguments are not whole: the answer broke off in it, or wrote no JSON object."""

    def feed(self, text: str) -> list[RouterEvent]:
        """The events that this text completes; what may be part of a marker is held back."""
        self._text += text
        return self._run(final=False)

    def close(self, *, truncated: bool = False) -> list[RouterEvent]:
        """The rest, at the end of the answer.

        `truncated`: the answer was cut off (length, cancel). A call whose last argument is whole but that was not
        closed is then unfinished too; otherwise the model forgot the closing tag, and the call stands.
        """
        if truncated and isinstance(self._call, TagReader):
            self.unfinished = self._call_name
            return []
        return self._run(final=True)

    def _run(self, final: bool) -> list[RouterEvent]:
        while self._state(final):
            pass
        return self._take()

    def _take(self) -> list[RouterEvent]:
        events, self._events = self._events, []
        return events

    # Each state returns True if it moved on and the next one should look at the rest of the text.

    def _opening(self, final: bool) -> bool:
        """The beginning of an answer that may open with <think>."""
        start = self._text.lstrip()
        if start.startswith(THINK):
            self._text = start[len(THINK) :]
            self._state = self._reasoning_opening
            return True
        if not final and may_begin(start, (THINK, END_THINK)):
            return False
        if start.startswith(END_THINK):  # thinking is off, and the model closes it once more
            self._text = start[len(END_THINK) :]
        self._state = self._name if self._named else self._content
        return True

    def _reasoning_opening(self, final: bool) -> bool:
        """The beginning of reasoning: a repeated <think> is dropped, and blanks where the format has them."""
        start = self._text.lstrip()
        if not final and may_begin(start, (THINK,)):
            return False
        if start.startswith(THINK):
            self._text = start[len(THINK) :]
            return True
        if self._trims:
            self._text = start
        self._state = self._reasoning
        return True

    def _reasoning(self, final: bool) -> bool:
        markers = (END_THINK, CALL) if self._tagged else (END_THINK,)
        found = first_of(self._text, markers)
        if found is None:
            self._pass_on(Reasoning, markers, final, keep_blanks=self._trims or self._tagged)
            return False
        at, marker = found
        if marker == CALL:
            return self._begin_call(at, Reasoning, final)
        before, self._text = self._text[:at], self._text[at + len(marker) :]
        append_event(self._events, Reasoning(before.rstrip() if self._trims else before))
        self._fresh = True
        self._state = self._name if self._named else self._content
        return True

    def _content(self, final: bool) -> bool:
        if self._after_call:
            self._drop_late_end_of_reasoning()
            if not final and may_begin(self._text, (END_THINK,)):
                return False
        elif self._fresh and self._trims:
            self._text = self._text.lstrip("\n")
        if self._text:
            found = self._text.find(CALL) if self._tagged else -1
            if found >= 0:
                return self._begin_call(found, Content, final)
            self._pass_on(Content, (CALL,) if self._tagged else (), final, keep_blanks=self._tagged)
        return False

    def _drop_late_end_of_reasoning(self) -> None:
        """Drop the </think> of reasoning that a call ended, and the blanks around it."""
        self._text = self._text.lstrip()
        while self._text.startswith(END_THINK):
            self._text = self._text[len(END_THINK) :].lstrip()

    def _pass_on(
        self, kind: type[Content | Reasoning], markers: tuple[str, ...], final: bool, keep_blanks: bool
    ) -> None:
        """Emit what cannot be part of a marker; with `keep_blanks`, nor blanks that a marker would make vanish."""
        text = self._text
        keep = 0 if final else held_back(text, markers)
        if keep_blanks and not final:
            body = text[: len(text) - keep]
            keep += len(body) - len(body.rstrip())
        sent = text[: len(text) - keep]
        if sent:
            self._fresh = self._after_call = False
        append_event(self._events, kind(sent))
        self._text = text[len(text) - keep :]

    def _begin_call(self, at: int, kind: type[Content | Reasoning], final: bool) -> bool:
        """The text has <tool_call> at `at`: a call if a known name follows, else text."""
        name = read_name(self._text[at + len(CALL) :], self._tools, final)
        before = self._text[:at]
        if name is None:
            body = before.rstrip()
            append_event(self._events, kind(body))
            if body:
                self._fresh = self._after_call = False
            self._text = self._text[len(body) :]
            return False
        if name is False:
            append_event(self._events, kind(before + CALL))
            self._fresh = self._after_call = False
            self._text = self._text[at + len(CALL) :]
            return True
        append_event(self._events, kind(before.rstrip()))
        self._text = name[1]
        self._start(name[0], TagReader(self._tools, name[0]))
        return True

    def _name(self, final: bool) -> bool:
        """GLM-4: a call is a line that is a tool's name, then a JSON object."""
        line, newline, rest = self._text.lstrip("\n").partition("\n")
        name, start = line.strip(), rest.lstrip()
        if not final:
            if not newline and any(known.startswith(name) for known in self._tools.names):
                return False
            if newline and name in self._tools and not start:
                return False
        if newline and name in self._tools and start.startswith("{"):
            self._text = start
            self._start(name, ObjectReader())
        else:
            self._state = self._content
        return True

    def _start(self, name: str, reader: CallReader) -> None:
        append_event(self._events, ToolCallStart(self._num_calls, f"call_{uuid.uuid4().hex[:24]}", name))
        self._num_calls += 1
        self._call, self._call_name = reader, name
        self._state = self._arguments

    def _arguments(self, final: bool) -> bool:
        assert self._call is not None
        progress = self._call.read(self._text, final)
        self._text = progress.rest
        append_event(self._events, ToolCallArguments(self._num_calls - 1, progress.delta))
        if progress.done:
            if not self._call.complete:
                self.unfinished = self._call_name
            append_event(self._events, Content(self._call.stray.strip()))
            self._call = None
            self._fresh, self._after_call = False, True
            self._state = self._name if self._named else self._content
        return progress.moved or progress.done
