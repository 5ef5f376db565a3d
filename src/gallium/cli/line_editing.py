"""Reading lines from a person: editing, history over sessions, completion of commands, several lines at once."""

from __future__ import annotations

import atexit
from collections.abc import Sequence
from contextlib import suppress

from gallium.settings import cache_dir

PROMPT, MORE = "> ", ". "
FENCE = '"""'
HISTORY_LINES = 1000


def start_line_editing(words: Sequence[str]) -> None:
    """Arrow keys, a history kept in Gallium's cache folder, Tab for `words`; without readline, plain lines."""
    try:
        import readline
    except ImportError:  # some builds of Python lack it
        return
    history = cache_dir() / "chat_history"
    with suppress(OSError):
        history.parent.mkdir(parents=True, exist_ok=True)
        history.touch(mode=0o600)
        readline.read_history_file(history)
    readline.set_history_length(HISTORY_LINES)
    readline.set_completer_delims(" ")
    readline.set_completer(lambda text, state: _completion(words, text, state))
    readline.parse_and_bind("tab: complete")

    def keep() -> None:
        with suppress(OSError):
            readline.write_history_file(history)

    atexit.register(keep)


def _completion(words: Sequence[str], text: str, state: int) -> str | None:
    fits = [word for word in words if text.startswith("/") and word.startswith(text)]
    return fits[state] if state < len(fits) else None


def read_line() -> str:
    """One line, or several between fences. Raises EOFError for Ctrl-D and KeyboardInterrupt for Ctrl-C."""
    line = input(PROMPT)
    if not line.startswith(FENCE):
        return line
    lines = [line.removeprefix(FENCE)]
    while not lines[-1].endswith(FENCE):
        lines.append(input(MORE))
    lines[-1] = lines[-1].removesuffix(FENCE)
    return "\n".join(lines).strip("\n")
