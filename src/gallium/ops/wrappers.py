"""Watch the seam: `traced` times every op, `checked` runs the reference beside it and names the first wrong op.

Both replace methods on one Ops object. That works because blocks call `self.<op>`: an op inside a composed block is
seen too. A block that the backend replaces is seen as a whole.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Collection
from dataclasses import fields, is_dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from gallium.errors import BackendError
from gallium.ops.handles import (
    AttentionSpec,
    Experts,
    KvCache,
    Linear,
    MoeSpec,
    Precision,
    RopeSpec,
    SamplerInputs,
)
from gallium.ops.interface import BLOCKS, CORE_OPS, Ops
from gallium.ops.machine import Waits
from gallium.ops.tolerances import difference

_MAKERS = ("pack_linear", "pack_heads", "pack_experts", "make_kv_cache")
_FACTS = (AttentionSpec, MoeSpec, RopeSpec, SamplerInputs, int, float, type(None))
_PLANS_KEPT = 8  # compile_step may plan more than one step before it runs them


def watched_ops(ops: Ops) -> tuple[str, ...]:
    """Core ops, and the blocks that this backend replaces."""
    return CORE_OPS + tuple(block for block in BLOCKS if getattr(type(ops), block) is not getattr(Ops, block))


class OpCall(NamedTuple):
    """One call that was watched."""

    op: str
    start: float  # of time.perf_counter
    seconds: float
    depth: int  # watched ops that it was called by: 0 unless it is a part of a fused block
    args: tuple[Any, ...]
    done: bool  # it did not raise


def traced(ops: Ops, log: Callable[[OpCall], None]) -> Ops:
    """The same `ops`, which now calls `log` after every watched op; what an op calls is logged before it.

    On a device that computes on its own (`Waits`) an op that no other has called lasts until its result is there.
    """
    depth = 0
    wait = ops.wait if isinstance(ops, Waits) else lambda: None

    def timed(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def run(*args: Any) -> Any:
            nonlocal depth
            depth += 1
            done = False
            start = time.perf_counter()
            try:
                result = method(*args)
                if depth == 1:
                    wait()
                done = True
                return result
            finally:
                seconds = time.perf_counter() - start
                depth -= 1
                log(OpCall(name, start, seconds, depth, args, done))

        return run

    for name in watched_ops(ops):
        setattr(ops, name, timed(name, getattr(ops, name)))
    return ops


def checked(ops: Ops, reference: Ops, precision: Precision, names: Collection[str] | None = None) -> Ops:
    """The same `ops`, which now raises BackendError at the first op whose result is not the reference's.

    Wrap before a model is loaded: weights and caches are made twice from then on. `names` limits what is compared
    (all ops run on both sides in any case). Steps run eagerly: what a backend pads or captures cannot be looked into.
    Needs memory for a float32 copy of the model; a tool for small ones.
    """
    shadow = _Shadow(ops, reference, precision)
    for name in _MAKERS:
        setattr(ops, name, shadow.make_twice(name, getattr(ops, name)))
    ops.plan = shadow.plan_twice(ops.plan)  # type: ignore[method-assign]
    ops.compile_step = functools.partial(Ops.compile_step, ops)  # type: ignore[method-assign]
    for name in watched_ops(ops):
        compare = names is None or name in names
        setattr(ops, name, shadow.run_twice(name, getattr(ops, name), compare))
    return ops


class _Shadow:
    """Knows the reference's twin of every handle, plan and tensor."""

    def __init__(self, ops: Ops, reference: Ops, precision: Precision) -> None:
        self.ops = ops
        self.reference = reference
        self.precision = precision
        self.handles: dict[
            int, tuple[Any, Any]
        ] = {}  # id -> (handle, twin); the handle is kept so that ids stay its own
        self.plans: dict[int, tuple[Any, Any]] = {}

    def make_twice(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap what makes a handle."""

        @functools.wraps(method)
        def make(*args: Any, **named: Any) -> Any:
            handle = method(*args, **named)
            self.handles[id(handle)] = handle, getattr(self.reference, name)(*args, **named)
            return handle

        return make

    def plan_twice(self, method: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap `plan`."""

        @functools.wraps(method)
        def plan(step: Any) -> Any:
            made = method(step)
            self.plans[id(made)] = made, self.reference.plan(step)
            while len(self.plans) > _PLANS_KEPT:
                del self.plans[next(iter(self.plans))]
            return made

        return plan

    def run_twice(self, name: str, method: Callable[..., Any], compare: bool) -> Callable[..., Any]:
        """Wrap an op or block."""

        @functools.wraps(method)
        def run(*args: Any) -> Any:
            twins = [self.twin(arg) for arg in args]  # before the op, which may work in place
            got, wanted = method(*args), getattr(self.reference, name)(*twins)
            if compare:
                self.compare(name, got, wanted)
            return got

        return run

    def twin(self, value: Any) -> Any:
        """What the reference gets in the place of `value`."""
        for known in (self.handles, self.plans):
            if id(value) in known:
                return known[id(value)][1]
        if isinstance(value, _FACTS):
            return value
        if isinstance(value, Linear | Experts | KvCache):
            raise BackendError("checked() must wrap the ops before the model is loaded and its caches are made.")
        if is_dataclass(value) and not isinstance(value, type):  # the weights of a block
            return replace(value, **{f.name: self.twin(getattr(value, f.name)) for f in fields(value)})
        return np.array(self.ops.download(value))

    def compare(self, name: str, got: Any, wanted: Any) -> None:
        """Raise if one of the op's results is off."""
        if wanted is None:
            return
        pairs = zip(got, wanted, strict=True) if isinstance(wanted, tuple) else [(got, wanted)]
        for ours, theirs in pairs:
            fault = difference(name, self.precision, self.ops.download(ours), self.reference.download(theirs))
            if fault is not None:
                raise BackendError(f"op {name!r} of backend {self.ops.name!r} is not the reference's: {fault}.")
