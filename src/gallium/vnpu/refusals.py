"""How an operator says no: what CANN itself refuses, and what the emulation does not have."""

from __future__ import annotations

import os
import traceback
from types import TracebackType

from gallium.vnpu.options import PREFIX

INVALID_ARGUMENT = 161002
OUT_OF_MEMORY = 207001
INTERNAL = 561000
NOT_EMULATED = 561003


class Refusal(Exception):
    """An operator that will not run. `str()` is the sentence, without the operator's name."""

    status = INTERNAL


class Illegal(Refusal):
    """An argument that CANN refuses too: Illegal("head_dim", 20, "a multiple of 16")."""

    status = INVALID_ARGUMENT

    def __init__(self, parameter: str, value: object, legal: str) -> None:
        super().__init__(f"{parameter} = {_shown(value)} is not legal: it must be {legal}.")


class Unsupported(Refusal):
    """An argument that CANN may take and the emulation does not: Unsupported("sparse_mode", 9, "0 to 4")."""

    status = NOT_EMULATED

    def __init__(self, parameter: str, value: object, supported: str) -> None:
        super().__init__(f"{parameter} = {_shown(value)} is not emulated by the virtual NPU; supported: {supported}.")


def refuse_given(**arguments: object) -> None:
    """Raise Unsupported for the first argument that is given: for optional ones that are not emulated."""
    for name, value in arguments.items():
        if value is not None and value != ():
            raise Unsupported(name, "given", "leaving it out")


def only(parameter: str, value: object, *supported: object) -> None:
    """Raise Unsupported unless the value is one of these."""
    if value not in supported:
        raise Unsupported(parameter, value, ", ".join(map(str, supported)))


def describe(name: str, error: BaseException, trace: TracebackType | None) -> tuple[int, str]:
    """The status of a failed operator and the sentence that the user reads in the RuntimeError of torch_npu."""
    function = f"aclnn{name}" if name[0].isupper() and "." not in name else name
    status = error.status if isinstance(error, Refusal) else INTERNAL
    if isinstance(error, MemoryError):
        status = OUT_OF_MEMORY
    text = f"{function}: {error}" if str(error) else f"{function}: {type(error).__name__}"
    if not isinstance(error, Refusal):
        text = f"{function}: the emulated operator failed ({type(error).__name__}: {error})"
    if os.environ.get(f"{PREFIX}_TRACEBACK") == "1":
        text += "\n" + "".join(traceback.format_exception(type(error), error, trace))
    return status, text


def _shown(value: object) -> str:
    shape = getattr(value, "shape", None)
    if shape is not None:
        return f"a tensor {list(shape)} of {getattr(value, 'dtype', '?')}"
    return repr(value)
