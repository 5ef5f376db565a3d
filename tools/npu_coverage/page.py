"""The page docs/npu-coverage.md: figures first, then every entry that does not match, with its reason."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "npu-coverage.md"
HEAD = """\
# What of PyTorch's operator database runs on the virtual NPU

Written by `make npu-coverage`: every entry of `torch.testing._internal.common_methods_invocations.op_db` on the device
`npu` beside the CPU, with torch 2.13.0 and torch_npu 2.13.0. An entry counts as a match only if the results of all its
samples agree with the CPU's within PyTorch's own tolerances *and* at least one emulated compute operator ran;
torch_npu's own moves to the CPU are switched off and counted apart, and samples that torch_npu itself refuses (a memory
format, a sparse layout) are left out, as a real chip would never see them. Both sides end in the same CPU kernels, so
this tests the emulation (arguments, shapes, types, strides), and says nothing about the arithmetic of a real chip.

"""


def page(results: dict[str, list[dict[str, Any]]]) -> str:
    """The whole page."""
    from tools.npu_coverage.outcomes import OUTCOMES

    parts = [HEAD, "| pass | " + " | ".join(OUTCOMES) + " |\n", "|---|" + "---|" * len(OUTCOMES) + "\n"]
    for name, verdicts in results.items():
        counts = Counter(verdict["outcome"] for verdict in verdicts)
        parts.append(f"| {name} | " + " | ".join(str(counts[outcome]) for outcome in OUTCOMES) + " |\n")
    parts.append("\n" + "".join(f"* **{name}**: {meaning}\n" for name, meaning in OUTCOMES.items()))
    for name, verdicts in results.items():
        parts += _section(name, verdicts)
    return "".join(parts)


def _section(name: str, verdicts: list[dict[str, Any]]) -> list[str]:
    by_outcome = defaultdict(list)
    for verdict in verdicts:
        by_outcome[verdict["outcome"]].append(verdict)
    parts = [f"\n## {name}\n"]
    for outcome in ("mismatch", "crash", "documented", "missing", "refused", "declined"):
        if by_outcome[outcome]:
            parts.append(f"\n{outcome}:\n\n")
            parts += [f"* `{v['entry']}`: {v['detail'] or '-'}\n" for v in by_outcome[outcome]]
    for outcome in ("match", "fallback", "moves", "random", "unsupported"):
        if by_outcome[outcome]:
            names = ", ".join(f"`{v['entry']}`" for v in by_outcome[outcome])
            parts.append(f"\n{outcome} ({len(by_outcome[outcome])}): {names}\n")
    return parts


def known_figures() -> dict[str, int]:
    """How many entries match by the page, per pass."""
    rows = re.findall(r"^\| (\w+ (?:forward|gradient)) \| (\d+) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    return {name: int(matches) for name, matches in rows}
