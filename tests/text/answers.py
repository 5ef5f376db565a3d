"""Whole answers and pieces of them through StreamRouter, put together as a client would."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from gallium.text.events import append_event
from gallium.text.router import (
    Content,
    Reasoning,
    RouterEvent,
    RouterFormat,
    StreamRouter,
    ToolCallArguments,
    ToolCallStart,
)

TAGGED: tuple[RouterFormat, ...] = ("glm45", "glm47")
FORMATS: tuple[RouterFormat, ...] = ("plain", "glm4", *TAGGED)


def function(name: str, **properties: Any) -> dict[str, Any]:
    """A tool as OpenAI's API has it; each property is a JSON type or a schema."""
    schemas = {key: {"type": one} if isinstance(one, str) else one for key, one in properties.items()}
    parameters = {"type": "object", "properties": schemas}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


TOOLS = [
    function("get_weather", city="string", days="integer", units={"type": ["string", "null"]}),
    function("get_time"),
    function("get", path="string", options="object", anything={}),
]


@dataclass(frozen=True)
class Answer:
    """An answer as a client puts it together."""

    content: str = ""
    reasoning: str = ""
    calls: tuple[tuple[str, str], ...] = ()
    """(Name, arguments), in order."""
    unfinished: str | None = None


def route(
    fmt: RouterFormat,
    pieces: Sequence[str],
    *,
    in_reasoning: bool = False,
    tools: Iterable[dict[str, Any]] | None = TOOLS,
    truncated: bool = False,
) -> tuple[list[list[RouterEvent]], StreamRouter]:
    """The events of each piece and of the end, and the router."""
    router = StreamRouter(fmt, in_reasoning=in_reasoning, tools=tools)
    return [*(router.feed(piece) for piece in pieces), router.close(truncated=truncated)], router


def answer(fmt: RouterFormat, *pieces: str, **options: Any) -> Answer:
    """The answer that these pieces make. Checks that a call starts once, in order, and before its arguments."""
    steps, router = route(fmt, pieces, **options)
    events: list[RouterEvent] = []
    for step in steps:
        assert step == merged(step), "neighbours of one kind within a step are one event"
        events += step
    names, arguments, ids = [], [], set()
    for event in events:
        if isinstance(event, ToolCallStart):
            assert event.index == len(names) and event.id not in ids
            ids.add(event.id)
            names.append(event.name)
            arguments.append("")
        elif isinstance(event, ToolCallArguments):
            assert event.index == len(names) - 1
            arguments[-1] += event.delta
    return Answer(
        content="".join(event.text for event in events if isinstance(event, Content)),
        reasoning="".join(event.text for event in events if isinstance(event, Reasoning)),
        calls=tuple(zip(names, arguments, strict=True)),
        unfinished=router.unfinished,
    )


def merged(events: Iterable[RouterEvent]) -> list[RouterEvent]:
    """The same events with neighbours of one kind joined."""
    made: list[RouterEvent] = []
    for event in events:
        append_event(made, event)
    return made


def one_by_one(fmt: RouterFormat, text: str, **options: Any) -> Answer:
    """The answer, fed whole and character by character, which must be the same."""
    whole = answer(fmt, text, **options)
    assert answer(fmt, *text, **options) == whole
    return whole
