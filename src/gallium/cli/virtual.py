"""`--virtual`: the same command again, in a process that has virtual Ascend NPUs."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click

from gallium.cli.options import SectionOption
from gallium.errors import UsageError
from gallium.settings import EngineSettings, environment

F = TypeVar("F", bound=Callable[..., Any])

BACKEND = "ascend"  # the one that --virtual is for


def virtual_options(command: F) -> F:
    """Add --virtual and --soc, below `engine_options` or for a command with an option --backend.

    The command runs in a process that has as many virtual NPUs as its settings need; this one becomes it.
    """

    @functools.wraps(command)
    def wrapped(virtual: bool, soc: str | None, **values: Any) -> Any:
        settings = values.get("settings")
        if isinstance(settings, EngineSettings):
            become_virtual(virtual, soc, settings.backend, settings.world)
        else:
            become_virtual(virtual, soc, values.get("backend"), 1)
        return command(**values)

    decorated: Any = wrapped
    for flag, options in (
        ("--soc", {"metavar": "NAME", "help": "The chip that --virtual shows.  [default: Ascend910B2]"}),
        ("--virtual", {"is_flag": True, "help": "Emulate the chips of --backend ascend on this CPU; slow."}),
    ):
        decorated = click.option(flag, cls=SectionOption, section="Engine", **options)(decorated)
    found: F = decorated
    return found


def become_virtual(virtual: bool, soc: str | None, backend: str | None, devices: int) -> None:
    """Become the same command on virtual NPUs, if they are asked for and this process does not have them yet.

    Raises UsageError if they would not be used, or if this process has another chip; GalliumError where torch_npu is
    missing.
    """
    if not virtual:
        if soc is not None:
            raise UsageError("--soc names the chip that --virtual shows: add --virtual.")
        return
    if backend != BACKEND:
        raise UsageError(f"--virtual emulates the chips of the backend {BACKEND}: add --backend {BACKEND}.")
    from gallium.cli.npu import checked
    from gallium.vnpu import launch
    from gallium.vnpu.options import Options

    if environment("GALLIUM_VNPU") == "1":
        shown = Options.from_environment().soc
        if soc is not None and soc != shown:
            raise UsageError(f"--soc {soc}: this process was started with a virtual {shown}; leave out --soc.")
        return
    options = checked({"soc": soc or Options().soc, "devices": devices})
    command = launch.command(["-m", "gallium", *sys.argv[1:]])
    sys.stdout.flush()
    os.execve(command[0], command, launch.environment(options))
