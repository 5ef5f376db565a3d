"""`gallium bench --profile`: the time of each op beside what it must move and compute, and beside the limits."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from gallium.cli.terminal import ProgressBar, table

if TYPE_CHECKING:
    from gallium.cli.bench import Subject
    from gallium.engine.tracing import OpEvent, Recorder, StepEvent
    from gallium.ops.costs import Cost
    from gallium.ops.machine import Limits

HIDDEN = 0.001  # of a step: what takes less and moves nothing is no line of the table
COLUMNS = ("", "calls", "ms", "share", "weights", "KV", "activ.", "GB/s", "MOP", "GOP/s", "of limit")


def take_profile(
    subject: Subject, recorder: Recorder, limits: Limits | None, batches: tuple[int, ...], plan: dict[str, int]
) -> list[dict[str, Any]]:
    """Prefill and each batch's decode once more, watched.

    A section shows the median of the prompts, or of the decode steps with all sequences: one that has happened, so that
    its ops add up.
    """
    from gallium.cli.measuring import Stopwatch

    assert subject.ops is not None  # bench refuses --profile for ranks in processes of their own
    spec = subject.spec
    if not recorder.watching:
        recorder.watch(
            subject.ops, spec.attention, subject.precision, subject.block_size, label=subject.label, limits=limits
        )
    watch = Stopwatch(subject.engine, spec.vocab_size)
    prompts = []
    with ProgressBar("profiling") as bar:
        for _ in range(plan["rounds"]):
            begin = time.perf_counter()
            watch.prefill(plan["prompt_tokens"])
            prompts.append(_since(recorder, begin))
        sections = [_section(f"prefill of {plan['prompt_tokens']}", "prompts", prompts, limits)]
        for number, size in enumerate(batches):
            bar(1 + number, 1 + len(batches))
            begin = time.perf_counter()
            watch.decode(size, plan["context"], plan["new_tokens"])
            steps = [[step] for step in _since(recorder, begin) if (step.phase, step.sequences) == ("decode", size)]
            sections.append(_section(f"decode, batch {size}", "steps", steps, limits))
    return sections


def _since(recorder: Recorder, begin: float) -> list[StepEvent]:
    return [step for step in recorder.steps if step.start >= begin]


def _section(name: str, unit: str, found: list[list[StepEvent]], limits: Limits | None) -> dict[str, Any]:
    """Each of `found` is the steps of one thing of the kind `unit`."""
    from gallium.ops.costs import Cost, total

    def took(steps: list[StepEvent]) -> float:
        return sum(step.seconds - step.own_seconds for step in steps)

    median = sorted(found, key=took)[(len(found) - 1) // 2]
    whole = took(median)
    calls: dict[str, list[OpEvent]] = {}
    for op in (op for step in median for op in step.ops if op.cost is not None):
        calls.setdefault(op.op, []).append(op)
    rows = [
        _row(
            op, len(each), sum(one.seconds for one in each), total(one.cost for one in each if one.cost), whole, limits
        )
        for op, each in calls.items()
    ]
    rows.sort(key=lambda row: -row["seconds"])
    everything = total(op.cost for each in calls.values() for op in each if op.cost)
    between = whole - sum(row["seconds"] for row in rows)
    return {
        "what": name,
        "median_of": len(found),
        "unit": unit,
        "steps": len(median),
        "tokens": sum(step.tokens for step in median),
        "ops": rows,
        "between_ops": _row("between ops", None, between, Cost(), whole, limits),
        "whole": _row("all", None, whole, everything, whole, limits),
    }


def _row(
    name: str, calls: int | None, seconds: float, cost: Cost, whole: float, limits: Limits | None
) -> dict[str, Any]:
    """One op's figures. A rate, or a share of the limit, is None where nothing is known to be moved."""
    from gallium.ops.costs import roof

    idle = not cost.num_bytes or not seconds
    least = None if idle or limits is None else roof(cost, limits)
    return {
        "op": name,
        "calls": calls,
        "seconds": seconds,
        "share": seconds / whole,
        "weight_bytes": cost.weights,
        "kv_bytes": cost.kv,
        "activation_bytes": cost.activations,
        "operations": dict(cost.operations),
        "bytes_per_second": None if idle else cost.num_bytes / seconds,
        "operations_per_second": None if idle else cost.num_operations / seconds,
        "share_of_limit": None if least is None else least.seconds / seconds,
        "limit": None if least is None else least.limit,
    }


def profile_tables(sections: list[dict[str, Any]]) -> str:
    """The sections for people."""
    parts = []
    for section in sections:
        shown = [row for row in section["ops"] if row["bytes_per_second"] is not None or row["share"] >= HIDDEN]
        rows = [_cells(row) for row in (*shown, section["between_ops"], section["whole"])]
        steps = "1 step" if section["steps"] == 1 else f"{section['steps']} steps"
        parts.append(
            f"\n{section['what']} (median of {section['median_of']} {section['unit']}, {steps}), sizes in MB\n\n"
            + table(COLUMNS, rows, right=range(1, 10))
        )
    return "\n".join(parts)


def _cells(row: dict[str, Any]) -> list[str]:
    operations, share = sum(row["operations"].values()), row["share_of_limit"]
    moved = [row[kind] for kind in ("weight_bytes", "kv_bytes", "activation_bytes")]
    return [
        row["op"],
        "" if row["calls"] is None else str(row["calls"]),
        f"{row['seconds'] * 1e3:.3f}",
        f"{row['share']:.1%}",
        *("" if not size else f"{size / 1e6:.3f}" for size in moved),
        "" if row["bytes_per_second"] is None else f"{row['bytes_per_second'] / 1e9:.2f}",
        "" if not operations else f"{operations / 1e6:.1f}",
        "" if not row["operations_per_second"] else f"{row['operations_per_second'] / 1e9:.1f}",
        "" if share is None else f"{share:.0%} {row['limit']}",
    ]
