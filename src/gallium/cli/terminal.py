"""What the commands share at the terminal: notes, tables, standard input, progress."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

import click

from gallium.errors import UsageError

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

PATIENCE_S = 0.7  # what is done sooner shows no progress bar, and does not pay for importing one


def note(text: str = "") -> None:
    """A remark beside the result: dimmed, on standard error."""
    click.secho(text, err=True, dim=True)


def write(text: str, *, dim: bool = False) -> None:
    """A piece of the answer, at once. Colours only reach terminals. Raises BrokenPipeError."""
    click.secho(text, nl=False, dim=dim) if dim else _plain(text)


def _plain(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def stdin_is_terminal() -> bool:
    """Whether a person can type."""
    return sys.stdin is not None and sys.stdin.isatty()


def stderr_is_terminal() -> bool:
    """Whether remarks reach a person at once."""
    return sys.stderr is not None and sys.stderr.isatty()


def read_stdin() -> str:
    """All of standard input, without the newlines at its end. Raises UsageError unless it is UTF-8."""
    if sys.stdin is None:
        return ""
    stored = sys.stdin.buffer.read()
    try:
        return stored.decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError as fault:
        raise UsageError(
            f"standard input is not UTF-8 (byte {stored[fault.start]:#04x} at offset {fault.start}): "
            "convert it first, for example with iconv -t UTF-8."
        ) from None


def checked_text(text: str, what: str) -> str:
    """Text from the command line. Raises UsageError if its bytes were not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UsageError(f"{what} is not valid UTF-8: convert it first.") from None
    return text


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> str:
    """Rows as aligned plain text; `right` are the columns of numbers."""
    cells = [list(columns), *[list(row) for row in rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    lines = [
        "  ".join(c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in cells
    ]
    lines.insert(1, "  ".join("-" * w for w in widths))
    return "\n".join(line.rstrip() for line in lines)


class ProgressBar:
    """`bar(done, total)` draws on standard error, if that is a terminal and the work takes more than a moment."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._start = time.monotonic()
        self._wanted = stderr_is_terminal()
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def __call__(self, done: int, total: int) -> None:
        """Report progress."""
        if not self._wanted:
            return
        if self._bar is None:
            if time.monotonic() - self._start < PATIENCE_S:
                return
            self._bar = _new_bar()
            self._task = self._bar.add_task(self._what, total=total)
            self._bar.start()
        assert self._task is not None
        self._bar.update(self._task, completed=done, total=total)

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()


def _new_bar() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns: list[Any] = [TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()]
    return Progress(*columns, console=Console(stderr=True), transient=True)
