"""Runs a model's ops on two backends at once: the tested one beside the other, whose values lead.

Three lanes go through the model together. The *other* backend computes every core op. The *forced* lane is the tested
backend given the other's inputs, so that each op is judged alone. The *chained* lane is the tested backend going on
with its own values, so that the growth of differences is seen. A block that the tested backend fuses is judged as a
whole, and then the core ops it stands for, one by one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from gallium.errors import BackendError
from gallium.models.decoder import Model
from gallium.ops.handles import Step
from gallium.ops.interface import BLOCKS, CORE_OPS, Ops
from gallium.ops.wrappers import watched_ops
from gallium.verify.rounding import PRODUCTS, READING, SHARPENING, WRITING, rounding_ops
from gallium.verify.verdicts import EXACT, Finding, Judge, choice_scores

BEFORE, AFTER = "embedding", "head"  # what stands before the first layer, and after the last


@dataclass(frozen=True)
class Twin:
    """A thing that each lane has its own of: a packed weight, a gain, a cache, a plan."""

    other: Any
    forced: Any
    chained: Any
    rounded: Any  # the other's again, for what rounding alone does
    layer: str | None = None  # BEFORE, "0", "1", …, AFTER
    name: str = ""  # within the layer: "attention.qkv"


@dataclass(frozen=True)
class Value:
    """A tensor on its way through the model; the forced lane gets a copy of the other's at each op."""

    other: Any
    chained: Any  # None inside a fused block, where the tested backend has no value of its own
    format: Any  # a tensor of the tested backend in the number format that it has here

    @property
    def shape(self) -> tuple[int, ...]:
        """As both sides have it."""
        found: tuple[int, ...] = tuple(self.other.shape)
        return found

    def reshape(self, *shape: int) -> Value:
        """Both sides reshaped."""
        chained = None if self.chained is None else self.chained.reshape(*shape)
        return Value(self.other.reshape(*shape), chained, self.format)

    def __getitem__(self, key: Any) -> Value:
        return Value(self.other[key], None if self.chained is None else self.chained[key], self.format)


class Call(NamedTuple):
    """One op in its place, judged on the other's inputs."""

    layer: str
    op: str
    site: str  # the weight it works with, or the block it is part of; "#2" for the second such call
    inside: tuple[str, ...]  # blocks around it, outermost first
    finding: Finding


class Growth(NamedTuple):
    """The tested side's own residual stream beside the other's, as it leaves a layer."""

    layer: str
    got: Any  # float32 arrays
    wanted: Any


class Pairing:
    """The three lanes. `calls` and `growth` collect what one or more steps have shown."""

    def __init__(self, tested: Ops, other: Ops, judge: Judge, *, chain: bool = True) -> None:
        self.tested = tested
        self.other = other
        self.judge = judge
        self.layer = BEFORE
        self.step: Step | None = None  # the tested side's, while it runs
        self.calls: list[Call] = []
        self.growth: list[Growth] = []
        self.last_layer = ""  # known once a model is paired
        self.ops = self._facade()
        self._swaying = SHARPENING | PRODUCTS if judge.integers else SHARPENING
        self._rounding = (
            None if judge.tested == "float32" else rounding_ops(other, judge.tested, integers=judge.integers)
        )
        self._fused = frozenset(watched_ops(tested)) - frozenset(CORE_OPS)
        self._chaining = chain
        self._inside: list[str] = []
        self._written: list[Call] = []
        self._sites: Counter[tuple[str, str, str]] = Counter()

    def _facade(self) -> Ops:
        """Ops whose every method runs the lanes; a model is driven by it as by any other."""

        def method(name: str) -> Callable[..., Any]:
            return lambda _, *args: self._run(name, args)

        def refused(_: Ops, *args: Any, **named: Any) -> Any:
            raise BackendError("a pair of backends runs a model that both have loaded; it loads none.")

        methods = dict.fromkeys(Ops.__abstractmethods__, refused) | {op: method(op) for op in CORE_OPS + BLOCKS}
        made: Ops = type("PairedOps", (Ops,), methods)()
        return made

    def begin(self, tested: Step, other: Step) -> Twin:
        """A step's plans, for `forward`; the steps differ in their blocks alone."""
        self.step, self.layer = tested, BEFORE
        self._sites.clear()
        self._written.clear()
        planned = self.tested.plan(tested)
        theirs = self.other.plan(other)
        return Twin(theirs, planned, planned, theirs)

    # -- running ------------------------------------------------------------------
    def _run(self, op: str, args: Sequence[Any]) -> Any:
        names = self._enter(args)
        result = self._block(op, args, names) if op in BLOCKS else self._core(op, args, names)
        if op == "add_rms_norm" and self._chaining:
            self._leave_layer(names, result[1])
        return result

    def _core(self, op: str, args: Sequence[Any], names: Sequence[str]) -> Any:
        forced = [self._given(arg) for arg in args]  # before the other's op, which may work in place
        expected, swayed = self._expected(op, args, forced), self._sway(op, args)
        scores = choice_scores(*[self._read(arg) for arg in args]) if op == "route" else None
        wanted = getattr(self.other, op)(*[_lane(arg, "other") for arg in args])
        alone = getattr(self.tested, op)(*forced)
        self._judge(op, names, alone, wanted if expected is None else expected, scores, swayed)
        own = getattr(self.tested, op)(*[_lane(arg, "chained") for arg in args]) if self._chaining else None
        return _joined(wanted, own, alone)

    def _block(self, op: str, args: Sequence[Any], names: Sequence[str]) -> Any:
        body = getattr(Ops, op)
        if op not in self._fused:
            with self._within(op):
                return body(self.ops, *args)
        forced = [self._given(arg) for arg in args]
        expected, swayed = self._expected(op, args, forced), self._sway(op, args)
        whole = getattr(self.tested, op)(*forced)
        own = getattr(self.tested, op)(*[_lane(arg, "chained") for arg in args]) if self._chaining else None
        with self._within(op, chaining=False):
            parts = body(self.ops, *[_without_chain(arg) for arg in args])
        self._judge(op, names, whole, _lane(parts, "other") if expected is None else expected, None, swayed)
        return _joined(_lane(parts, "other"), own, whole)

    def _expected(self, op: str, args: Sequence[Any], forced: Sequence[Any]) -> Any:
        """What the other gives for just what the tested side was given, where a narrow format has rounded that.

        None where nothing was rounded, and for ops that read or write a cache: those are judged by `_sway`.
        """
        if op in self._swaying | WRITING:
            return None
        seen = [
            np.array(self.tested.download(f)) if isinstance(a, Value) else a for a, f in zip(args, forced, strict=True)
        ]
        if all(np.array_equal(s, self._read(a)) for a, s in zip(args, seen, strict=True) if isinstance(a, Value)):
            return None
        given = [
            self.other.upload(s) if isinstance(a, Value) else _lane(a, "other") for a, s in zip(args, seen, strict=True)
        ]
        return getattr(self.other, op)(*given)

    @contextmanager
    def _within(self, block: str, *, chaining: bool | None = None) -> Iterator[None]:
        before = self._chaining
        self._inside.append(block)
        self._chaining = before if chaining is None else chaining
        try:
            yield
        finally:
            self._inside.pop()
            self._chaining = before

    # -- places -------------------------------------------------------------------
    def _enter(self, args: Sequence[Any]) -> list[str]:
        """Note the layer that the call's weights belong to -> their names."""
        twins = [twin for arg in args for twin in _twins(arg) if twin.layer is not None]
        if twins and twins[0].layer is not None:
            self.layer = twins[0].layer
        return [twin.name for twin in twins if twin.name]

    def _site(self, op: str, names: Sequence[str]) -> str:
        around = self._inside[-1] if self._inside else ""
        site = names[0].partition(".")[0] if op in BLOCKS and len(names) > 1 else names[0] if names else around
        self._sites[self.layer, op, site] += 1
        nth = self._sites[self.layer, op, site]
        return site if nth == 1 else f"{site} #{nth}"

    def _leave_layer(self, names: Sequence[str], residual: Value) -> None:
        """The residual sum before a layer is what has left the one before it."""
        if names == ["norm"]:
            left = self.last_layer
        elif names == ["norm_in"] and self.layer != "0":
            left = str(int(self.layer) - 1)
        else:
            return
        own, wanted = self.tested.download(residual.chained), self.other.download(residual.other)
        self.growth.append(Growth(left, np.array(own), np.array(wanted)))

    # -- lanes --------------------------------------------------------------------
    def _given(self, value: Any) -> Any:
        """What the forced lane gets for an argument: the other's values on the tested backend."""
        if isinstance(value, Value):
            return self.tested.like(self.tested.upload(self._read(value)), value.format)
        return _lane(value, "forced")

    def _read(self, value: Any) -> Any:
        """An argument on the host, copied."""
        if isinstance(value, Value | Twin):
            return np.array(self.other.download(value.other))
        return value

    def _sway(self, op: str, args: Sequence[Any]) -> Any:
        """What the op gives on the other side for rounded values; None where a fixed share of rounding is enough."""
        if self._rounding is None or op not in self._swaying | WRITING:
            return None
        given = [
            self._rounding.upload(self._read(arg)) if isinstance(arg, Value) else _lane(arg, "rounded") for arg in args
        ]
        swayed = getattr(self._rounding, op)(*given)
        return None if swayed is None else self.other.download(swayed)

    def _judge(self, op: str, names: Sequence[str], got: Any, wanted: Any, scores: Any, swayed: Any) -> None:
        if wanted is None:  # what was written shows in the op that reads it
            self._written.append(Call(self.layer, op, self._site(op, names), tuple(self._inside), EXACT))
            return
        pairs = list(zip(got, wanted, strict=True)) if isinstance(wanted, tuple) else [(got, wanted)]
        ours = [np.asarray(self.tested.download(one)) for one, _ in pairs]
        theirs = [np.asarray(self.other.download(one)) for _, one in pairs]
        if scores is None:
            found = [self.judge.op(op, a, b, swayed=swayed) for a, b in zip(ours, theirs, strict=True)]
            finding = max(found, key=lambda one: one.gravity)
        else:
            finding = self.judge.routing((ours[0], ours[1]), (theirs[0], theirs[1]), scores)
        self.calls.append(Call(self.layer, op, self._site(op, names), tuple(self._inside), finding))
        if op in READING and finding.verdict != "wrong":  # else the reader is named, and what it has read is unknown
            read = replace(finding, reason=f"{op} has read what it wrote: {finding.reason}")
            self.calls += [call._replace(finding=read) for call in self._written if call.layer == self.layer]
            self._written = [call for call in self._written if call.layer != self.layer]


def pair_model(pairing: Pairing, tested: Model, other: Model) -> Model:
    """A model whose weights are those of both, for the pairing's ops."""
    layers = [
        _paired(ours, theirs, str(index), "")
        for index, (ours, theirs) in enumerate(zip(tested.layers, other.layers, strict=True))
    ]
    pairing.last_layer = str(len(layers) - 1)
    embedding: Any = Twin(other.embedding, tested.embedding, tested.embedding, other.embedding, BEFORE, "table")
    norm: Any = Twin(other.norm, tested.norm, tested.norm, other.norm, AFTER, "norm")
    head: Any = Twin(other.head, tested.head, tested.head, other.head, AFTER, "matrix")
    return Model(tested.spec, pairing.ops, embedding, layers, norm, head)


def pair_caches(tested: Model, other: Model, blocks: tuple[int, int], sizes: tuple[int, int]) -> list[Any]:
    """Per layer, one cache of each lane; `blocks` and `sizes` are (tested, other)."""
    forced, chained = (tested.make_caches(blocks[0], sizes[0]) for _ in range(2))
    theirs, rounding = (other.make_caches(blocks[1], sizes[1]) for _ in range(2))
    return [Twin(*lanes, str(index)) for index, lanes in enumerate(zip(theirs, forced, chained, rounding, strict=True))]


def _paired(ours: Any, theirs: Any, layer: str, name: str) -> Any:
    """Dataclasses of handles field by field; handles and gains as twins."""
    if ours is None or isinstance(ours, int):
        return ours
    if is_dataclass(ours) and type(ours).__module__ == Model.__module__:
        return replace(
            ours,  # type: ignore[type-var]
            **{
                f.name: _paired(
                    getattr(ours, f.name), getattr(theirs, f.name), layer, f"{name}.{f.name}" if name else f.name
                )
                for f in fields(ours)
            },
        )
    return Twin(theirs, ours, ours, theirs, layer, name)


def _twins(value: Any) -> Iterator[Twin]:
    """All twins in an argument."""
    if isinstance(value, Twin):
        yield value
    elif is_dataclass(value) and not isinstance(value, Value):
        for field in fields(value):
            yield from _twins(getattr(value, field.name))


def _lane(value: Any, lane: str) -> Any:
    """One lane's part of an argument; what holds no twin or value is the same for all."""
    if isinstance(value, Twin | Value):
        return getattr(value, lane)
    if isinstance(value, tuple):
        return tuple(_lane(one, lane) for one in value)
    if is_dataclass(value) and any(True for _ in _twins(value)):
        changed = {f.name: _lane(getattr(value, f.name), lane) for f in fields(value)}
        return replace(value, **changed)  # type: ignore[type-var]
    return value


def _without_chain(value: Any) -> Any:
    return Value(value.other, None, value.format) if isinstance(value, Value) else value


def _joined(wanted: Any, own: Any, alone: Any) -> Any:
    """The lanes' results as values for the next op."""
    if isinstance(wanted, tuple):
        owned = own if own is not None else (None,) * len(wanted)
        return tuple(Value(*lanes) for lanes in zip(wanted, owned, alone, strict=True))
    return None if wanted is None else Value(wanted, own, alone)
