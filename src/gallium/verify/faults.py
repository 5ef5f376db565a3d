"""Known faults, put into the tested side one at a time: a verification that misses one proves nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np

from gallium.models.decoder import GqaWeights, Layer, Model, MoeWeights
from gallium.ops.handles import AttentionSpec, RopeSpec
from gallium.ops.interface import CORE_OPS, Ops
from gallium.ops.tolerances import TOLERANCES
from gallium.ops.wrappers import watched_ops
from gallium.verify.comparing import OpRow, judge_of, op_rows, run_pair
from gallium.verify.pairing import Pairing
from gallium.verify.sides import Side

MULTIPLE = 10  # by how much the smallest fault exceeds what the precision allows
CHUNK = 64  # a float16 accumulator that is used is cleared that often at most: a fault must not take minutes


@dataclass(frozen=True)
class Scene:
    """Where a fault acts."""

    ops: Ops  # the tested side's
    layer: Layer
    pairing: Pairing


Change = Callable[[Scene, Callable[..., Any], tuple[Any, ...]], Any]
"""Runs a method with its arguments, wrongly."""


@dataclass(frozen=True)
class Fault:
    """One fault and where it must be found."""

    name: str
    what: str
    ops: tuple[str, ...]  # the core op at fault first, then blocks that may hold it; it acts in all that there are
    change: Change
    handle: str = ""  # acts only on calls with this weight of the layer
    needs: str = ""  # a weight of the layer without which there is nothing to get wrong
    only_in: tuple[str, ...] = ()  # precisions whose own rounding does not hide it; all if empty


@dataclass(frozen=True)
class Outcome:
    """What became of one fault."""

    fault: Fault
    layer: str
    status: str  # "found", "not found", "found elsewhere", "not applicable", "hidden"
    found: tuple[tuple[str, str], ...]  # (layer, op) of what became wrong
    reason: str = ""

    @property
    def good(self) -> bool:
        """Whether the verification did what it should."""
        return self.status in ("found", "not applicable", "hidden")


# -- the faults -------------------------------------------------------------------


def _wrong_eps(scene: Scene, method: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """eps grows by so much of the mean square of a row (the middle one) that the norm is off by MULTIPLE tolerances."""
    *summed, _, eps = args  # x, or x and residual
    x = sum(np.array(scene.ops.download(one), np.float64) for one in summed if one is not None)
    mean_square = float(np.median(np.square(x).mean(axis=-1)))
    allowed = TOLERANCES["rms_norm", scene.pairing.judge.tested].rtol
    return method(*args[:-1], eps + 2 * MULTIPLE * allowed * mean_square)


def _wrong_scale(scene: Scene, method: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    return method(*[_respec(arg, AttentionSpec, lambda spec: {"scale": spec.scale**2}) for arg in args])


def _swapped_pairs(scene: Scene, method: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    return method(*[_respec(arg, RopeSpec, lambda spec: {"interleaved": not spec.interleaved}) for arg in args])


def _one_too_far(scene: Scene, method: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    step = scene.pairing.step
    assert step is not None  # ops run within a step
    later = dataclasses.replace(step, positions=step.positions + 1, context_lens=step.context_lens + 1)
    planned = type(scene.ops.plan(step))
    return method(*[scene.ops.plan(later) if isinstance(arg, planned) else arg for arg in args])


def _no_bias(scene: Scene, method: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    assert isinstance(scene.layer.mlp, MoeWeights)  # the fault needs one
    bias = scene.layer.mlp.router_bias
    zero = scene.ops.upload(np.zeros(bias.shape, np.float32))
    return method(*[_swapped(arg, bias, zero) for arg in args])


def _narrow_sums(scene: Scene, method: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """x is cut into columns, and the parts' products are added in float16."""
    x, weight = args
    values = np.array(scene.ops.download(x), np.float32)
    parts = min(CHUNK, values.shape[-1])
    nothing = np.array(scene.ops.download(method(scene.ops.upload(np.zeros_like(values)), weight)))  # the bias
    total = nothing.astype(np.float16)
    for columns in np.array_split(np.arange(values.shape[-1]), parts):
        part = np.zeros_like(values)
        part[:, columns] = values[:, columns]
        product = np.array(scene.ops.download(method(scene.ops.upload(part), weight))) - nothing
        total = (total + product.astype(np.float16)).astype(np.float16)
    return scene.ops.upload(total.astype(np.float32))


FAULTS: tuple[Fault, ...] = (
    Fault("wrong eps", "the norm before attention has too large an eps: in float32 by 4e-5 of the mean square",
          ("rms_norm", "add_rms_norm"), _wrong_eps, handle="norm_in"),
    Fault("wrong scale", "attention scores are multiplied by the square of the scale",
          ("attend", "attend_latent", "gqa", "mla", "mla_sparse"), _wrong_scale),
    Fault("swapped rope pairing", "rope pairs neighbours where the model pairs halves, or halves for neighbours",
          ("rope", "gqa", "mla_prolog", "mla", "mla_sparse"), _swapped_pairs),
    Fault("off-by-one mask", "each query sees one position too many",
          ("attend", "attend_latent"), _one_too_far),
    Fault("dropped router bias", "experts are chosen without the router's correction bias",
          ("route", "moe"), _no_bias, needs="mlp.router_bias"),
    Fault("float16 accumulation", "the output projection of attention adds its products in float16",
          ("linear", "row_linear"), _narrow_sums, handle="attention.out", only_in=("float32",)),
)  # fmt: skip


def _respec(value: Any, kind: type, change: Callable[[Any], dict[str, Any]]) -> Any:
    """The argument with changed facts, where it is or holds a spec of this kind."""
    if isinstance(value, kind):
        changed: Any = value
        return dataclasses.replace(changed, **change(value))
    if isinstance(value, AttentionSpec) and kind is RopeSpec:
        return dataclasses.replace(value, rope=_respec(value.rope, kind, change))
    return value


def _swapped(value: Any, old: Any, new: Any) -> Any:
    """The argument with one handle exchanged, where it is or holds it."""
    if value is old:
        return new
    if isinstance(value, MoeWeights):
        return dataclasses.replace(value, **{f.name: _swapped(getattr(value, f.name), old, new) for f in fields(value)})
    return value


# -- putting one in ---------------------------------------------------------------


@contextmanager
def put_in(fault: Fault, pairing: Pairing, model: Model, index: int) -> Iterator[None]:
    """The tested ops with a fault in one layer, and honest again afterwards."""
    ops = pairing.tested
    scene = Scene(ops, model.layers[index], pairing)
    handle = handle_of(scene.layer, fault.handle) if fault.handle else None
    acting = False

    def wrong(method: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            nonlocal acting
            if acting or pairing.layer != str(index) or (handle is not None and not _holds(args, handle)):
                return method(*args)
            acting = True  # a block's own calls must not be changed again
            try:
                return fault.change(scene, method, args)
            finally:
                acting = False

        return run

    names = [op for op in fault.ops if op in watched_ops(ops)]
    for name in names:
        setattr(ops, name, wrong(getattr(ops, name)))
    try:
        yield
    finally:
        for name in names:
            delattr(ops, name)


def handle_of(layer: Layer, path: str) -> Any:
    """`attention.out` of a layer; None if it has none."""
    found: Any = layer
    for name in path.split("."):
        found = getattr(found, name, None)
    return found


def _holds(args: Sequence[Any], handle: Any) -> bool:
    """Whether an argument is the handle, or the weights of a block that has it."""
    return any(
        arg is handle
        or (
            is_dataclass(arg)
            and isinstance(arg, GqaWeights)
            and any(getattr(arg, f.name) is handle for f in fields(arg))
        )
        for arg in args
    )


# -- the self-test ----------------------------------------------------------------


def self_test(tested: Side, other: Side, prompts: Sequence[Sequence[int]]) -> Iterator[Outcome]:
    """Put each fault into the middle layer that can have it, and say where it was found."""
    later = [[int(prompt[-1])] for prompt in prompts]
    honest = {_place(row) for row in _run(tested, other, prompts, later, None, 0) if row.finding.verdict == "wrong"}
    for fault in FAULTS:
        index = _layer_for(fault, tested.model)
        if index is None:
            yield Outcome(fault, "", "not applicable", (), f"no layer has {fault.needs}")
        elif fault.only_in and tested.precision not in fault.only_in:
            hidden = f"{tested.precision} allows more than that: test with --precision {fault.only_in[0]}"
            yield Outcome(fault, str(index), "hidden", (), hidden)
        else:
            rows = _run(tested, other, prompts, later, fault, index)
            yield outcome(fault, str(index), [row for row in rows if _place(row) not in honest])


def outcome(fault: Fault, layer: str, rows: Sequence[OpRow]) -> Outcome:
    """Found, if everything that became wrong is the op at fault in its layer, or a block around it."""
    bad = [row for row in rows if row.finding.verdict == "wrong"]
    found = tuple(dict.fromkeys((row.layer, row.op) for row in bad))
    allowed = {*fault.ops, *(block for row in bad if row.op in fault.ops for block in row.inside)}
    if not bad:
        return Outcome(fault, layer, "not found", found, "nothing became wrong")
    strangers = [place for place in found if place[0] != layer or place[1] not in allowed]
    if strangers:
        places = ", ".join(f"{op} in layer {where}" for where, op in strangers)
        return Outcome(fault, layer, "found elsewhere", found, f"also wrong: {places}")
    if not any(op in CORE_OPS for _, op in found):
        return Outcome(fault, layer, "found elsewhere", found, "only the block around the op became wrong")
    return Outcome(fault, layer, "found", found)


def _run(
    tested: Side, other: Side, prompts: Sequence[Sequence[int]], later: Sequence[Sequence[int]],
    fault: Fault | None, index: int,
) -> list[OpRow]:  # fmt: skip
    pairing = Pairing(tested.ops, other.ops, judge_of(tested, other), chain=False)
    if fault is None:
        run_pair(pairing, tested.model, other.model, prompts, later)
    else:
        with put_in(fault, pairing, tested.model, index):
            run_pair(pairing, tested.model, other.model, prompts, later)
    return op_rows(pairing.calls)


def _place(row: OpRow) -> tuple[str, str, str]:
    return row.layer, row.op, row.site


def _layer_for(fault: Fault, model: Model) -> int | None:
    """The layer in the middle of those that have what the fault needs."""
    able = [i for i, layer in enumerate(model.layers) if not fault.needs or handle_of(layer, fault.needs) is not None]
    return able[len(able) // 2] if able else None
