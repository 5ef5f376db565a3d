"""What a model's steps and their ops take: kept for a profile, and written as a trace for chrome://tracing.

Nothing here runs unless it was asked for: a Recorder replaces methods of one Ops object, and steps run eagerly then.
"""

from __future__ import annotations

import functools
import logging
import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np

from gallium.engine.runner import Forward, LaneStep, ModelRunner, StepResult
from gallium.engine.trace_file import write_trace
from gallium.errors import UsageError
from gallium.models.decoder import Model
from gallium.ops.backend import Backend
from gallium.ops.call_costs import CallCosts
from gallium.ops.costs import Cost
from gallium.ops.handles import AttentionSpec, KvCache, Precision, Step
from gallium.ops.interface import Ops
from gallium.ops.machine import Limits, Measures
from gallium.ops.wrappers import OpCall, traced
from gallium.settings import EngineSettings, environment

log = logging.getLogger("gallium.engine")
MOST_EVENTS = 200_000  # kept for the trace, some 200 bytes each; beyond, the oldest steps are dropped
MOST_COSTS = 4096  # that are kept once for all calls which they are equal for
Phase: TypeAlias = Literal["prefill", "decode", "mixed"]


class OpEvent(NamedTuple):
    """One call. A part of a fused block has no cost of its own, nor has a call that failed."""

    op: str
    start: float
    seconds: float
    cost: Cost | None


class StepEvent(NamedTuple):
    """One forward pass with the sampling after it."""

    phase: Phase
    start: float
    seconds: float
    tokens: int
    sequences: int
    context: int  # tokens, of all sequences together, after the step
    ops: Sequence[OpEvent]
    own_seconds: float  # what the recorder itself took between ops


class Recorder:
    """Watches one model. With a `path` the trace is written there when the engine ends."""

    def __init__(self, path: Path | None = None, *, most_events: int = MOST_EVENTS) -> None:
        if path is not None and (path.is_dir() or not os.access(path.parent, os.W_OK)):
            raise UsageError(f"no trace can be written to {path}: name a file in a folder that exists.")
        self.path = path
        self.limits: Limits | None = None
        self.label = ""
        self.emulated = False
        self.steps: deque[StepEvent] = deque()
        self.dropped_steps = 0
        self.dropped_events = 0
        self._most_events = most_events
        self._events = 0
        self._costs: CallCosts | None = None
        self._known: dict[tuple[Any, ...], Cost] = {}
        self._step: Step | None = None
        self._ops: list[OpEvent] = []
        self._own_seconds = 0.0

    @property
    def watching(self) -> bool:
        """Whether `watch` was called."""
        return self._costs is not None

    def watch(
        self,
        ops: Ops,
        attention: AttentionSpec,
        precision: Precision,
        block_size: int,
        *,
        label: str,
        limits: Limits | None,
        emulated: bool = False,
    ) -> None:
        """Record all steps from now on; once. Times on `emulated` hardware are those of the emulator."""
        self._costs = CallCosts(ops, attention, precision, block_size)
        self.label, self.limits, self.emulated = label, limits, emulated
        ops.compile_step = functools.partial(Ops.compile_step, ops)  # type: ignore[method-assign]
        ops.plan = self._planned(ops.plan)  # type: ignore[method-assign]
        traced(ops, self._note)

    @contextmanager
    def step(self, step: Step) -> Iterator[None]:
        """Around one step."""
        self._ops, self._own_seconds, self._step = [], 0.0, step
        start = time.perf_counter()
        try:
            yield
        finally:
            seconds, lengths = time.perf_counter() - start, step.context_lens
            self._keep(
                StepEvent(
                    phase_of(step),
                    start,
                    seconds,
                    len(step.token_ids),
                    len(lengths),
                    int(lengths.sum()),
                    self._ops,
                    self._own_seconds,
                )
            )
            self._ops, self._step = [], None

    def write(self) -> None:
        """Write the trace, if there is a path: a whole file or none. A fault is logged: it must not hide others."""
        if self.path is None:
            return
        try:
            write_trace(self.path, self)
        except OSError as cause:
            log.error("the trace was not written to %s: %s", self.path, cause.strerror or cause)
            return
        if self.dropped_steps:
            log.warning("the trace has the last %d steps; %d before them were dropped", len(self.steps),
                        self.dropped_steps)  # fmt: skip

    # -- during a step ------------------------------------------------------------------

    def _planned(self, plan: Any) -> Any:
        @functools.wraps(plan)
        def run(step: Step) -> Any:
            start = time.perf_counter()
            made = plan(step)
            self._ops.append(OpEvent("plan", start, time.perf_counter() - start, Cost()))
            return made

        return run

    def _note(self, call: OpCall) -> None:
        if self._step is None or self._costs is None:
            return
        if call.depth or not call.done:
            self._ops.append(OpEvent(call.op, call.start, call.seconds, None))
            return
        begin = time.perf_counter()
        cost = self._costs.of(call.op, call.args, self._step)
        self._ops.append(OpEvent(call.op, call.start, call.seconds, self._once(cost)))
        self._own_seconds += time.perf_counter() - begin

    def _once(self, cost: Cost) -> Cost:
        """One object for all that are equal: layers cost the same."""
        key = (cost.weights, cost.kv, cost.activations, *cost.operations.items())
        if len(self._known) >= MOST_COSTS:
            self._known.clear()
        return self._known.setdefault(key, cost)

    def _keep(self, event: StepEvent) -> None:
        self.steps.append(event)
        self._events += 1 + len(event.ops)
        while self._events > self._most_events and len(self.steps) > 1:
            oldest = self.steps.popleft()
            self._events -= 1 + len(oldest.ops)
            self.dropped_steps += 1
            self.dropped_events += 1 + len(oldest.ops)


class RecordedRunner(ModelRunner):
    """A ModelRunner whose steps a Recorder sees from its `watch` on; nothing is captured as a graph."""

    def __init__(self, model: Forward, ops: Ops, caches: Sequence[KvCache], recorder: Recorder) -> None:
        super().__init__(model, ops, caches)
        self._recorder = recorder

    def run_lane(self, lane: LaneStep) -> StepResult:
        """See ModelRunner."""
        if not self._recorder.watching:
            return super().run_lane(lane)
        with self._recorder.step(lane.step):
            return super().run_lane(lane)

    def close(self) -> None:
        """The last thing that an engine does, however it ends."""
        super().close()
        self._recorder.write()


def requested(settings: EngineSettings) -> Recorder | None:
    """The recorder that GALLIUM_TRACE asks for. Raises UsageError if the model is not in this process."""
    path = environment("GALLIUM_TRACE")
    if path is None:
        return None
    if settings.world > 1:
        raise UsageError(
            "GALLIUM_TRACE traces a model in one process: leave out --tp, --dp and --ep, or unset GALLIUM_TRACE."
        )
    return Recorder(Path(path).absolute())


def watch_loaded(
    recorder: Recorder, backend: Backend, model: Model, precision: Precision, settings: EngineSettings, label: str
) -> None:
    """`Recorder.watch` for a model that was just loaded, beside the limits of its machine, which are measured now."""
    emulated = backend.probe().emulated
    limits = backend.measure(settings.threads) if isinstance(backend, Measures) and not emulated else None
    recorder.watch(
        model.ops,
        model.spec.attention,
        precision,
        settings.block_size or model.ops.block_size,
        label=f"{label}, {precision}, on {backend.name}",
        limits=limits,
        emulated=emulated,
    )


def phase_of(step: Step) -> Phase:
    """Prefill or decode, or "mixed".

    A sequence is in its prompt if it begins in this step, or if it has tokens whose logits are not wanted.
    """
    if not len(step.context_lens):
        return "decode"
    new = np.diff(step.query_start)
    rows = np.bincount(np.searchsorted(step.query_start, step.logit_rows, side="right") - 1, minlength=len(new))
    prompts = int(np.count_nonzero((step.context_lens == new) | (rows < new)))
    return "decode" if prompts == 0 else "prefill" if prompts == len(new) else "mixed"
