"""`gallium doctor`: what this machine has, what it can do at best, and which code runs for each op."""

from __future__ import annotations

import json
import platform
import sys
from typing import TYPE_CHECKING, Any, get_args

import click

from gallium import __version__
from gallium.cli.options import Command
from gallium.cli.terminal import note, table
from gallium.cli.virtual import virtual_options
from gallium.errors import BackendError, GalliumError
from gallium.settings import PrecisionChoice

if TYPE_CHECKING:
    from gallium.models.spec import ModelSpec
    from gallium.ops.backend import Backend
    from gallium.ops.handles import Precision

PRECISIONS = tuple(name for name in get_args(PrecisionChoice) if name != "auto")

EPILOG = """\b
Examples:
  gallium doctor
  gallium doctor --shape glm-4.5-air --precision int4
  GALLIUM_CPU_LEVEL=generic gallium doctor --backend cpu
  gallium doctor --backend ascend --virtual --soc Ascend910_9391
  gallium doctor --json
"""


@click.command(cls=Command, epilog=EPILOG)
@click.option("--backend", help="Report on this backend only.")
@click.option("--shape", default="glm-edge-1.5b", show_default=True, help="The model whose ops are listed.")
@click.option("--precision", type=click.Choice(PRECISIONS),
              help="The precision whose ops are listed.  [default: bfloat16, or the next that there is]")  # fmt: skip
@click.option("--threads", type=click.IntRange(1), help="Threads to measure with.")
@click.option("--measure/--no-measure", default=True, show_default=True, help="Measure bandwidth and peak (seconds).")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@virtual_options
def doctor(
    backend: str | None, shape: str, precision: Precision | None, threads: int | None, measure: bool, as_json: bool
) -> None:
    """Report on this machine and on every backend found.

    Ends with exit code 1 if no real backend is usable; an emulated one counts when it is named.
    """
    from gallium.cli.shapes import shape_config
    from gallium.models.config import read_spec

    spec = read_spec(shape_config(shape))
    found: dict[str, Any] = {
        "gallium": _program_facts(),
        "shape": shape,
        "backends": [_backend_facts(one, spec, precision, threads, measure) for one in _chosen(backend)],
    }
    click.echo(json.dumps(found, indent=2, ensure_ascii=False) if as_json else report(found))
    if not any(entry["available"] and (backend or not entry["emulated"]) for entry in found["backends"]):
        raise BackendError("no usable backend: see the reasons above.")


def _chosen(name: str | None) -> list[Backend]:
    from gallium.ops.backend import installed, named

    return installed() if name is None else [named(name, installed())]


def _program_facts() -> dict[str, str]:
    from gallium.checkpoints import resolve_model
    from gallium.engine.memory import available_bytes, show_bytes

    try:
        model = str(resolve_model(None).path)
    except GalliumError as error:
        model = f"not found: {error.message}"
    return {
        "version": __version__,
        "python": f"{platform.python_version()} ({sys.executable})",
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}",
        "free memory": show_bytes(available_bytes()),
        "default model": model,
    }


def _backend_facts(
    backend: Backend, spec: ModelSpec, asked: Precision | None, threads: int | None, measure: bool
) -> dict[str, Any]:
    from gallium.ops.backend import TellsKv
    from gallium.ops.machine import Describes, Measures

    probe = backend.probe()
    facts: dict[str, Any] = {
        "name": backend.name,
        "available": probe.available,
        "emulated": probe.emulated,
        "devices": probe.devices,
        "reason": probe.reason,
        "automatic": backend.priority >= 0 and not probe.emulated,
        "machine": {},
        "limits": None,
        "precision": None,
        "ops": [],
        "kv_cache": [],
    }
    if not probe.available:
        return facts
    if isinstance(backend, Describes):
        facts["machine"] = {fact.name: fact.value for fact in backend.describe()}
    if measure and not probe.emulated and isinstance(backend, Measures):
        note(f"measuring {backend.name} ...")
        limits = backend.measure(threads)
        facts["limits"] = {
            "read_bytes_per_second": limits.read_bytes_per_s,
            "operations_per_second": dict(limits.operations_per_s),
        }
    facts["precision"] = precision = asked or _usual_precision(backend, spec)
    facts["ops"] = _op_facts(backend, spec, precision)
    if isinstance(backend, TellsKv):
        facts["kv_cache"] = [row._asdict() for row in backend.kv_support(spec.facts, precision)]
    return facts


def _usual_precision(backend: Backend, spec: ModelSpec) -> Precision:
    """What `--precision auto` makes of a checkpoint in bfloat16."""
    from gallium.engine.loading import choose_precision

    try:
        return choose_precision(backend, spec.facts, "auto", "bfloat16")[0]
    except BackendError:
        return "bfloat16"


def _op_facts(backend: Backend, spec: ModelSpec, precision: Precision) -> list[dict[str, str]]:
    """Per op: what the backend promises, and the code that would run."""
    promised = backend.support(spec.facts, precision)
    code: dict[str, tuple[str, str]] = {}
    if all(entry.status != "unsupported" for entry in promised):
        ops = backend.open(spec.facts, precision)
        code = {row.op: (row.how, row.where) for row in ops.explain()}
    return [
        {
            "op": entry.op,
            "status": entry.status,
            "how": code.get(entry.op, ("", ""))[0],
            "where": code.get(entry.op, ("", ""))[1],
            "reason": entry.reason,
        }
        for entry in promised
    ]


def report(found: dict[str, Any]) -> str:
    """The facts for people."""
    lines = ["Gallium", *_pairs(found["gallium"])]
    for entry in found["backends"]:
        lines += ["", f"Backend {entry['name']}: {_state(entry)}"]
        lines += _pairs(entry["machine"] | _shown_limits(entry["limits"]))
        if entry["kv_cache"]:
            lines += ["", *_shown_kv(entry["kv_cache"])]
        if entry["ops"]:
            lines += ["", *_shown_ops(entry["ops"], f"{found['shape']} in {entry['precision']}")]
    return "\n".join(lines)


def _shown_ops(ops: list[dict[str, str]], model: str) -> list[str]:
    """A table; if no op can run, only why."""
    if all(row["status"] == "unsupported" for row in ops):
        return [f"  Cannot run {model}: {reason}" for reason in dict.fromkeys(row["reason"] for row in ops)]
    columns = ("op", "status", "how", "where", "reason")
    rows = [[row[column] for column in columns] for row in ops]
    return [f"  Ops for {model}:", "", *("  " + line for line in table(columns, rows).splitlines())]


def _shown_kv(rows: list[dict[str, str]]) -> list[str]:
    """What --kv-precision may say; "auto" takes the first."""
    usual, *others = rows
    shown = {usual["precision"]: "what auto takes"}
    shown |= {row["precision"]: f"no: {row['refusal']}" if row["refusal"] else "can be chosen" for row in others}
    return ["  KV cache (--kv-precision):", "", *_pairs(shown)]


def _state(entry: dict[str, Any]) -> str:
    if not entry["available"]:
        return f"not usable: {entry['reason']}"
    words = ["usable"]
    if entry["emulated"]:
        words.append("EMULATED")
    if not entry["automatic"]:
        words.append(f"only when asked for with --backend {entry['name']}")
    return ", ".join(words) + (f" ({entry['reason']})" if entry["reason"] else "")


def _pairs(facts: dict[str, str]) -> list[str]:
    width = max((len(name) for name in facts), default=0)
    return [f"  {name.ljust(width)}  {value}" for name, value in facts.items()]


def _shown_limits(limits: dict[str, Any] | None) -> dict[str, str]:
    if limits is None:
        return {}
    shown = {"read bandwidth": f"{limits['read_bytes_per_second'] / 1e9:.1f} GB/s (measured)"}
    for precision, peak in limits["operations_per_second"].items():
        shown[f"peak in {precision}"] = f"{peak / 1e9:,.0f} GOP/s (measured)"
    return shown
