"""Decode steps that run as recorded programs give the bits of eager ones, and what cannot be recorded says so."""

from __future__ import annotations

import inspect
import logging
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.models.driving import Driver
from tests.models.memory_checkpoint import random_checkpoint
from tests.models.small_specs import CONFIGS, spec_of
from tests.ops.sampling_rows import Adjust, Row, inputs

from gallium.backends.cpu import backend, kernels_attention, kernels_linear, kernels_rows, library
from gallium.backends.cpu.programs import MOST_TOKENS, PROGRAMS_KEPT, ProgrammedStep
from gallium.backends.cpu.recording import CALLS, Arena, NotRecordable
from gallium.engine.runner import LaneStep, ModelRunner
from gallium.errors import BackendError
from gallium.models.catalog import load_model
from gallium.models.decoder import Model
from gallium.ops.handles import KvGrid, Precision

SIZES = (1, 2, 4)
PRECISIONS: dict[str, Precision] = dict(zip(CONFIGS, ("float32", "int8", "bfloat16", "int4", "int4"), strict=True))


def model_of(name: str) -> Model:
    spec = spec_of(name)
    return load_model(random_checkpoint(spec), spec, backend.open(spec.facts, PRECISIONS[name]))


def drivers(model: Model, block_size: int = 4) -> tuple[Driver, Driver, ProgrammedStep]:
    """An eager one, one whose decode steps are programs, and those."""
    eager, recorded = (Driver(model, 256, block_size) for _ in range(2))
    run = model.ops.compile_step(lambda plan: model.forward(plan, recorded.caches), SIZES)
    assert isinstance(run, ProgrammedStep)
    recorded.run = run
    return eager, recorded, run


def feed(eager: Driver, recorded: Driver, chunks: dict[str, list[int]]) -> None:
    """The same step on both sides."""
    expected = eager.step(chunks)
    for name, logits in recorded.step(chunks).items():
        assert np.array_equal(logits, expected[name]), f"{name} of {chunks}"


def tokens(seed: int, count: int) -> list[int]:
    return [int(t) for t in np.random.default_rng(seed).integers(0, 200, count)]


@pytest.mark.parametrize("name", CONFIGS)
def test_programs_give_the_bits_of_eager_steps(name: str) -> None:
    """Batches of one to four that come and go, tables that outgrow their programs, drafts, chunks in between."""
    eager, recorded, run = drivers(model_of(name))
    feed(eager, recorded, {n: tokens(i, 70 + i) for i, n in enumerate("abcd")})  # too many: eager
    assert not run.programs
    for turn in range(16):
        feed(eager, recorded, {n: tokens(turn, 1) for n in "abcd"[: turn % 4 + 1]})
    assert set(run.programs) == {(n, n) for n in (1, 2, 3, 4)}
    feed(eager, recorded, {"a": tokens(3, 5), "b": tokens(4, 1)})  # drafts beside a decode step
    feed(eager, recorded, {"c": tokens(5, 80), "a": tokens(6, 1)})  # a chunk beside a decode step
    for turn in range(40):  # past 128 positions: 32 blocks and more
        feed(eager, recorded, {"a": tokens(turn, 1), "c": tokens(turn, 1)})
    assert run.programs[2, 2].plan.block_tables.shape[1] == 64 and (6, 2) in run.programs
    for driver in (eager, recorded):
        driver.share("e", "a", 20)  # as from a prefix cache
        driver.drop("b")
    feed(eager, recorded, {"e": tokens(9, 1), "a": tokens(8, 1)})
    assert run.refusal is None


def test_a_decode_step_is_one_native_call_and_its_draw_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Besides them the plan asks for two things that the step alone decides: slots in the cache, and rotations."""
    model_of("glm-tied-even")  # tells ctypes what the functions take
    loaded, made = library.load(), []

    class Counting:
        def __getattr__(self, name: str) -> Any:
            def call(*args: Any) -> Any:
                made.append(name)
                return function(*args)

            function, call.__name__ = getattr(loaded, name), name
            return call

    monkeypatch.setattr(library, "load", Counting)
    model = model_of("glm-tied-even")
    driver = Driver(model, 64, 16)
    runner = ModelRunner(model, model.ops, driver.caches, SIZES)
    penalty = [Adjust(5, 0.8, -0.5), Adjust(7, 1.2)]
    how = inputs([Row(0.7, 20, 0.9, 0.05, seed=n, position=4, adjust=penalty) for n in range(2)], 200)
    for _ in range(3):
        made.clear()
        runner.run([LaneStep(driver.describe({"a": [1], "b": [2]}), how, want_logits=False)])
        for name in "ab":
            driver.lengths[name] += 1
    assert made == ["ga_plan_slots", "ga_rope_table", "ga_run", "ga_sample"]


def test_threads_and_levels_may_change_under_a_program(level: str, threads: None) -> None:
    model = model_of("glm-tied-even")
    logits = []
    for count in (1, 2, 3):
        eager, recorded, run = drivers(model, 16)
        feed(eager, recorded, {"a": tokens(0, 90)})
        feed(eager, recorded, {"a": [5]})
        library.set_threads(count)
        feed(eager, recorded, {"a": [6]})
        logits.append(recorded.step({"a": [7]})["a"])
        assert len(run.programs) == 1
    assert np.array_equal(logits[0], logits[1]) and np.array_equal(logits[0], logits[2])


def test_logits_are_the_callers_to_keep() -> None:
    _, recorded, _ = drivers(model_of("glm-odd"))
    kept = [recorded.step({"a": [n]})["a"] for n in range(4)]
    assert not any(np.array_equal(kept[0], other) for other in kept[1:])
    assert not np.shares_memory(kept[1], kept[2]) and all(type(one) is np.ndarray for one in kept)


def test_a_step_that_does_not_fit_is_refused_by_a_program_too() -> None:
    _, recorded, run = drivers(model_of("glm-odd"))
    for n in range(3):
        recorded.step({"a": [n]})
    with pytest.raises(BackendError, match="outside the vocabulary"):
        recorded.step({"a": [10**6]})
    step = recorded.describe({"b": [1]})
    with pytest.raises(BackendError, match="lacks a block"):
        run(replace(step, block_tables=np.full((1, 1), 10**6, np.int32)))
    with pytest.raises(BackendError, match="positions"):
        run(replace(step, positions=np.array([3], np.int32)))


def test_what_runs_eagerly() -> None:
    model = model_of("glm-odd")
    _, recorded, run = drivers(model)
    recorded.step({"a": tokens(0, MOST_TOKENS + 1)})
    recorded.step({name: [1] for name in "abcdefgh"})  # more sequences than the largest size
    step = recorded.describe({"a": [1, 2]})
    run(replace(step, logit_rows=step.logit_rows[1:]))  # not all logits
    assert not run.programs
    assert not isinstance(model.ops.compile_step(lambda plan: model.forward(plan, [])), ProgrammedStep)


def test_only_so_many_programs_are_kept() -> None:
    _, recorded, run = drivers(model_of("glm-odd"))
    for count in range(1, PROGRAMS_KEPT + 3):
        recorded.step({str(count): tokens(count, count)})
    assert len(run.programs) == PROGRAMS_KEPT and (1, 1) not in run.programs


@pytest.mark.parametrize(("name", "block_size"), [("glm-odd", 4), ("glm4_moe-even", 16)])
def test_caches_on_a_grid_are_recorded_too(name: str, block_size: int) -> None:
    model = model_of(name)
    spec = model.spec.attention
    shape = (spec.num_kv_heads, spec.head_dim)
    grid = KvGrid(*(np.full(shape, v, np.float32) for v in (0.05, 3.0, 0.04, -2.0)))
    eager, recorded, run = drivers(model, block_size)
    for driver in (eager, recorded):
        driver.caches[:] = [model.ops.make_kv_cache(spec, 256, block_size, grid) for _ in driver.caches]
    feed(eager, recorded, {"a": tokens(1, 70), "b": tokens(2, 9)})
    for turn in range(4):
        feed(eager, recorded, {n: tokens(turn, 1) for n in "ab"[: turn % 2 + 1]})
    assert run.refusal is None and set(run.programs) == {(1, 1), (2, 2)}


def test_a_model_that_computes_outside_of_native_calls_runs_eagerly_and_says_why(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = model_of("glm-odd")
    eager, recorded, run = drivers(model)
    forward = run.forward
    run.forward = lambda plan: forward(plan) + np.float32(0)
    with caplog.at_level(logging.WARNING):
        for n in range(3):
            feed(eager, recorded, {"a": [n]})
    assert run.refusal is not None and not run.programs
    assert len(caplog.records) == 1 and "op by op" in caplog.text


def test_the_arena_reuses_what_was_dropped_and_refuses_other_computation() -> None:
    arena = Arena()
    first, second = arena.empty((3, 40)), arena.empty(7, np.int32)
    assert first.ctypes.data % 64 == second.ctypes.data % 64 == 0
    where, view = first.ctypes.data, first[:, 3:].reshape(3, -1)[1:]
    del first
    assert arena.empty((3, 40)).ctypes.data != where  # a view is still there
    del view
    assert arena.empty((3, 40)).ctypes.data == where
    before = arena.nbytes
    for _ in range(100):
        arena.empty(60_000)
    assert arena.nbytes == before
    for compute in (
        lambda: second + 1, lambda: np.repeat(second, 2), lambda: second[[1, 0]], lambda: second.copy(),
        lambda: second.sum(),
    ):  # fmt: skip
        with pytest.raises(NotRecordable):
            compute()


def test_every_result_of_a_kernel_can_be_recorded() -> None:
    """Results come from `_empty`, or a program would write where nothing is any more."""
    for module in (kernels_linear, kernels_rows, kernels_attention):
        results = re.findall(r"= np\.(?:empty|zeros)\(", inspect.getsource(module))
        assert not results, f"{module.__name__}: make results with self._empty"


def test_the_numbers_of_calls_are_those_of_the_header() -> None:
    header = Path(__file__).parents[3] / "native/include/gallium/program.h"
    names = re.search(r"enum \{(.*?)\}", header.read_text(encoding="utf-8"), re.DOTALL)
    assert names is not None
    assert tuple(name.strip().lower() for name in names[1].split(",")) == CALLS
