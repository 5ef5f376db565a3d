"""Find the call sites of aclnn functions in C++ sources: EXEC_NPU_CMD(aclnnX, arguments...) and its relatives."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MACROS = (
    "EXEC_NPU_CMD",
    "EXEC_NPU_CMD_EXT",
    "EXEC_NPU_CMD_SYNC",
    "EXEC_NPU_NO_FORMAT_CHECK_CMD",
    "EXEC_GET_MAX_WORKSPACE_CMD",
)
CALL = re.compile(rf"\b(?:{'|'.join(MACROS)})\s*\(")
COMMENT_OR_STRING = re.compile(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"', re.DOTALL)


@dataclass(frozen=True)
class Call:
    """One call of one aclnn function, with what its arguments are called and where it stands."""

    name: str
    arguments: tuple[str, ...]
    source: str  # path:line, relative to the repository
    text: str = ""  # the source file up to the call, without comments
    types: tuple[str, ...] = ()  # the C++ types, where they are known without reading the function

    @property
    def line(self) -> int:
        return int(self.source.rsplit(":", 1)[1])


def without_comments(text: str) -> str:
    """Blank comments out; every other character keeps its place."""

    def blank(match: re.Match[str]) -> str:
        found = match.group()
        return found if found.startswith('"') else re.sub(r"[^\n]", " ", found)

    return COMMENT_OR_STRING.sub(blank, text)


def closing(text: str, start: int) -> int:
    """The index of the bracket that closes the one at `start`."""
    depth = 0
    for match in re.compile(r'"(?:\\.|[^"\\\n])*"|[()\[\]{}]').finditer(text, start):
        if match.group() in "([{":
            depth += 1
        elif match.group() in ")]}":
            depth -= 1
            if depth == 0:
                return match.start()
    raise ValueError(f"nothing closes the bracket in {text[start : start + 60]!r}")


def split_arguments(text: str) -> list[str]:
    """Split at the commas that are outside all brackets and angle brackets of templates."""
    parts, depth, current = [], 0, ""
    for piece in re.findall(r'"(?:\\.|[^"\\\n])*"|->|<<|<=|[<>](?= )|[^"]', text):
        if len(piece) == 1 and piece in "([{<":
            depth += 1
        elif len(piece) == 1 and piece in ")]}>":
            depth -= 1
        if piece == "," and depth == 0:
            parts.append(" ".join(current.split()))
            current = ""
        else:
            current += piece
    return [*parts, " ".join(current.split())] if current.strip() else parts


def sources(root: Path) -> Iterator[Path]:
    """The C++ files of a checkout that may hold call sites; the headers that define the macros hold none."""
    for path in sorted(root.rglob("*")):
        if path.suffix in (".cpp", ".h", ".hpp") and "third_party" not in path.parts and "test" not in path.parts:
            yield path


def find_calls(root: Path, folder: str, prefix: str = "") -> list[Call]:
    """Every call under `folder` of a checkout; `prefix` goes before the paths, to tell two repositories apart."""
    calls = []
    for path in sources(root / folder):
        raw = path.read_text(errors="replace")
        if not CALL.search(raw):
            continue
        text = without_comments(raw)
        for match in CALL.finditer(text):
            if text.rfind("#define", text.rfind("\n", 0, match.start()) + 1, match.start()) >= 0:
                continue
            inside = text[match.end() : closing(text, match.end() - 1)]
            name, *arguments = split_arguments(inside)
            if re.fullmatch(r"aclnn\w+", name) and name != "aclnn_api":
                source = f"{prefix}{path.relative_to(root)}:{text.count(chr(10), 0, match.start()) + 1}"
                calls.append(Call(name[5:], tuple(arguments), source, text[: match.start()]))
    return calls
