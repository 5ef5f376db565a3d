"""The trace as a file: JSON in the Trace Event Format, which chrome://tracing and ui.perfetto.dev open."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gallium import __version__
from gallium.ops.costs import Cost, roof
from gallium.ops.machine import Limits

if TYPE_CHECKING:
    from gallium.engine.tracing import OpEvent, Recorder, StepEvent

PROCESS, TRACK = 1, 1
CATEGORIES = {"sample": "sampling", "plan": "host"}


def write_trace(path: Path, recorder: Recorder) -> None:
    """Write all steps that were kept, event by event; the file appears when it is complete. Raises OSError."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with partial.open("w", encoding="utf-8") as out:
            out.write('{"displayTimeUnit": "ms",\n"otherData": ')
            out.write(json.dumps(_about(recorder)))
            out.write(',\n"traceEvents": [\n')
            out.write(",\n".join(map(json.dumps, _names(recorder))))
            for event in _events(recorder):
                out.write(",\n" + json.dumps(event))  # `json.dump` takes five times as long
            out.write("\n]}\n")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _about(recorder: Recorder) -> dict[str, Any]:
    limits = recorder.limits
    return {
        "gallium": __version__,
        "model": recorder.label,
        "emulated": recorder.emulated,
        "steps": len(recorder.steps),
        "dropped_steps": recorder.dropped_steps,
        "dropped_events": recorder.dropped_events,
        "read_bytes_per_second": None if limits is None else limits.read_bytes_per_s,
        "operations_per_second": None if limits is None else dict(limits.operations_per_s),
    }


def _names(recorder: Recorder) -> Iterator[dict[str, Any]]:
    name = f"gallium: {recorder.label}" + (", EMULATED: times say nothing of hardware" if recorder.emulated else "")
    yield {"ph": "M", "name": "process_name", "pid": PROCESS, "tid": TRACK, "args": {"name": name}}
    yield {"ph": "M", "name": "thread_name", "pid": PROCESS, "tid": TRACK, "args": {"name": "engine steps"}}


def _events(recorder: Recorder) -> Iterator[dict[str, Any]]:
    if not recorder.steps:
        return
    origin = recorder.steps[0].start
    for step in recorder.steps:
        yield _step(step, origin)
        for op in step.ops:
            yield _op(op, origin, recorder)


def _step(step: StepEvent, origin: float) -> dict[str, Any]:
    args = {"tokens": step.tokens, "sequences": step.sequences, "context": step.context}
    return _span(step.phase, "step", step.start - origin, step.seconds, args)


def _op(op: OpEvent, origin: float, recorder: Recorder) -> dict[str, Any]:
    args: dict[str, Any] = {}
    if op.cost is not None and (op.cost.num_bytes or op.cost.num_operations):
        args = _figures(op.cost, op.seconds, recorder.limits, rates=not recorder.emulated)
    return _span(op.op, CATEGORIES.get(op.op, "op"), op.start - origin, op.seconds, args)


def _figures(cost: Cost, seconds: float, limits: Limits | None, *, rates: bool) -> dict[str, Any]:
    args: dict[str, Any] = {
        "weight bytes": cost.weights,
        "KV bytes": cost.kv,
        "activation bytes": cost.activations,
        "operations": dict(cost.operations),
    }
    if rates and seconds > 0:
        args["GB/s"] = round(cost.num_bytes / seconds / 1e9, 3)
        args["GOP/s"] = round(cost.num_operations / seconds / 1e9, 3)
        least = None if limits is None else roof(cost, limits)
        if least is not None:
            args["percent of limit"] = round(100 * least.seconds / seconds, 1)
            args["limit"] = least.limit
    return args


def _span(name: str, category: str, start: float, seconds: float, args: dict[str, Any]) -> dict[str, Any]:
    """A complete event; times in microseconds, to the nanosecond so that parts stay within their wholes."""
    return {
        "name": name, "cat": category, "ph": "X", "pid": PROCESS, "tid": TRACK,
        "ts": round(start * 1e6, 3), "dur": round(seconds * 1e6, 3), "args": args,
    }  # fmt: skip
