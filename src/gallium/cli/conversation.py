"""A conversation: its messages, and their life in a file."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from gallium.cli.answering import Choice
from gallium.errors import UsageError
from gallium.types import Message

ROLES = ("system", "user", "assistant")


class Conversation:
    """The messages so far; the system message, if any, is the first."""

    def __init__(self, system: str | None = None) -> None:
        self.messages: list[Message] = []
        self._mine: set[Path] = set()  # files this conversation has written or read: it may write them again
        self.set_system(system)

    @property
    def system(self) -> str | None:
        """The system message."""
        first = self.messages[:1]
        return str(first[0]["content"]) if first and first[0]["role"] == "system" else None

    def set_system(self, text: str | None) -> None:
        """Replace the system message; None or "" takes it away."""
        if self.system is not None:
            del self.messages[0]
        if text:
            self.messages.insert(0, {"role": "system", "content": text})

    def reset(self) -> None:
        """Forget all but the system message."""
        del self.messages[0 if self.system is None else 1 :]

    def ask(self, question: str) -> None:
        """Add what the user says."""
        self.messages.append({"role": "user", "content": question})

    def take(self, answer: Choice) -> None:
        """Add what the model said; templates decide how much of its reasoning later turns see."""
        message: Message = {"role": "assistant", "content": answer.content}
        if answer.reasoning:
            message["reasoning_content"] = answer.reasoning
        self.messages.append(message)

    def unask(self) -> None:
        """Take back a question that got no answer."""
        if self.messages and self.messages[-1]["role"] == "user":
            self.messages.pop()

    def save(self, path: Path) -> None:
        """Write all messages as JSON, whole or not at all. Raises UsageError; never replaces a foreign file."""
        path = path.expanduser()
        if path.exists() and path.resolve() not in self._mine:
            raise UsageError(f"{path} exists already: choose another name.")
        text = json.dumps({"messages": self.messages}, ensure_ascii=False, indent=2) + "\n"
        try:
            _replace(path, text)
        except OSError as fault:
            raise UsageError(f"{path} cannot be written: {fault.strerror or fault}.") from fault
        self._mine.add(path.resolve())

    def load(self, path: Path) -> None:
        """Go on with a saved conversation. Raises UsageError and leaves this one as it is."""
        path = path.expanduser()
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
        except OSError as fault:
            raise UsageError(f"{path} cannot be read: {fault.strerror or fault}.") from fault
        except (ValueError, RecursionError) as fault:
            raise UsageError(f"{path} is not a saved conversation: {fault}.") from fault
        self.messages = _checked(stored, path)
        self._mine.add(path.resolve())


def _replace(path: Path, text: str) -> None:
    """Write beside the final name, then rename: a full disk leaves no half of a file."""
    descriptor, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        Path(beside).replace(path)
    except BaseException:
        Path(beside).unlink(missing_ok=True)
        raise


def _checked(stored: Any, path: Path) -> list[Message]:
    messages = stored.get("messages") if isinstance(stored, dict) else None
    if not isinstance(messages, list) or not all(
        isinstance(m, dict) and m.get("role") in ROLES and isinstance(m.get("content"), str) for m in messages
    ):
        raise UsageError(f'{path} is not a saved conversation: it needs {{"messages": [{{"role", "content"}}, ...]}}.')
    if any(m["role"] == "system" for m in messages[1:]):
        raise UsageError(f"{path} has a system message after the first message.")
    return messages
