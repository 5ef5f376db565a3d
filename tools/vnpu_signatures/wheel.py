"""What a torch_npu wheel says: the aclnn names it looks up, and the C++ types that it passes to each.

op-plugin's macro EXEC_NPU_CMD calls a template `hit_cache<Args...>(stream, "aclnnX", ..., args...)`. Symbols are
stripped, but each instantiation keeps a lambda in a std::function, and with it a typeinfo whose name spells Args out.
So: typeinfo name → typeinfo → the function that returns it → the instantiation → its call sites → the string "aclnnX"
nearest before each one. What is read is what the compiler compiled, at the wheel's own commit. "Nearest" may name a
neighbour, so nothing is believed that a call in the sources does not agree with (table.py).
"""

import bisect
import re
import subprocess
import zipfile
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

from .elf import Library

LIBRARY = "torch_npu/lib/libtorch_npu.so"
SIZE_SUFFIX = "GetWorkspaceSize"
ONE_CALL = (
    "NpuFormatCastCalculateSizeAndFormat",
    "ReselectStaticKernel",
    "ReselectStaticKernelWithPath",
    "SetPytorchRandom",
)


class Wheel:
    def __init__(self, path: Path) -> None:
        """`path` is a .whl file or the folder it was unpacked to."""
        if path.is_dir():
            self.library = Library(path / LIBRARY)
            self.version = _version((path / "torch_npu/version.py").read_text())
            return
        with zipfile.ZipFile(path) as archive, TemporaryDirectory() as folder:
            self.library = Library(Path(archive.extract(LIBRARY, folder)))
            self.version = _version(archive.read("torch_npu/version.py").decode())

    @cached_property
    def strings(self) -> dict[int, str]:
        return {address: text[5:] for address, text in self.library.strings(rb"aclnn[A-Za-z0-9_]+").items()}

    def names(self) -> list[str]:
        """Every usable name, sorted, without the prefix aclnn."""
        seen = set(self.strings.values())
        two_phase = {name.removesuffix(SIZE_SUFFIX) for name in seen if name.endswith(SIZE_SUFFIX)}
        missing = two_phase - seen
        if missing:
            raise ValueError(f"the wheel lacks the strings of {sorted(missing)}: has the naming changed?")
        return sorted(two_phase | (set(ONE_CALL) & seen))  # older wheels lack some of these

    def passed_types(self) -> dict[str, set[tuple[str, ...]]]:
        """Name → the lists of C++ types that the wheel's call sites pass."""
        names = set(self.names())
        marks = sorted(
            (instruction, name)
            for address, name in self.strings.items()
            if name in names
            for instruction in self.library.references.get(address, ())
        )
        positions = [instruction for instruction, _ in marks]
        found: dict[str, set[tuple[str, ...]]] = {}
        for function, types in self._instantiations().items():
            for call in self.library.calls.get(function, ()):
                nearest = bisect.bisect_left(positions, call) - 1
                if nearest >= 0 and self.library.function_of(positions[nearest]) == self.library.function_of(call):
                    found.setdefault(marks[nearest][1], set()).add(types)
        return found

    def _instantiations(self) -> dict[int, tuple[str, ...]]:
        """Address of each instantiation of hit_cache → its template arguments."""
        mangled = self.library.strings(rb"\*?Z9hit_cacheI[A-Za-z0-9_]+")
        types = dict(zip(mangled, _template_arguments(list(mangled.values())), strict=True))
        found: dict[int, tuple[str, ...]] = {}
        for string, arguments in types.items():
            for word in self.library.relocated.get(string, ()):
                typeinfo = word - 8  # a typeinfo is a vtable pointer, then the pointer to its name
                for manager in self._users(typeinfo):
                    for function in self._users(manager):
                        found[function] = arguments
        return found

    def _users(self, address: int) -> set[int]:
        return {self.library.function_of(instruction) for instruction in self.library.references.get(address, ())}


def _version(text: str) -> str:
    found = dict(re.findall(r"^(__version__|git_version) = '([^']+)'", text, re.MULTILINE))
    if len(found) != 2:
        raise ValueError("torch_npu/version.py does not give __version__ and git_version")
    return f"{found['__version__']} (Ascend/pytorch {found['git_version'][:7]})"


def _template_arguments(mangled: list[str]) -> list[tuple[str, ...]]:
    lines = "\n".join(name.lstrip("*") for name in mangled)
    shown = subprocess.run(["c++filt", "-t"], input=lines, text=True, capture_output=True, check=True).stdout
    return [tuple(first_brackets(line.split("hit_cache", 1)[1])) for line in shown.splitlines()]


def first_brackets(text: str) -> list[str]:
    """The comma-separated parts of the first <...> in `text`."""
    parts, depth, start = [], 0, 0
    for at, letter in enumerate(text):
        if letter in "<({[":
            depth += 1
            start = at + 1 if depth == 1 else start
        elif letter in ">)}]":
            depth -= 1
        if (letter == "," and depth == 1) or (letter == ">" and depth == 0):
            parts.append(text[start:at].strip())
            start = at + 1
        if letter == ">" and depth == 0:
            return parts
    raise ValueError(f"unbalanced brackets in {text!r}")
