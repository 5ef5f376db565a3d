"""The recorder: what it sums, the trace that it writes, what it drops, and that it is not there when nobody asked."""

from __future__ import annotations

import json
import queue
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.models.driving import Driver
from tests.models.memory_checkpoint import random_checkpoint
from tests.models.small_specs import spec_of

from gallium.backends.cpu import backend as cpu
from gallium.engine.assembly import Assembly, assemble
from gallium.engine.tracing import Recorder, phase_of, requested
from gallium.errors import UsageError
from gallium.models.catalog import load_model
from gallium.ops.costs import Cost
from gallium.ops.handles import Step
from gallium.ops.machine import Limits
from gallium.ops.reference import ReferenceOps
from gallium.settings import EngineSettings
from gallium.types import Delta, SamplingParams

LIMITS = Limits(10e9, {"float32": 100e9, "bfloat16": 200e9})
CHUNKS = [{"a": [5, 7, 11]}, {"a": [2], "b": [3, 9]}, {"a": [4], "b": [1]}]


def recorded(recorder: Recorder, ops: Any = None, chunks: list[dict[str, list[int]]] = CHUNKS) -> Recorder:
    """Steps of a small model, prompts first, under a recorder that is not part of an engine."""
    spec = spec_of("glm-odd")
    ops = ops or ReferenceOps()
    model = load_model(random_checkpoint(spec), spec, ops)
    recorder.watch(ops, spec.attention, "float32", 4, label="small", limits=LIMITS)
    driver = Driver(model)
    for chunk in chunks:
        step = driver.describe(chunk)
        with recorder.step(step):
            driver.run(step)
        for name, tokens in chunk.items():
            driver.lengths[name] += len(tokens)
    return recorder


def written(recorder: Recorder) -> dict[str, Any]:
    recorder.write()
    assert recorder.path is not None
    return read(recorder.path)


def read(path: Path) -> dict[str, Any]:
    """A trace that keeps to the format: what chrome://tracing reads."""
    found: dict[str, Any] = json.loads(path.read_text())
    assert set(found) == {"displayTimeUnit", "otherData", "traceEvents"}
    for event in found["traceEvents"]:
        assert event["ph"] in ("M", "X")
        assert {"name", "pid", "tid", "args"} <= event.keys()
        if event["ph"] == "X":
            assert event["ts"] >= 0 and event["dur"] >= 0 and event["cat"] in ("step", "op", "sampling", "host")
    return found


def spans(trace: dict[str, Any], category: str | None = None) -> list[dict[str, Any]]:
    return [e for e in trace["traceEvents"] if e["ph"] == "X" and category in (None, e["cat"])]


# -- phases ------------------------------------------------------------------------------------


def a_step(sequences: list[tuple[int, int, int]]) -> Step:
    """Of each sequence: new tokens, length after them, and how many of its last tokens have logits."""
    starts = np.cumsum([0, *(new for new, _, _ in sequences)], dtype=np.int32)
    rows = [end - k for end, (_, _, wanted) in zip(starts[1:], sequences, strict=True) for k in range(wanted, 0, -1)]
    none = np.zeros(int(starts[-1]), np.int32)
    lengths = np.array([length for _, length, _ in sequences], np.int32)
    return Step(none, none, starts, lengths, np.zeros((len(lengths), 1), np.int32), np.array(rows, np.int32))


@pytest.mark.parametrize(
    ("sequences", "phase"),
    [
        ([(5, 5, 1)], "prefill"),
        ([(5, 5, 0), (5, 30, 1)], "prefill"),  # chunks of prompts, one of them the last
        ([(1, 1, 1)], "prefill"),  # a prompt of one token
        ([(1, 9, 1), (1, 30, 1)], "decode"),
        ([(4, 9, 4)], "decode"),  # drafted tokens, all verified
        ([(1, 9, 1), (5, 30, 1)], "mixed"),
        ([], "decode"),
    ],
)
def test_phases(sequences: list[tuple[int, int, int]], phase: str) -> None:
    assert phase_of(a_step(sequences)) == phase


# -- steps -------------------------------------------------------------------------------------


def test_every_step_with_its_ops() -> None:
    recorder = recorded(Recorder())
    # the driver wants logits of every token, so that a sequence which has begun is decoded
    assert [(step.phase, step.tokens) for step in recorder.steps] == [("prefill", 3), ("mixed", 3), ("decode", 2)]
    spec, step = spec_of("glm-odd"), recorder.steps[0]
    layers, heads = spec.num_layers, spec.attention.num_heads
    costs: dict[str, list[Cost]] = {}
    for op in step.ops:
        assert op.cost is not None
        costs.setdefault(op.op, []).append(op.cost)
    assert costs["plan"] == [Cost()]
    assert len(costs["linear"]) == 4 * layers + 1
    assert [cost.num_operations for cost in costs["attend"]] == layers * [2 * 6 * heads * 2 * spec.attention.head_dim]
    assert costs["embed"][0].activations == 3 * spec.hidden * 4
    assert all(cost is costs["attend"][0] for cost in costs["attend"])  # kept once
    assert 0 < sum(op.seconds for op in step.ops) <= step.seconds - step.own_seconds < step.seconds


def test_without_a_path_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recorded(Recorder()).write()
    assert not list(tmp_path.iterdir())


def test_a_step_that_fails_is_recorded_and_the_next_is_its_own(tmp_path: Path) -> None:
    recorder, ops, spec = Recorder(tmp_path / "trace.json"), ReferenceOps(), spec_of("glm-odd")
    recorder.watch(ops, spec.attention, "float32", 4, label="small", limits=LIMITS)
    step, x = a_step([(1, 9, 1)]), np.zeros((2, 3), np.float32)
    with pytest.raises(AttributeError, match="memoryview"), recorder.step(step):
        ops.linear("no tensor", x)  # the op's own error, and not one of counting what it cost
    with recorder.step(step):
        ops.add(x, x)
    assert [[(op.op, op.cost is None) for op in each.ops] for each in recorder.steps] == [
        [("linear", True)], [("add", False)],
    ]  # fmt: skip
    written(recorder)


# -- the trace -----------------------------------------------------------------------------------


def test_a_trace_has_one_track_of_steps_with_ops_inside(tmp_path: Path) -> None:
    trace = written(recorded(Recorder(tmp_path / "trace.json")))
    names = {e["name"]: e["args"]["name"] for e in trace["traceEvents"] if e["ph"] == "M"}
    assert names == {"process_name": "gallium: small", "thread_name": "engine steps"}
    assert len({(e["pid"], e["tid"]) for e in trace["traceEvents"]}) == 1
    steps = spans(trace, "step")
    assert [(s["name"], s["args"]) for s in steps] == [
        ("prefill", {"tokens": 3, "sequences": 1, "context": 3}),
        ("mixed", {"tokens": 3, "sequences": 2, "context": 6}),
        ("decode", {"tokens": 2, "sequences": 2, "context": 8}),
    ]
    for op in spans(trace, "op"):
        around = [s for s in steps if s["ts"] <= op["ts"] and op["ts"] + op["dur"] <= s["ts"] + s["dur"] + 0.002]
        assert len(around) == 1
    assert trace["otherData"]["steps"] == 3 and trace["otherData"]["dropped_steps"] == 0
    assert trace["otherData"]["operations_per_second"] == {"float32": 100e9, "bfloat16": 200e9}


def test_an_op_shows_what_it_moved_beside_the_limit(tmp_path: Path) -> None:
    trace = written(recorded(Recorder(tmp_path / "trace.json")))
    op = next(e for e in spans(trace, "op") if e["name"] == "linear")
    args, seconds = op["args"], op["dur"] / 1e6
    moved = args["weight bytes"] + args["KV bytes"] + args["activation bytes"]
    assert args["GB/s"] == pytest.approx(moved / seconds / 1e9, rel=0.05, abs=0.001)
    least = max(moved / 10e9, args["operations"]["float32"] / 100e9)
    assert args["percent of limit"] == pytest.approx(100 * least / seconds, rel=0.05, abs=0.1)
    assert args["limit"] == "memory"


def test_parts_of_a_fused_block_lie_within_it(tmp_path: Path) -> None:
    ops = cpu.open(spec_of("glm-odd").facts, "float32", 1)
    trace = written(recorded(Recorder(tmp_path / "trace.json"), ops))
    blocks = [e for e in spans(trace, "op") if e["name"] == "gqa"]
    inner = [e for e in spans(trace, "op") if e["name"] == "linear" and not e["args"]]
    assert len(blocks) == len(inner) == 3 * 3  # the output projection
    for block, part in zip(blocks, inner, strict=True):
        assert block["ts"] <= part["ts"] and part["ts"] + part["dur"] <= block["ts"] + block["dur"] + 0.002


def test_emulated_hardware_has_no_rates(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "trace.json")
    recorder.emulated = True
    ops = ReferenceOps()
    spec = spec_of("glm-odd")
    model = load_model(random_checkpoint(spec), spec, ops)
    recorder.watch(ops, spec.attention, "float32", 4, label="small", limits=None, emulated=True)
    driver = Driver(model)
    step = driver.describe(CHUNKS[0])
    with recorder.step(step):
        driver.run(step)
    trace = written(recorder)
    assert "EMULATED" in trace["traceEvents"][0]["args"]["name"] and trace["otherData"]["emulated"]
    args = next(e["args"] for e in spans(trace, "op") if e["name"] == "linear")
    assert args.keys() == {"weight bytes", "KV bytes", "activation bytes", "operations"}


def test_the_oldest_steps_are_dropped_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    chunks: list[dict[str, list[int]]] = [{"a": [n]} for n in range(9)]
    whole = recorded(Recorder(tmp_path / "whole.json"), chunks=chunks)
    each = len(whole.steps[0].ops) + 1
    few = recorded(Recorder(tmp_path / "few.json", most_events=4 * each + 1), chunks=chunks)
    trace = written(few)
    assert [s["args"]["context"] for s in spans(trace, "step")] == [6, 7, 8, 9]
    assert (trace["otherData"]["dropped_steps"], trace["otherData"]["dropped_events"]) == (5, 5 * each)
    assert "the trace has the last 4 steps; 5 before them were dropped" in caplog.text


def test_a_step_that_is_longer_than_the_limit_is_kept_whole(tmp_path: Path) -> None:
    recorder = recorded(Recorder(tmp_path / "trace.json", most_events=3))
    assert len(recorder.steps) == 1 and len(recorder.steps[0].ops) > 3


def test_a_trace_that_cannot_be_written_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    recorder = recorded(Recorder(folder / "trace.json"))
    folder.rmdir()
    recorder.write()
    assert "the trace was not written to" in caplog.text


@pytest.mark.parametrize("name", ["", "missing/trace.json"])
def test_a_path_that_cannot_be_written_is_refused_at_once(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="no trace can be written"):
        Recorder(tmp_path / name)


# -- in an engine ----------------------------------------------------------------------------------


@pytest.fixture
def load(tmp_path: Path) -> Iterator[Callable[..., Assembly]]:
    made: list[Assembly] = []

    def assembled(**settings: Any) -> Assembly:
        wanted = EngineSettings(**{"backend": "cpu", "kv_memory": 16 << 20, "threads": 1, **settings})
        made.append(assemble(None, wanted, need_tokenizer=False))
        return made[-1]

    yield assembled
    for assembly in made:
        assembly.close()


def generate(assembly: Assembly, prompt: list[int], count: int) -> None:
    done: queue.SimpleQueue[Any] = queue.SimpleQueue()
    assembly.engine.submit(prompt, SamplingParams(temperature=0, max_tokens=count, ignore_eos=True), done.put)
    while True:
        delta = done.get()
        assert isinstance(delta, Delta)
        if delta.finish_reason is not None:
            return


def test_the_environment_asks_for_a_trace(
    load: Callable[..., Assembly], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "trace.json"
    monkeypatch.setenv("GALLIUM_TRACE", str(path))
    assembly = load()
    generate(assembly, [1, 2, 3], 3)
    assert not path.exists()
    assembly.close()
    trace = read(path)
    assert [(s["name"], s["args"]["context"]) for s in spans(trace, "step")] == [
        ("prefill", 3), ("decode", 4), ("decode", 5),
    ]  # fmt: skip
    assert len(spans(trace, "sampling")) == 3
    assert trace["otherData"]["model"].endswith(", int4, on cpu")
    assert trace["otherData"]["read_bytes_per_second"] > 0
    assert [path.name for path in tmp_path.iterdir()] == ["trace.json"]


def test_nothing_is_replaced_when_nobody_asked(load: Callable[..., Assembly]) -> None:
    assembly = load()
    generate(assembly, [1, 2, 3], 2)
    ops = assembly.ops
    assert ops is not None
    watched = {"gqa", "linear", "sample", "plan", "compile_step"}
    assert not watched & vars(ops).keys()
    assert type(assembly.engine._loop._runner).__name__ == "ModelRunner"


def test_ranks_in_processes_of_their_own_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GALLIUM_TRACE", str(tmp_path / "trace.json"))
    with pytest.raises(UsageError, match="GALLIUM_TRACE traces a model in one process: leave out --tp"):
        requested(EngineSettings(tp=2))
