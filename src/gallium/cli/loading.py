"""Loads a model for a command: with a progress bar, and with a word about the stand-in."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from gallium.cli.terminal import ProgressBar, note, stderr_is_terminal
from gallium.settings import EngineSettings

if TYPE_CHECKING:
    from gallium.engine.assembly import Assembly
    from gallium.engine.tracing import Recorder

STAND_IN = (
    "No model was named, so this is the embedded default: a stand-in of 135M parameters, weak on facts.\n"
    "For a real GLM:  gallium pull {name}  and then  gallium {command} {name}"
)


@contextmanager
def loaded(
    model: str | None, settings: EngineSettings, *, need_tokenizer: bool = True, recorder: Recorder | None = None
) -> Iterator[Assembly]:
    """A running model, closed at the end. Raises the errors of every part of loading."""
    from gallium.engine.assembly import assemble

    quiet_hub_without_terminal()
    with ProgressBar("loading") as bar:
        assembly = assemble(model, settings, progress=bar, need_tokenizer=need_tokenizer, recorder=recorder)
    try:
        yield assembly
    finally:
        assembly.close()


def quiet_hub_without_terminal() -> None:
    """The hub's client draws bars into log files unless it is told not to before it is imported."""
    if not stderr_is_terminal():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def announce(assembly: Assembly, command: str) -> None:
    """Say what runs where, and that the default model is a stand-in."""
    note(assembly.summary)
    if assembly.is_default:
        note(stand_in(command))


def stand_in(command: str) -> str:
    """What the embedded default model is, and which model to take next."""
    from gallium.checkpoints.resolve import SUGGESTED

    return STAND_IN.format(name=SUGGESTED, command=command)
