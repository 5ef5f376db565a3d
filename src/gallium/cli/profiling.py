"""`gallium bench --profile`: the time of each op beside what it must move and compute, and beside the limits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gallium.cli.terminal import ProgressBar, table

if TYPE_CHECKING:
    from gallium.cli.bench import Subject
    from gallium.engine.tracing import PhaseTotal, Recorder
    from gallium.ops.costs import Cost
    from gallium.ops.machine import Limits

HIDDEN = 0.001  # of a step: what takes less and moves nothing is no line of the table
COLUMNS = ("", "calls", "ms", "share", "weights", "KV", "activ.", "GB/s", "MOP", "GOP/s", "of limit")


def take_profile(
    subject: Subject, recorder: Recorder, limits: Limits | None, batches: tuple[int, ...], plan: dict[str, int]
) -> list[dict[str, Any]]:
    """Prefill and each batch's decode once more, watched: a section for each, all figures per step."""
    from gallium.cli.measuring import Stopwatch

    assert subject.ops is not None  # bench refuses --profile for ranks in processes of their own
    spec = subject.spec
    if not recorder.watching:
        recorder.watch(
            subject.ops, spec.attention, subject.precision, subject.block_size, label=subject.label, limits=limits
        )
    watch = Stopwatch(subject.engine, spec.vocab_size)
    sections = []
    with ProgressBar("profiling") as bar:
        recorder.reset()
        for _ in range(plan["rounds"]):
            watch.prefill(plan["prompt_tokens"])
        sections.append(_section(f"prefill of {plan['prompt_tokens']}", recorder.totals["prefill"], limits))
        bar(1, 1 + len(batches))
        for number, size in enumerate(batches):
            recorder.reset()
            watch.decode(size, plan["context"], plan["new_tokens"])
            sections.append(_section(f"decode, batch {size}", recorder.totals["decode"], limits))
            bar(number + 2, 1 + len(batches))
    return sections


def _section(name: str, total: PhaseTotal, limits: Limits | None) -> dict[str, Any]:
    from gallium.ops.costs import Cost

    busy = sum(op.seconds for op in total.ops.values())
    longest = sorted(total.ops.items(), key=lambda item: -item[1].seconds)
    rows = [_row(op, one.calls, one.seconds, one.cost, total, limits) for op, one in longest]
    whole = sum((one.cost for one in total.ops.values()), Cost())
    return {
        "what": name,
        "steps": total.steps,
        "tokens_per_step": total.tokens / total.steps,
        "ops": rows,
        "between_ops": _row("between ops", None, total.seconds - busy, Cost(), total, limits),
        "step": _row("whole step", None, total.seconds, whole, total, limits),
    }


def _row(
    name: str, calls: int | None, seconds: float, cost: Cost, total: PhaseTotal, limits: Limits | None
) -> dict[str, Any]:
    """One op's figures per step. A rate, or a share of the limit, is None where nothing is known to be moved."""
    from gallium.ops.costs import roof

    steps, idle = total.steps, not cost.num_bytes or not seconds
    least = None if idle or limits is None else roof(cost, limits)
    return {
        "op": name,
        "calls": None if calls is None else calls / steps,
        "seconds": seconds / steps,
        "share": seconds / total.seconds,
        "weight_bytes": cost.weights / steps,
        "kv_bytes": cost.kv / steps,
        "activation_bytes": cost.activations / steps,
        "operations": {precision: count / steps for precision, count in cost.operations.items()},
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
        rows = [_cells(row) for row in (*shown, section["between_ops"], section["step"])]
        steps = "1 step" if section["steps"] == 1 else f"mean of {section['steps']} steps"
        parts.append(
            f"\n{section['what']}: per step ({steps}, {section['tokens_per_step']:g} tokens each), sizes in MB\n\n"
            + table(COLUMNS, rows, right=range(1, 10))
        )
    return "\n".join(parts)


def _cells(row: dict[str, Any]) -> list[str]:
    operations, share = sum(row["operations"].values()), row["share_of_limit"]
    moved = [row[kind] for kind in ("weight_bytes", "kv_bytes", "activation_bytes")]
    return [
        row["op"],
        "" if row["calls"] is None else f"{row['calls']:g}",
        f"{row['seconds'] * 1e3:.3f}",
        f"{row['share']:.1%}",
        *("" if not size else f"{size / 1e6:.3f}" for size in moved),
        "" if row["bytes_per_second"] is None else f"{row['bytes_per_second'] / 1e9:.2f}",
        "" if not operations else f"{operations / 1e6:.1f}",
        "" if not row["operations_per_second"] else f"{row['operations_per_second'] / 1e9:.1f}",
        "" if share is None else f"{share:.0%} {row['limit']}",
    ]
