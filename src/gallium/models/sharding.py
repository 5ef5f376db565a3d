"""How a model's sizes are spread over ranks: what divides, and one rank's part of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from gallium.errors import UnsupportedModel, UsageError
from gallium.models.spec import ModelSpec
from gallium.ops.handles import Placement

MOST_RANKS = 1024  # sizes that are suggested to the user go up to here


class Size(NamedTuple):
    """One size of a model that is shared by the ranks of a tensor-parallel group."""

    what: str
    units: int
    replicable: bool = False  # several ranks may hold the same one of them

    def divides(self, ranks: int) -> bool:
        """Whether every rank gets equally much."""
        return self.units % ranks == 0 or (self.replicable and ranks % self.units == 0)


def share(count: int, ranks: int, rank: int) -> range:
    """Which of `count` equal units rank `rank` of `ranks` holds.

    If there are fewer units than ranks, neighbouring ranks hold the same unit. `check_divides` says before whether the
    shares are equal.
    """
    if ranks > count:
        unit = rank * count // ranks
        return range(unit, unit + 1)
    return range(rank * count // ranks, (rank + 1) * count // ranks)


def local_experts(spec: ModelSpec, placement: Placement) -> range:
    """The routed experts that this rank holds, whole (`ep > 1`) or cut by width (`ep = 1`). Empty without experts."""
    count = spec.moe.num_experts if spec.moe is not None else 0
    return share(count, placement.ep, placement.ep_rank) if count else range(0)


def local_spec(spec: ModelSpec, placement: Placement) -> ModelSpec:
    """The spec of one rank's part: its heads, widths and rows of the vocabulary. `moe` stays that of the whole model.

    Raises what `check_divides` raises.
    """
    check_divides(spec, placement)
    attention, tp = spec.attention, placement.tp
    return replace(
        spec,
        vocab_size=spec.vocab_size // tp,
        ffn=len(share(spec.ffn, tp, placement.tp_rank)),
        attention=replace(
            attention,
            num_heads=attention.num_heads // tp,
            num_kv_heads=len(share(attention.num_kv_heads, tp, placement.tp_rank)),
        ),
        moe_ffn=spec.moe_ffn if placement.ep > 1 else spec.moe_ffn // tp,
        shared_ffn=spec.shared_ffn // tp,
    )


def check_divides(spec: ModelSpec, placement: Placement) -> None:
    """Refuse a placement that this model cannot be spread over; nothing has been read yet.

    Raises UsageError naming each size that does not divide and the numbers that would work for this model, and
    UnsupportedModel for attention that cannot be spread at all.
    """
    _check_numbers(spec, placement)
    if placement.tp > 1 and spec.attention.kind != "gqa":
        raise UnsupportedModel(
            f"--tp {placement.tp}: attention of kind {spec.attention.kind!r} ({spec.arch}) cannot be cut over ranks "
            "yet; use --tp 1, with --dp and --ep for several devices."
        )
    wrong = [size for size in tensor_sizes(spec, placement.ep) if not size.divides(placement.tp)]
    if wrong:
        named = ", ".join(f"{size.units} {size.what}" for size in wrong)
        raise UsageError(
            f"--tp {placement.tp} does not divide this {spec.arch} model's {named}. {_advice_tp(spec, placement)}"
        )
    if spec.moe is not None and spec.moe.num_experts % placement.ep:
        good = [n for n in range(1, spec.moe.num_experts + 1) if spec.moe.num_experts % n == 0]
        raise UsageError(
            f"--ep {placement.ep} does not divide this {spec.arch} model's {spec.moe.num_experts} experts. What works "
            f"is --ep {_listed(good)}, where --tp times --dp is the same number, or --ep 1 with any --tp that divides."
        )


def tensor_sizes(spec: ModelSpec, ep: int) -> list[Size]:
    """What a tensor-parallel group shares. Experts that stay whole (`ep > 1`) are not among it."""
    a, sparse = spec.attention, spec.moe is not None and spec.first_dense < spec.num_layers
    sizes = [
        Size("attention heads", a.num_heads),
        Size("key/value heads", a.num_kv_heads, replicable=True),
        Size("rows of the vocabulary", spec.vocab_size),
    ]
    if not sparse or spec.first_dense > 0:
        sizes.append(Size("columns of the MLP", spec.ffn))
    if sparse and ep == 1:
        sizes.append(Size("columns of a routed expert", spec.moe_ffn))
    if sparse and spec.shared_ffn:
        sizes.append(Size("columns of the shared expert", spec.shared_ffn))
    return sizes


def _check_numbers(spec: ModelSpec, placement: Placement) -> None:
    """The placement by itself: numbers of ranks, and what `ep` may be."""
    for option, value in (("tp", placement.tp), ("dp", placement.dp), ("ep", placement.ep)):
        if value < 1:
            raise UsageError(f"--{option} {value}: it must be at least 1.")
    if not 0 <= placement.rank < placement.world:
        raise UsageError(f"rank {placement.rank}: --tp {placement.tp} times --dp {placement.dp} ranks count from 0.")
    if placement.ep == 1:
        return
    if spec.moe is None:
        raise UsageError(f"--ep {placement.ep}: this {spec.arch} model has no routed experts; leave --ep out.")
    if placement.ep != placement.world:
        raise UsageError(
            f"--ep {placement.ep}: experts are spread over all ranks or not at all, so it must be 1, or "
            f"{placement.world} (--tp {placement.tp} times --dp {placement.dp})."
        )


def _advice_tp(spec: ModelSpec, placement: Placement) -> str:
    """Every --tp that would work with the same --dp and the same handling of experts."""
    good = list(_working_tp(spec, placement))
    if placement.ep == 1:
        return f"What works is --tp {_listed(good)}."
    if not good:
        return "No --tp works with whole experts on each rank: use --ep 1."
    return "What works is " + _listed([f"--tp {tp} --ep {tp * placement.dp}" for tp in good]) + "."


def _working_tp(spec: ModelSpec, placement: Placement) -> Iterator[int]:
    """The values of --tp that `check_divides` would let pass, in rising order."""
    sizes = tensor_sizes(spec, placement.ep)
    for tp in range(1, min(spec.attention.num_heads, MOST_RANKS) + 1):
        shared = placement.ep == 1 or spec.moe is None or spec.moe.num_experts % (tp * placement.dp) == 0
        if shared and all(size.divides(tp) for size in sizes):
            yield tp


def _listed(values: list[int] | list[str]) -> str:
    """ "1, 2 or 4"."""
    words = [str(value) for value in values]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"
