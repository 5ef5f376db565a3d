"""Read just enough of an x86-64 ELF library: its strings, its functions, and which instruction refers to what."""

import bisect
import re
import struct
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

RELATIVE = 8  # R_X86_64_RELATIVE: the word at `offset` holds the address `addend`
# REX.W lea reg, [rip + disp32]: how position-independent code takes the address of a string, a function or a typeinfo.
LEA = re.compile(rb"(?=[\x48\x4c]\x8d[\x05\x0d\x15\x1d\x25\x2d\x35\x3d])")
CALL = re.compile(rb"(?=\xe8)")


@dataclass(frozen=True)
class Section:
    address: int
    offset: int
    size: int


class Library:
    """One shared library, read as data; nothing of it is loaded or run."""

    def __init__(self, path: Path) -> None:
        self.data = path.read_bytes()
        if self.data[:5] != b"\x7fELF\x02" or struct.unpack_from("<H", self.data, 0x12)[0] != 62:
            raise ValueError(f"{path} is not a 64-bit x86-64 ELF library; take the x86-64 wheel, the ABI is the same")

    @cached_property
    def sections(self) -> dict[str, Section]:
        table, count, names = (
            struct.unpack_from(code, self.data, at)[0] for code, at in (("<Q", 0x28), ("<H", 0x3C), ("<H", 0x3E))
        )
        headers = [struct.unpack_from("<IIQQQQIIQQ", self.data, table + 64 * i) for i in range(count)]
        strings = headers[names][4]
        found = {}
        for name, _, _, address, offset, size, *_ in headers:
            start = strings + name
            found[self.data[start : self.data.index(b"\0", start)].decode()] = Section(address, offset, size)
        return found

    def content(self, name: str) -> bytes:
        section = self.sections[name]
        return self.data[section.offset : section.offset + section.size]

    def strings(self, pattern: bytes) -> dict[int, str]:
        """Address → text of every zero-terminated string that is `pattern` as a whole, in the read-only sections."""
        whole = re.compile(pattern + rb"\0")
        found = {}
        for name, section in self.sections.items():
            if name.startswith(".rodata"):
                for match in whole.finditer(self.content(name)):
                    found[section.address + match.start()] = match.group()[:-1].decode()
        return found

    @cached_property
    def relocated(self) -> dict[int, list[int]]:
        """Address → the words of the data sections that hold it."""
        found: dict[int, list[int]] = {}
        for offset, info, addend in struct.iter_unpack("<QQq", self.content(".rela.dyn")):
            if info & 0xFFFFFFFF == RELATIVE:
                found.setdefault(addend, []).append(offset)
        return found

    @cached_property
    def functions(self) -> list[int]:
        """The start of each function, sorted: the search table of .eh_frame_hdr survives stripping."""
        table = self.content(".eh_frame_hdr")
        base = self.sections[".eh_frame_hdr"].address
        (count,) = struct.unpack_from("<I", table, 8)
        return sorted(base + struct.unpack_from("<i", table, 12 + 8 * i)[0] for i in range(count))

    def function_of(self, address: int) -> int:
        return self.functions[bisect.bisect_right(self.functions, address) - 1]

    @cached_property
    def references(self) -> dict[int, list[int]]:
        """Address → the instructions that take it (lea with a rip-relative operand)."""
        return self._relative_operands(LEA, at=3)

    @cached_property
    def calls(self) -> dict[int, list[int]]:
        """Address → what looks like a direct call of it; filter by addresses known to be functions."""
        return self._relative_operands(CALL, at=1)

    def _relative_operands(self, instruction: re.Pattern[bytes], at: int) -> dict[int, list[int]]:
        base = self.sections[".text"].address
        text = self.content(".text")
        found: dict[int, list[int]] = {}
        for match in instruction.finditer(text, 0, len(text) - 8):
            start = match.start()
            (distance,) = struct.unpack_from("<i", text, start + at)
            found.setdefault(base + start + at + 4 + distance, []).append(base + start)
        return found
