"""Random signatures of operator functions and values for them, to test how arguments are read from a call."""

from __future__ import annotations

import ctypes
import random
import struct
from typing import Any

C_TYPES: dict[str, Any] = {
    "i": ctypes.c_int64,
    "w": ctypes.c_int32,
    "h": ctypes.c_int16,
    "c": ctypes.c_int8,
    "b": ctypes.c_bool,
    "d": ctypes.c_double,
    "f": ctypes.c_float,
    "P": ctypes.c_void_p,
}
C_NAMES = {
    "i": "int64_t",
    "w": "int32_t",
    "h": "int16_t",
    "c": "int8_t",
    "b": "bool",
    "d": "double",
    "f": "float",
    "P": "void*",
}
BITS = {"i": 64, "w": 32, "h": 16, "c": 8}


def draw(source: random.Random) -> tuple[str, list[Any]]:
    """Letters of up to 30 parameters, which fill all registers and the stack, and a value for each."""
    kinds = "".join(source.choice("iwhcbdfP") for _ in range(source.randint(0, 30)))
    return kinds, [value_of(kind, source) for kind in kinds]


def value_of(kind: str, source: random.Random) -> Any:
    """A value that the type holds exactly."""
    if kind in BITS:
        edge = 1 << (BITS[kind] - 1)
        return source.choice((0, 1, -1, edge - 1, -edge, source.randrange(-edge, edge)))
    if kind == "b":
        return source.random() < 0.5
    if kind == "P":
        return source.randrange(1, 1 << 47)
    value = source.choice((0.0, -1.5, 1e300 if kind == "d" else 1e30, source.uniform(-1e6, 1e6)))
    return value if kind == "d" else struct.unpack("f", struct.pack("f", value))[0]
