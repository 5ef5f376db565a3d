"""What an answer is made of, as it streams: content, reasoning, tool calls; and the search for markers in pieces."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Content:
    """Text of the answer itself."""

    text: str


@dataclass(frozen=True, slots=True)
class Reasoning:
    """Text that the model thought before answering."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCallStart:
    """A call of a known tool has begun; sent once per call."""

    index: int
    """0, 1, … within the answer."""
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class ToolCallArguments:
    """The next piece of a call's arguments; the pieces of one index together are one JSON object."""

    index: int
    delta: str


RouterEvent = Content | Reasoning | ToolCallStart | ToolCallArguments


def append_event(events: list[RouterEvent], event: RouterEvent) -> None:
    """Add `event`, merged into the last one where both are text of the same kind; empty text adds nothing."""
    last = events[-1] if events else None
    if isinstance(event, Content | Reasoning):
        if isinstance(last, Content | Reasoning) and type(last) is type(event):
            events[-1] = replace(last, text=last.text + event.text)
        elif event.text:
            events.append(event)
    elif isinstance(event, ToolCallArguments):
        if isinstance(last, ToolCallArguments) and last.index == event.index:
            events[-1] = replace(last, delta=last.delta + event.delta)
        elif event.delta:
            events.append(event)
    else:
        events.append(event)


def may_begin(text: str, markers: Iterable[str]) -> bool:
    """True if more text could turn `text` into one of the markers (also if it is empty)."""
    return any(len(text) < len(marker) and marker.startswith(text) for marker in markers)


def held_back(text: str, markers: Iterable[str]) -> int:
    """The length of the longest end of `text` that may be the beginning of a marker."""
    longest = max(map(len, markers), default=1) - 1
    start = text.find("<", max(0, len(text) - longest))
    while start >= 0:
        if may_begin(text[start:], markers):
            return len(text) - start
        start = text.find("<", start + 1)
    return 0


def first_of(text: str, markers: Iterable[str], start: int = 0) -> tuple[int, str] | None:
    """(Position, marker) of the marker that comes first at or after `start`."""
    found = [(at, marker) for marker in markers if (at := text.find(marker, start)) >= 0]
    return min(found, default=None)
