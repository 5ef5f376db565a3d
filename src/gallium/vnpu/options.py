"""What the user may choose, from GALLIUM_VNPU_* environment variables, so that child processes inherit it."""

from __future__ import annotations

import os
from dataclasses import dataclass

PREFIX = "GALLIUM_VNPU"


class OptionError(ValueError):
    """An option has a value that means nothing; the text says what is possible."""


@dataclass(frozen=True)
class Options:
    """The virtual machine that a program sees.

    soc: name of the chip, one of `gallium.vnpu.soc.names()`.
    devices: how many (1 to 64).
    memory_gib: memory per device in GiB; None is what the chip has.
    strict: torch_npu's own silent moves of an operator to the CPU are errors.
    traceback: errors of operators carry the emulator's Python traceback.
    """

    soc: str = "Ascend910B2"
    devices: int = 1
    memory_gib: float | None = None
    strict: bool = False
    traceback: bool = False

    @staticmethod
    def from_environment() -> Options:
        """The options that this process was started with. Raises OptionError."""
        default = Options()
        memory = os.environ.get(f"{PREFIX}_MEMORY_GIB")
        return Options(
            soc=os.environ.get(f"{PREFIX}_SOC", default.soc),
            devices=int(_number("DEVICES", default.devices, 1, 64)),
            memory_gib=None if memory is None else _number("MEMORY_GIB", 0, 0.001, 4096),
            strict=_switch("STRICT"),
            traceback=_switch("TRACEBACK"),
        )

    def environment(self) -> dict[str, str]:
        """The variables that give these options to a child process."""
        out = {PREFIX: "1", f"{PREFIX}_SOC": self.soc, f"{PREFIX}_DEVICES": str(self.devices)}
        if self.memory_gib is not None:
            out[f"{PREFIX}_MEMORY_GIB"] = str(self.memory_gib)
        for name, on in (("STRICT", self.strict), ("TRACEBACK", self.traceback)):
            out[f"{PREFIX}_{name}"] = "1" if on else "0"
        return out


def asked_for() -> bool:
    """Whether this process was started as a virtual NPU program (GALLIUM_VNPU=1)."""
    return _switch("")


def _switch(name: str) -> bool:
    variable = f"{PREFIX}_{name}" if name else PREFIX
    text = os.environ.get(variable, "")
    if text not in ("", "0", "1"):
        raise OptionError(f"{variable}={text!r}: it is 1 or 0.")
    return text == "1"


def _number(name: str, default: float, low: float, high: float) -> float:
    text = os.environ.get(f"{PREFIX}_{name}", str(default))
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not low <= value <= high:
        raise OptionError(f"{PREFIX}_{name}={text!r}: it is a number from {low:g} to {high:g}.")
    return value
