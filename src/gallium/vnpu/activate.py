"""Runs at interpreter start, from gallium-vnpu.pth: installs the virtual NPU where it was asked for by name."""

from __future__ import annotations

import os
import sys

from gallium.vnpu import report
from gallium.vnpu.loader import CANN_VERSION, install, installed
from gallium.vnpu.options import PREFIX, OptionError, Options, asked_for

SHOWN = f"{PREFIX}_BANNER_SHOWN"


def activate() -> None:
    """Install if GALLIUM_VNPU=1; a program that asked for the virtual NPU never goes on without it."""
    try:
        if not asked_for() or installed():  # Python may read a .pth file twice
            return
        options = Options.from_environment()
        install(options)
        report.begin()
    except (OptionError, RuntimeError, OSError) as error:
        print(f"Error: {error}", file=sys.stderr, flush=True)
        os._exit(2)  # an exception here would only be printed, and the program would run without the NPU
    if os.environ.get(SHOWN) != "1":
        os.environ[SHOWN] = "1"  # child processes are silent
        print(banner(options), file=sys.stderr)


def banner(options: Options) -> str:
    """What a user must know before believing anything that follows."""
    return (
        f"gallium: virtual {options.soc} x {options.devices}, CANN {CANN_VERSION} emulated on this CPU. "
        "It cannot tell speed, the numerics of the cube unit, or races."
    )
