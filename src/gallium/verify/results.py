"""A comparison as plain data: what `--json` prints, the page shows and a record keeps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from gallium import __version__
from gallium.ops.interface import BLOCKS
from gallium.verify.comparing import Answer, Comparison, LayerRow, LogitStats, OpRow
from gallium.verify.faults import Outcome
from gallium.verify.opening import Pair
from gallium.verify.sides import Side
from gallium.verify.verdicts import MEANING, VERDICTS, Finding, worst_of

SCHEMA = 1
EMULATED = (
    "EMULATED: {name} ran on emulated hardware. This shows that the right functions get legal arguments and that "
    "results have the right meaning. It does not verify hardware: not its numerics, its speed, or its races."
)


def result_of(pair: Pair, prompts: Sequence[Sequence[int]], found: Comparison) -> dict[str, Any]:
    """Everything that one comparison has shown. Numbers that are not finite are None."""
    return {
        **heading(pair, prompts),
        "verdict": found.verdict,
        "counts": {verdict: sum(row.finding.verdict == verdict for row in found.ops) for verdict in VERDICTS},
        "meaning": MEANING,
        "ops": summary(found.ops),
        "layers": [_layer(row) for row in found.layers],
        "logits": None if found.logits is None else _logits(found.logits),
        "greedy": [_answer(answer) for answer in found.answers],
        "places": [_place(row) for row in found.ops],
    }


def self_test_of(pair: Pair, prompts: Sequence[Sequence[int]], outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Everything that a self-test has shown."""
    return {
        **heading(pair, prompts),
        "verdict": "pass" if all(outcome.good for outcome in outcomes) else "wrong",
        "faults": [
            {
                "fault": outcome.fault.name,
                "what": outcome.fault.what,
                "layer": outcome.layer,
                "op": outcome.fault.ops[0],
                "status": outcome.status,
                "found": [{"layer": layer, "op": op} for layer, op in outcome.found],
                "reason": outcome.reason,
            }
            for outcome in outcomes
        ],
    }


def heading(pair: Pair, prompts: Sequence[Sequence[int]]) -> dict[str, Any]:
    """What was compared with what, where and when."""
    emulated = [side.backend for side in (pair.tested, pair.other) if side.emulated]
    return {
        "schema": SCHEMA,
        "gallium": __version__,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": pair.label,
        "arch": pair.spec.arch,
        "layers_in_model": pair.spec.num_layers,
        "prompt_tokens": [len(prompt) for prompt in prompts],
        "emulated": pair.tested.emulated,
        "note": EMULATED.format(name=" and ".join(emulated)) if emulated else "",
        "tested": _side(pair.tested),
        "against": _side(pair.other),
    }


def summary(rows: Sequence[OpRow]) -> list[dict[str, Any]]:
    """Per op: its worst verdict and where; in the order of the model. Blocks that were composed are as their ops."""
    by_op: dict[str, list[OpRow]] = {}
    for row in rows:
        by_op.setdefault(row.op, []).append(row)
    composed = {block for row in rows for block in row.inside} - by_op.keys()
    for block in (one for one in BLOCKS if one in composed):
        by_op[block] = [row for row in rows if block in row.inside]
    found = []
    for op, here in by_op.items():
        worst = max(here, key=lambda row: row.finding.gravity)
        calls = sum(row.calls for row in here)
        found.append({
            "op": op,
            "verdict": worst_of(row.finding.verdict for row in here),
            "calls": calls,
            "error": _number(worst.finding.error),
            "mean": _number(sum(row.finding.mean * row.calls for row in here) / calls),
            "allowed": _number(worst.finding.allowed),
            "worst_layer": worst.layer,
            "worst_site": worst.site,
            "reason": f"composed: as {worst.op}" if op in composed else worst.finding.reason,
        })  # fmt: skip
    return found


def _side(side: Side) -> dict[str, Any]:
    return {
        "backend": side.backend, "precision": side.precision, "emulated": side.emulated, "facts": side.facts,
        "integers": side.integers, "label": side.label,
    }  # fmt: skip


def _layer(row: LayerRow) -> dict[str, Any]:
    worst = None if row.worst is None else {"op": row.worst.op, "site": row.worst.site, **_finding(row.worst.finding)}
    growth = None if row.growth is None else _finding(row.growth)
    return {"layer": row.layer, "verdict": row.verdict, "worst_op": worst, "chained": growth}


def _place(row: OpRow) -> dict[str, Any]:
    return {
        "layer": row.layer, "op": row.op, "site": row.site, "inside": list(row.inside), "calls": row.calls,
        **_finding(row.finding),
    }  # fmt: skip


def _finding(finding: Finding) -> dict[str, Any]:
    return {
        "verdict": finding.verdict,
        "error": _number(finding.error),
        "mean": _number(finding.mean),
        "allowed": _number(finding.allowed),
        "where": list(finding.where),
        "got": _number(finding.got),
        "wanted": _number(finding.wanted),
        "reason": finding.reason,
    }


def _logits(stats: LogitStats) -> dict[str, Any]:
    return {
        "rows": stats.rows,
        "same_first_choice": stats.agreeing,
        "kl_mean": _number(stats.kl_mean),
        "kl_max": _number(stats.kl_max),
        "largest_error": _number(stats.largest_error),
        "widest_margin_of_another_choice": _number(stats.widest_margin),
        **_finding(stats.finding),
    }


def _answer(answer: Answer) -> dict[str, Any]:
    return {
        "tokens": answer.tokens,
        "diverges_at": answer.diverges_at,
        "token_tested": None if answer.diverges_at is None else answer.ours,
        "token_against": None if answer.diverges_at is None else answer.theirs,
        "margin": None if answer.diverges_at is None else _number(answer.margin),
        "verdict": answer.verdict,
        "reason": answer.reason,
    }


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
