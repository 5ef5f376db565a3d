"""The native library of another architecture behind the face of ctypes.CDLL: calls go to tests/arm/driver.cpp.

The kernels take addresses of this process's memory. The driver maps a page at the same address when a kernel touches
it, and what the kernel changed is written back, byte by byte, when the call returns: everything that runs on the real
library runs on this one unchanged.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import re
import struct
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

PAGE = 4096
AHEAD = 16  # pages that are sent at once: a kernel that touches one mostly goes on to the next
SHARED_PAGES = 1 << 16
APART = 1 << 32  # bytes between the two processes' memory, so that both can map more
CALL = struct.Struct("64s8qq")
TOLD = struct.Struct("2q48s")
WANTS_PAGE, RETURNS = 0, 1
NOTHING, INT32, INT64, DOUBLE, TEXT = range(5)
RESULTS = {None: NOTHING, ctypes.c_int: INT32, ctypes.c_int32: INT32, ctypes.c_int64: INT64}
RESULTS |= {ctypes.c_double: DOUBLE, ctypes.c_char_p: TEXT}


class Function:
    """One function of the library; `__name__` and `restype` are as in ctypes, `argtypes` is not needed."""

    def __init__(self, library: EmulatedLibrary, name: str) -> None:
        self._library, self._name = library, name
        self.__name__ = name
        self.restype: Any = ctypes.c_int
        self.argtypes: Any = None

    def __call__(self, *arguments: Any) -> Any:
        return self._library.call(self._name, [_word(one) for one in arguments], RESULTS[self.restype])


class EmulatedLibrary:
    """A driver process and the library in it. `command` runs the driver: `[qemu, …, driver, library]`."""

    def __init__(self, command: Sequence[str]) -> None:
        self._lock = threading.Lock()
        self._memory = os.open("/proc/self/mem", os.O_RDWR)
        self._fd = os.memfd_create("gallium-arm", 0)
        os.ftruncate(self._fd, SHARED_PAGES * PAGE)
        self._shared = mmap.mmap(self._fd, SHARED_PAGES * PAGE)
        self._bytes = np.frombuffer(self._shared, np.uint8)
        self._process = self._start([*command, str(self._fd)])
        self._functions: dict[str, Function] = {}

    def _start(self, command: list[str]) -> subprocess.Popen[bytes]:
        """A driver whose memory lies far from this process's: the system puts both anywhere, so a few tries do."""
        for _ in range(20):
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[self._fd], bufsize=0
            )
            self._process = process
            self.call("ga_abi_version", [], INT32)  # it is up
            # Stacks lie near each other always; no kernel is given an address on one.
            if _apart(_regions("self", r"\[(stack|vvar|vdso|vsyscall)"), _regions(str(process.pid), r"\[vsyscall")):
                return process
            self.stop()
        raise RuntimeError("no place for the driver's memory beside this process's in 20 tries")

    def __getattr__(self, name: str) -> Function:
        if not name.startswith("ga_"):
            raise AttributeError(name)
        return self._functions.setdefault(name, Function(self, name))

    def call(self, name: str, arguments: list[int], result: int) -> Any:
        """One call, with whole numbers and addresses as arguments. Raises RuntimeError when the driver dies of it."""
        words = [(one + 2**63) % 2**64 - 2**63 for one in arguments] + [0] * (8 - len(arguments))
        with self._lock:
            self._write(CALL.pack(name.encode(), *words, result))
            slots: dict[int, tuple[int, bytes]] = {}
            while True:
                kind, value, text = TOLD.unpack(self._read(TOLD.size))
                if kind != WANTS_PAGE:
                    break
                self._write(struct.pack("2q", *self._send_pages(value, slots)))
            self._take_back(slots)
        if kind != RETURNS:
            raise AttributeError(f"the library has no {name}")
        return _result(value, text, result)

    def stop(self) -> None:
        """End the driver."""
        self._process.kill()
        self._process.communicate()

    def _send_pages(self, address: int, slots: dict[int, tuple[int, bytes]]) -> tuple[int, int]:
        """(first slot, count) of the page at `address` and those after it that the driver has not."""
        wanted = AHEAD
        for n in range(1, AHEAD):
            if address + n * PAGE in slots:
                wanted = n
                break
        first = len(slots)
        if first + wanted > SHARED_PAGES:
            raise RuntimeError(f"one call touches more than {SHARED_PAGES} pages")
        try:
            content = os.pread(self._memory, wanted * PAGE, address)
        except OSError:
            return 0, 0
        count = len(content) // PAGE
        self._shared[first * PAGE : (first + count) * PAGE] = content[: count * PAGE]
        for n in range(count):
            slots[address + n * PAGE] = (first + n, content[n * PAGE : (n + 1) * PAGE])
        return first, count

    def _take_back(self, slots: dict[int, tuple[int, bytes]]) -> None:
        """Write the bytes that the kernel changed, and no others: this process may have changed their neighbours."""
        for address, (slot, before) in slots.items():
            after = self._bytes[slot * PAGE : (slot + 1) * PAGE]
            changed = np.flatnonzero(after != np.frombuffer(before, np.uint8))
            if changed.size:
                for run in np.split(changed, np.flatnonzero(np.diff(changed) != 1) + 1):
                    piece = after[run[0] : run[-1] + 1]
                    os.pwrite(self._memory, piece.tobytes(), address + int(run[0]))

    def _write(self, message: bytes) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(message)

    def _read(self, size: int) -> bytes:
        assert self._process.stdout is not None
        message = self._process.stdout.read(size)
        if len(message or b"") != size:
            code = self._process.wait()
            raise RuntimeError(f"the driver ended with {code}: see its message on stderr; -4 is an unknown instruction")
        return message


def _word(argument: Any) -> int:
    """An argument as the integer register that holds it; bytes are passed by their address, as ctypes does."""
    if argument is None:
        return 0
    if isinstance(argument, bytes):
        return ctypes.cast(ctypes.c_char_p(argument), ctypes.c_void_p).value or 0
    if isinstance(argument, (int, np.integer)):
        return int(argument)
    if isinstance(argument, ctypes.Array):
        return ctypes.addressof(argument)
    return int(argument.value or 0)


def _result(value: int, text: bytes, result: int) -> Any:
    if result == INT32:
        return (value + 2**31) % 2**32 - 2**31
    if result == DOUBLE:
        return struct.unpack("d", struct.pack("q", value))[0]
    if result == TEXT:
        return text.rstrip(b"\0") if value else None
    return value if result == INT64 else None


def _regions(process: str, hidden: str = "") -> list[tuple[int, int]]:
    """Where a process has memory, save for what /proc calls `hidden`."""
    lines = Path(f"/proc/{process}/maps").read_text(encoding="utf-8", errors="replace").splitlines()
    ends = [line.split(" ", 1)[0].split("-") for line in lines if not re.search(hidden or "$^", line)]
    return [(int(start, 16), int(end, 16)) for start, end in ends]


def _apart(ours: list[tuple[int, int]], theirs: list[tuple[int, int]]) -> bool:
    """Whether no two regions are near each other."""
    return all(a_end + APART <= b or b_end + APART <= a for a, a_end in ours for b, b_end in theirs)
