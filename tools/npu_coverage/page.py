"""The page docs/npu-coverage.md: figures first, then every entry, those that do not match with their reason."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from tools.npu_coverage.outcomes import FAULTS, OUTCOMES

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "npu-coverage.md"
HEAD = """\
# What of PyTorch's operator database runs on the virtual NPU

Written by `make npu-coverage`: every entry of `torch.testing._internal.common_methods_invocations.op_db` on the device
`npu` beside the CPU, with torch 2.13.0 and torch_npu 2.13.0. An entry counts as a match only if the results of all its
samples agree with the CPU's within PyTorch's own tolerances *and* at least one emulated compute operator ran. Not
counted are samples that torch_npu refuses before it calls CANN (a memory format, a sparse layout), that a documented
limit of the chip refuses (a type), or that are random (dropout). torch_npu's own moves to the CPU are switched off; an
entry with such samples, or with samples that differ as torch_npu documents, is told apart as `partly` if its other
samples agree. Both sides end in the same CPU kernels, so this tests the emulation (arguments, shapes, types, strides),
and says nothing about the arithmetic of a real chip.

"""
REASONED = (*FAULTS, "documented", "missing", "refused", "illegal", "declined", "partly")
Results = dict[str, list[dict[str, Any]]]


def page(results: Results) -> str:
    """The whole page."""
    parts = [HEAD, _functions(), "| pass | " + " | ".join(OUTCOMES) + " |\n", "|---|" + "---|" * len(OUTCOMES) + "\n"]
    for name, verdicts in results.items():
        counts = Counter(verdict["outcome"] for verdict in verdicts)
        parts.append(f"| {name} | " + " | ".join(str(counts[outcome]) for outcome in OUTCOMES) + " |\n")
    parts += ["\n", *(_sum(name, verdicts) for name, verdicts in results.items())]
    parts.append("\n" + "".join(f"* **{name}**: {meaning}\n" for name, meaning in OUTCOMES.items()))
    for name, verdicts in results.items():
        parts += _section(name, verdicts)
    return "".join(parts)


def count_functions() -> tuple[int, int]:
    """How many of CANN's functions that torch_npu looks up are emulated, and how many there are."""
    from gallium.vnpu.inventory import operator_rows

    rows = operator_rows()
    return sum(row["status"] == "emulated" for row in rows), len(rows)


def _functions() -> str:
    emulated, known = count_functions()
    return (
        f"{emulated} of the {known} functions that torch_npu looks up in CANN are emulated, among them all 89 that a "
        "stock GLM calls\nand all that the fused inference operators choose among (`tests/vnpu/test_inventory.py`).\n\n"
    )


def _sum(name: str, verdicts: list[dict[str, Any]]) -> str:
    whole, part = (sum(v["outcome"] == outcome for v in verdicts) for outcome in ("match", "partly"))
    return f"* {name}: {whole} entries agree in all samples and {part} in part, {whole + part} together\n"


def _section(name: str, verdicts: list[dict[str, Any]]) -> list[str]:
    by_outcome = defaultdict(list)
    for verdict in verdicts:
        by_outcome[verdict["outcome"]].append(verdict)
    parts = [f"\n## {name}\n"]
    for outcome in REASONED:
        if by_outcome[outcome]:
            parts.append(f"\n{outcome} ({len(by_outcome[outcome])}):\n\n")
            parts += [f"* `{v['entry']}`: {_reason(v)}\n" for v in by_outcome[outcome]]
    for outcome in OUTCOMES:
        if by_outcome[outcome] and outcome not in REASONED:
            names = ", ".join(f"`{v['entry']}`" for v in by_outcome[outcome])
            parts.append(f"\n{outcome} ({len(by_outcome[outcome])}): {names}\n")
    return parts


def _reason(verdict: dict[str, Any]) -> str:
    counts = [f"{verdict['samples']} samples agree"] if verdict["outcome"] == "partly" else []
    counts += [f"{count} {kind}" for kind, count in verdict["left_out"].items()]
    said = verdict["detail"].replace("|", "\\|")
    return "; ".join(filter(None, (", ".join(counts), said))) or "-"


def known_figures() -> dict[str, tuple[int, int]]:
    """How many entries match by the page, per pass: in all samples, and in part."""
    rows = re.findall(r"^\| (\w+ (?:forward|gradient)) \| (\d+) \| (\d+) \|", PAGE.read_text(encoding="utf-8"), re.M)
    return {name: (int(matches), int(partly)) for name, matches, partly in rows}


def names_that_match() -> list[str]:
    """The entries that the page calls a match, forward in float32."""
    section = PAGE.read_text(encoding="utf-8").split("\n## float32 forward\n")[1].split("\n## ")[0]
    found = re.search(r"^match \(\d+\): (.*)$", section, re.M)
    return re.findall(r"`([^`]+)`", found.group(1)) if found else []
