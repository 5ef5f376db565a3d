"""`gallium bench`: how fast a model runs here, beside what the machine can do at best."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import click

from gallium import __version__
from gallium.cli.loading import loaded
from gallium.cli.options import Command, engine_options, model_argument, numbers
from gallium.cli.profiling import profile_tables, take_profile
from gallium.cli.terminal import ProgressBar, table
from gallium.errors import OutOfMemory, UsageError
from gallium.settings import EngineSettings

if TYPE_CHECKING:
    from gallium.engine.assembly import Assembly
    from gallium.engine.async_engine import Engine
    from gallium.engine.tracing import Recorder
    from gallium.models.spec import ModelSpec
    from gallium.ops.handles import Precision
    from gallium.ops.interface import Ops
    from gallium.ops.machine import Limits

WARM_UP = 8  # tokens of prompt, and of answer, before anything is measured

EPILOG = """\b
Examples:
  gallium bench
  gallium bench zai-org/glm-edge-1.5b-chat --precision int4
  gallium bench --shape glm-4-9b --precision int4 --batch 1,4,16
  gallium bench --shape glm-edge-1.5b --json > result.json
"""


@dataclass
class Subject:
    """What is measured."""

    label: str
    spec: ModelSpec
    ops: Ops | None  # None: the model is in processes of its own
    engine: Engine
    precision: Precision
    backend_name: str
    kv_blocks: int
    block_size: int


@click.command(cls=Command, epilog=EPILOG)
@model_argument
@click.option("--shape", help="Instead of MODEL: random weights of this shape; `--shape list` lists them.")
@click.option("--prompt-tokens", type=click.IntRange(1), default=512, show_default=True, help="Prompt of the prefill.")
@click.option(
    "--batch", type=numbers, metavar="LIST", default="1,4,16", show_default=True, help="Sequences decoded together."
)
@click.option("--context", type=click.IntRange(1), default=64, show_default=True, help="Tokens before decoding.")
@click.option("--new-tokens", type=click.IntRange(8), default=32, show_default=True, help="Tokens decoded.")
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True, help="Rounds; medians are shown.")
@click.option("--profile", is_flag=True, help="Then run once more, and show what each op takes beside the limits.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object with every round.")
@engine_options("max_step_tokens", "block_size", without=("max_context",))
def bench(
    model: str | None,
    shape: str | None,
    batch: tuple[int, ...],
    profile: bool,
    as_json: bool,
    settings: EngineSettings,
    **plan: int,
) -> None:
    """Measure prefill and decode of MODEL (default: the embedded one), or of a shape with random weights.

    All work goes through the engine, as requests do. Every round measures everything once, so that a change of the
    machine's mood meets all figures; the machine's limits are measured before and after, and the better one counts.

    With --profile, nothing is captured as a graph, in the rounds neither.
    """
    if shape == "list":
        from gallium.cli.shapes import SHAPES

        click.echo("\n".join(SHAPES))
        return
    if shape is not None and model is not None:
        raise UsageError("give either MODEL or --shape.")
    if shape is not None and settings.draft_model is not None:
        raise UsageError("--shape has random weights, which no model drafts for: leave out --speculate MODEL.")
    if shape is not None and settings.world > 1:
        raise UsageError("--shape is measured in one process: leave out --tp, --dp and --ep, or give a MODEL.")
    if profile and settings.world > 1:
        raise UsageError("--profile looks into a model in one process: leave out --tp, --dp and --ep.")
    longest = max(plan["prompt_tokens"] + 1, plan["context"] + plan["new_tokens"], 2 * WARM_UP)
    settings = replace(settings, max_batch=max(batch), max_context=longest, prefix_cache=False)
    recorder = _recorder(settings, profile)
    with _random(shape, settings, recorder) if shape else _real(model, settings, recorder) as subject:
        _check_room(subject, batch, plan)
        result, limits = measure(subject, settings, batch, plan)
        if profile and recorder is not None:
            result["profile"] = take_profile(subject, recorder, limits, batch, plan)
    click.echo(json.dumps(result, indent=2) if as_json else report(result))


def _recorder(settings: EngineSettings, profile: bool) -> Recorder | None:
    from gallium.engine.tracing import Recorder, requested

    return requested(settings) or (Recorder() if profile else None)


@contextmanager
def _real(model: str | None, settings: EngineSettings, recorder: Recorder | None) -> Iterator[Subject]:
    with loaded(model, settings, need_tokenizer=False, recorder=recorder) as assembly:
        _refuse_emulated(assembly.emulated, assembly.backend_name)
        yield _subject(assembly)


def _subject(assembly: Assembly) -> Subject:
    return Subject(
        assembly.label, assembly.spec, assembly.ops, assembly.engine, assembly.precision, assembly.backend_name,
        assembly.kv.num_blocks * assembly.settings.groups, assembly.block_size,
    )  # fmt: skip


@contextmanager
def _random(shape: str, settings: EngineSettings, recorder: Recorder | None) -> Iterator[Subject]:
    """As assemble, with a checkpoint that is made up."""
    from gallium.cli.random_model import RandomCheckpoint
    from gallium.cli.shapes import shape_config
    from gallium.cli.work import Work
    from gallium.engine.assembly import start_engine
    from gallium.engine.loading import choose_precision
    from gallium.engine.memory import available_bytes, check_fits, device_bytes, room
    from gallium.engine.tracing import watch_loaded
    from gallium.models.catalog import load_model
    from gallium.models.config import read_spec
    from gallium.ops.backend import choose, installed, open_ops

    spec = read_spec(shape_config(shape))
    backend = choose(settings.backend, installed())
    _refuse_emulated(backend.probe().emulated, backend.name)
    precision, _ = choose_precision(backend, spec.facts, settings.precision, "bfloat16")
    ops = open_ops(backend, spec.facts, precision, settings.kv_precision, settings.threads)
    check_fits(
        Work.of(spec).total, precision, settings.kv_memory, room(device_bytes(ops), available_bytes(), emulated=False)
    )
    with ProgressBar("making up weights") as bar:
        model = load_model(RandomCheckpoint(spec), spec, ops, bar)
    label = f"{shape} (random weights)"
    if recorder is not None and recorder.path is not None:
        watch_loaded(recorder, backend, model, precision, settings, label)
    running = start_engine(model, None, settings, recorder=recorder)
    try:
        yield Subject(
            label, spec, ops, running.engine, precision, backend.name, running.kv.num_blocks, running.block_size
        )
    finally:
        running.engine.shutdown()


def _refuse_emulated(emulated: bool, name: str) -> None:
    if emulated:
        raise UsageError(f"backend {name!r} is emulated: its speed would say nothing about the hardware.")


def _check_room(subject: Subject, batch: tuple[int, ...], plan: dict[str, int]) -> None:
    """Without room for all sequences at once the engine would preempt, and the figures would mean something else."""
    blocks = max(batch) * -(-(plan["context"] + plan["new_tokens"]) // subject.block_size)
    if blocks > subject.kv_blocks:
        raise OutOfMemory(
            f"a batch of {max(batch)} needs {blocks} KV blocks, but there is memory for {subject.kv_blocks}: "
            "choose smaller batches, or more with --kv-memory."
        )


def _limits(subject: Subject, settings: EngineSettings) -> Limits | None:
    from gallium.ops.backend import choose, installed
    from gallium.ops.machine import Measures

    backend = choose(subject.backend_name, installed())
    return backend.measure(settings.threads) if isinstance(backend, Measures) else None


def measure(
    subject: Subject, settings: EngineSettings, batches: tuple[int, ...], plan: dict[str, int]
) -> tuple[dict[str, Any], Limits | None]:
    """Everything that --json prints, and the machine's limits."""
    from gallium.cli.measuring import Stopwatch

    watch = Stopwatch(subject.engine, subject.spec.vocab_size)
    prefill: list[float] = []
    decode: dict[int, list[float]] = {size: [] for size in batches}
    done, total = 1, 1 + plan["rounds"] * (1 + len(batches))
    with ProgressBar("measuring") as bar:
        before = _limits(subject, settings)
        watch.decode(1, WARM_UP, WARM_UP)  # the first step touches memory for the first time
        bar(done, total)
        for _ in range(plan["rounds"]):
            prefill.append(watch.prefill(plan["prompt_tokens"]))
            bar(done := done + 1, total)
            for size in batches:
                decode[size].append(watch.decode(size, plan["context"], plan["new_tokens"]))
                bar(done := done + 1, total)
        after = _limits(subject, settings)
    limits = None if before is None or after is None else _better(before, after)
    return _result(subject, plan, prefill, decode, limits), limits


def _better(one: Limits, other: Limits) -> Limits:
    """Of each figure the better one."""
    from gallium.ops.machine import Limits

    peaks = {name: max(peak, other.operations_per_s.get(name, 0.0)) for name, peak in one.operations_per_s.items()}
    return Limits(max(one.read_bytes_per_s, other.read_bytes_per_s), peaks)


def _result(
    subject: Subject,
    plan: dict[str, int],
    prefill: list[float],
    decode: dict[int, list[float]],
    limits: Limits | None,
) -> dict[str, Any]:
    from gallium.cli.work import Work
    from gallium.ops.machine import KnowsWeightBytes

    work = Work.of(subject.spec)
    read = None if limits is None else limits.read_bytes_per_s
    peak = None if limits is None else limits.operations_per_s.get(subject.precision)
    weights = subject.ops.weight_bytes if isinstance(subject.ops, KnowsWeightBytes) else None
    spent, tokens = statistics.median(prefill), plan["prompt_tokens"]
    rows = []
    for size, rounds in decode.items():
        speed = statistics.median(rounds)
        used = None if weights is None else speed / size * weights * work.share_read(size)
        rows.append({
            "batch": size,
            "tokens_per_second": speed,
            "tokens_per_second_each": speed / size,
            "weight_bytes_per_second": used,
            "share_of_bandwidth": None if used is None or read is None else used / read,
            "rounds": rounds,
        })  # fmt: skip
    return {
        "gallium": __version__,
        "model": subject.label,
        "arch": subject.spec.arch,
        "precision": subject.precision,
        "kv_precision": None if subject.ops is None else subject.ops.kv_precision,
        "backend": subject.backend_name,
        "weight_bytes": weights,
        "limits": {"read_bytes_per_second": read, "operations_per_second": peak},
        "plan": plan,
        "prefill": {
            "tokens": tokens,
            "seconds": spent,
            "tokens_per_second": tokens / spent,
            "share_of_peak": None if peak is None else work.prefill_operations(tokens) / spent / peak,
            "rounds": prefill,
        },
        "decode": rows,
    }


def report(result: dict[str, Any]) -> str:
    """The result for people."""
    limits, prefill = result["limits"], result["prefill"]
    weights = result["weight_bytes"]
    lines = [
        f"{result['model']}: {result['arch']}, {result['precision']}, on {result['backend']}"
        + ("" if weights is None else f"; weights {weights / 1e9:.2f} GB"),
        "machine: "
        + ", ".join(
            f"{limits[key] / 1e9:,.1f} {unit}" if limits[key] else f"no {what} measured by this backend"
            for key, unit, what in (
                ("read_bytes_per_second", "GB/s read", "bandwidth"),
                ("operations_per_second", f"GOP/s in {result['precision']}", "peak"),
            )
        ),
        "",
    ]
    rows = [[
        f"prefill of {prefill['tokens']}", f"{prefill['tokens_per_second']:.1f}", "",
        _percent(prefill["share_of_peak"], "of peak"),
    ]]  # fmt: skip
    for row in result["decode"]:
        rows.append([
            f"decode, batch {row['batch']}", f"{row['tokens_per_second']:.1f}",
            f"{row['tokens_per_second_each']:.1f}", _percent(row["share_of_bandwidth"], "of bandwidth"),
        ])  # fmt: skip
    lines.append(table(("", "tokens/s", "each", "of the machine"), rows, right=(1, 2)))
    if "profile" in result:
        lines.append(profile_tables(result["profile"]))
    return "\n".join(lines)


def _percent(share: float | None, what: str) -> str:
    return "" if share is None else f"{share:.0%} {what}"
