"""The house rules that a machine can see: sizes, header sentences, device words, torch; exits 1 with a list."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MAX_FILE, MAX_FUNCTION = 400, 60
NEUTRAL = ("src/gallium/ops/interface.py", "src/gallium/models/", "src/gallium/engine/", "src/gallium/server/",
           "src/gallium/text/", "src/gallium/verify/")  # fmt: skip
WITH_TORCH = (
    "src/gallium/vnpu/",
    "src/gallium/backends/torch/",
    "src/gallium/backends/ascend/",
)  # come with an extra; the core never imports torch
DEVICE_WORDS = re.compile(r"\b(cuda|npu|ascend|torch)\b|device ==", re.IGNORECASE)


def tracked(*endings: str) -> list[str]:
    """Files that git knows or would add, with one of the endings."""
    out = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    return [name for name in sorted(set(out.splitlines())) if name.endswith(endings) and (ROOT / name).exists()]


def functions(tree: ast.AST) -> Iterator[tuple[str, int, int]]:
    """(name, first line, length) of every function."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, node.lineno, (node.end_lineno or node.lineno) - node.lineno + 1


def python_faults(name: str, text: str) -> Iterator[str]:
    tree = ast.parse(text)
    for function, line, length in functions(tree):
        if length > MAX_FUNCTION:
            yield f"{name}:{line}: {function}() has {length} lines, more than {MAX_FUNCTION}"
    if text.strip() and not name.startswith("tests/") and ast.get_docstring(tree) is None:
        yield f"{name}: does not open with a sentence that says what it holds"
    if (
        name.startswith("src/gallium/")
        and not name.startswith(WITH_TORCH)
        and re.search(r"^\s*(import|from) torch\b", text, re.MULTILINE)
    ):
        yield f"{name}: imports torch"


def faults() -> Iterator[str]:
    for name in tracked(".py", ".cpp", ".h"):
        text = (ROOT / name).read_text(encoding="utf-8")
        lines = text.splitlines()
        if len(lines) > MAX_FILE:
            yield f"{name}: {len(lines)} lines, more than {MAX_FILE}"
        if name.endswith(".py"):
            yield from python_faults(name, text)
        if name.startswith(NEUTRAL):
            for number, line in enumerate(lines, 1):
                if DEVICE_WORDS.search(line):
                    yield f"{name}:{number}: a device word outside the backends: {line.strip()[:80]}"


def main() -> int:
    found = list(faults())
    print("\n".join(found) or "house rules: clean")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
