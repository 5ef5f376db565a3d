"""Readers of one tool call's arguments, incremental: GLM-4.5's tags (with or without newlines) and GLM-4's JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from gallium.text.events import first_of, held_back, may_begin
from gallium.text.tools_glm import ToolSet, is_object, quote, value_as_json

CALL, END_CALL = "<tool_call>", "</tool_call>"
KEY, END_KEY = "<arg_key>", "</arg_key>"
VALUE, END_VALUE = "<arg_value>", "</arg_value>"
_AFTER_ARGUMENT = (KEY, END_CALL, CALL)


@dataclass(slots=True)
class Progress:
    """What a reader made of the text: the rest that it did not take, new JSON, and whether the call is over."""

    rest: str
    delta: str = ""
    done: bool = False
    moved: bool = True
    """False: nothing more can be told before more text comes."""


class CallReader(Protocol):
    """Reads one call's arguments."""

    complete: bool
    """The arguments are one whole JSON object."""
    stray: str
    """Text within the call that belongs to no argument."""

    def read(self, text: str, final: bool) -> Progress:
        """One step through `text`; `final`: no more text will come."""
        ...


class TagReader:
    """`<arg_key>k</arg_key><arg_value>v</arg_value>…</tool_call>` to JSON, value by value; strings while they come.

    Forgiven, because models do it: a missing `<arg_key>`, `</arg_key>`, `<arg_value>`, `</arg_value>` or
    `</tool_call>`, tags twice, and JSON in place of the tags. A tag inside a value is text unless what follows it
    shows that it is a tag.
    """

    def __init__(self, tools: ToolSet, name: str) -> None:
        self._tools, self._name = tools, name
        self._state: Literal["between", "key", "gap", "value", "json"] = "between"
        self._key = ""
        self._given: set[str] = set()
        self._raw: list[str] = []
        self.complete = False
        self.stray = ""

    def read(self, text: str, final: bool) -> Progress:
        """One step; see CallReader."""
        step = {
            "between": self._between, "key": self._read_key, "gap": self._gap, "value": self._value, "json": self._json,
        }[self._state]  # fmt: skip
        return step(text, final)

    def _between(self, text: str, final: bool) -> Progress:
        text = text.lstrip()
        if text.startswith(END_CALL):
            return self._finish(text[len(END_CALL) :])
        if text.startswith(CALL):
            return self._finish(text)
        if text.startswith(KEY):
            self._state = "key"
            return Progress(text[len(KEY) :])
        if text.startswith("{") and not self._given:
            self._state = "json"
            return Progress(text)
        if may_begin(text, _AFTER_ARGUMENT):
            return self._finish("") if final else Progress(text, moved=False)
        self._state = "key"  # without its <arg_key>: nothing else leads here
        return Progress(text)

    def _read_key(self, text: str, final: bool) -> Progress:
        if text.lstrip().startswith(KEY):  # twice
            return Progress(text.lstrip()[len(KEY) :])
        found = first_of(text, (END_KEY, VALUE, END_CALL, CALL))
        if found is None:
            return Progress("" if final else text, done=final, moved=final)
        at, tag = found
        if tag in (END_CALL, CALL):
            self.stray += KEY + text[:at]
            self._state = "between"
            return Progress(text[at:])
        self._key = text[:at].strip()
        self._state = "gap"
        return Progress(text[at + len(END_KEY) :] if tag == END_KEY else text[at:])

    def _gap(self, text: str, final: bool) -> Progress:
        text = text.lstrip()
        if text.startswith(END_KEY):  # twice
            return Progress(text[len(END_KEY) :])
        if text.startswith((END_CALL, CALL)):
            self.stray += KEY + self._key + END_KEY
            self._state = "between"
            return Progress(text)
        if may_begin(text, (VALUE, END_KEY, END_CALL, CALL)):
            return Progress(text, done=final, moved=final)
        self._state = "value"
        self._raw = []
        opening = ""
        if self._streams:
            opening = self._opening() + '"'
        return Progress(text.removeprefix(VALUE), opening)

    @property
    def _streams(self) -> bool:
        return self._tools.types(self._name, self._key) == {"string"}

    def _opening(self) -> str:
        opening = ("{" if not self._given else ", ") + quote(self._key) + ": "
        self._given.add(self._key)
        return opening

    def _value(self, text: str, final: bool) -> Progress:
        length, skip = self._value_end(text, final)
        piece, streams = text[:length], self._streams
        if not streams:
            self._raw.append(piece)
        delta = quote(piece)[1:-1] if streams else ""
        if skip is None:
            return Progress(text[length:], delta, done=final, moved=final)
        if streams:
            delta += '"'
        else:
            raw = "".join(self._raw)
            delta = self._opening() + value_as_json(raw, self._tools.types(self._name, self._key))
        self._state = "between"
        return Progress(text[length + skip :], delta)

    def _value_end(self, text: str, final: bool) -> tuple[int, int | None]:
        """(Length of the text that is surely value, length of the tag after it; None: the value goes on)."""
        at = 0
        while (found := first_of(text, (END_VALUE, END_CALL, KEY), at)) is not None:
            start, tag = found
            verdict = self._is_tag(tag, text[start + len(tag) :], final)
            if verdict is None:
                return start, None
            if verdict:
                return start, len(tag) if tag == END_VALUE else 0
            at = start + len(tag)
        return len(text) if final else len(text) - held_back(text, (END_VALUE, END_CALL, KEY)), None

    def _is_tag(self, tag: str, after: str, final: bool) -> bool | None:
        """Whether `tag` inside a value is one, or text that looks like it; None: what follows must tell."""
        if tag == END_VALUE:
            return self._ends_value(after.lstrip(), final)
        if tag == END_CALL:  # a tag only if no </arg_value> comes, that is, if that was left out
            found = first_of(after, (END_VALUE, CALL))
            if found is None:
                return True if final else None
            return found[1] == CALL
        found = first_of(after, (END_KEY, END_VALUE, END_CALL, CALL))
        if found is None:
            return False if final else None
        return found[1] == END_KEY and self._is_new_key(after[: found[0]].strip())

    def _ends_value(self, after: str, final: bool) -> bool | None:
        if after.startswith(_AFTER_ARGUMENT):
            return True
        if may_begin(after, _AFTER_ARGUMENT):
            return True if final else None
        word, tag, _ = after.partition("<")
        word, tag = word.strip(), tag + _
        if tag.startswith(END_KEY):
            return self._is_new_key(word)
        open_ended = may_begin(tag, (END_KEY,)) and any(
            key.startswith(word) if not tag else key == word for key in self._tools.properties(self._name)
        )
        return None if open_ended and not final else False

    def _is_new_key(self, key: str) -> bool:
        return key in self._tools.properties(self._name) and key not in self._given and key != self._key

    def _json(self, text: str, final: bool) -> Progress:
        at = text.find(END_CALL)
        if at < 0 and not final:
            return Progress(text, moved=False)
        written, rest = (text, "") if at < 0 else (text[:at], text[at + len(END_CALL) :])
        body = value_as_json(written, frozenset({"object"}))
        self.complete = body.startswith("{")
        return Progress(rest, body if self.complete else written, done=True)

    def _finish(self, rest: str) -> Progress:
        self.complete = True
        return Progress(rest, "}" if self._given else "{}", done=True)


class ObjectReader:
    """One JSON object, passed on as it comes up to its closing brace; bare line breaks in strings are escaped."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = self._escaped = False
        self._made: list[str] = []
        self.complete = False
        self.stray = ""

    def read(self, text: str, final: bool) -> Progress:
        """One step; see CallReader."""
        made: list[str] = []
        for at, char in enumerate(text):
            made.append(quote(char)[1:-1] if self._in_string and char < " " else char)
            if self._in_string:
                if self._escaped:
                    self._escaped = False
                elif char == "\\":
                    self._escaped = True
                elif char == '"':
                    self._in_string = False
            elif char == '"':
                self._in_string = True
            elif char in "{[":
                self._depth += 1
            elif char in "}]":
                self._depth -= 1
                if self._depth == 0:
                    return self._finish("".join(made), text[at + 1 :])
        delta = "".join(made)
        self._made.append(delta)
        return Progress("", delta, done=final, moved=False)

    def _finish(self, delta: str, rest: str) -> Progress:
        self.complete = is_object("".join((*self._made, delta)))
        return Progress(rest, delta, done=True)


def read_name(text: str, tools: ToolSet, final: bool) -> tuple[str, str] | Literal[False] | None:
    """The function's name after `<tool_call>`, and the rest: None if more text must tell, False if it is no call.

    A name counts if the request offers it and a tag, a JSON object or the end of the call follows.
    """
    text = text.lstrip()
    stop = next((i for i, char in enumerate(text) if char.isspace() or char in "<{"), len(text))
    word, after = text[:stop], text[stop:]
    rest = after.lstrip()
    if word in tools:
        verdict = _follows_name(word, after, rest, tools, final)
        if verdict is not False:
            return (word, rest) if verdict else None
    joined = _name_and_key(word, rest, tools)
    if joined is not None and rest.startswith(END_KEY):
        return joined, word[len(joined) :] + rest
    if final:
        return False
    if not after:
        waits = joined is not None or any(name.startswith(word) for name in tools.names)
        return None if waits else False
    return None if joined is not None and may_begin(rest, (END_KEY,)) and rest == after else False


def _follows_name(name: str, after: str, rest: str, tools: ToolSet, final: bool) -> bool | None:
    """Whether what stands after a known name makes it a call; None: cannot tell yet."""
    ends = (KEY, END_CALL, CALL)
    if rest.startswith((*ends, "{")):
        return True
    if may_begin(rest, ends):
        # At the very end, a name that something follows is whole; one that nothing follows may have been cut off.
        return bool(after) if final else None
    key, bracket, tag = rest.partition("<")
    known = tools.properties(name)
    if bracket and (bracket + tag).startswith(END_KEY):
        return key.strip() in known
    if not bracket:
        return None if not final and any(k.startswith(key.strip()) for k in known) else False
    return None if not final and key.strip() in known and may_begin(bracket + tag, (END_KEY,)) else False


def _name_and_key(word: str, rest: str, tools: ToolSet) -> str | None:
    """The longest tool name that `word` begins with if its rest is an argument, or while `rest` is empty may be one."""
    for name in sorted(tools.names, key=len, reverse=True):
        if word.startswith(name) and word != name:
            key = word[len(name) :]
            if key in tools.properties(name) or (not rest and any(k.startswith(key) for k in tools.properties(name))):
                return name
    return None
