"""How a layer names what it needs. The description is read twice: to check the file, then to pack it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

from gallium.models.columns import Columns
from gallium.models.sharding import share
from gallium.ops.handles import ALONE, FloatArray, KvGrid, Placement, Role, Weight
from gallium.ops.interface import Ops

RoleOf: TypeAlias = Callable[[Sequence[Weight], Role], Role]
"""The role in which the matrices of one projection are packed, given what it is for."""
KV_SCALES = ("k_proj.kv_cache_scale", "k_proj.kv_cache_offset", "v_proj.kv_cache_scale", "v_proj.kv_cache_offset")
"""Tensors of a layer whose keys and values have a calibrated grid, in the order of KvGrid."""

Cut: TypeAlias = Literal["none", "rows", "columns"]
"""What of a projection one rank of a tensor-parallel group holds: all, some outputs, or some inputs."""


class Rows(NamedTuple):
    """A module whose `weight` is `height` output rows of a projection.

    The rows are `stacked` matrices of equal height, each of which is cut by itself, into `units` that stay whole (0:
    every row is one).
    """

    module: str
    height: int
    units: int = 0
    stacked: int = 1

    def held(self, placement: Placement) -> list[range]:
        """The rows of one rank, a range from each of the stacked matrices."""
        height = self.height // self.stacked
        unit = height // self.units if self.units else 1
        part = share(height // unit, placement.tp, placement.tp_rank)
        starts = range(0, self.height, height)
        return [range(start + part.start * unit, start + part.stop * unit) for start in starts]


class CheckpointLike(Protocol):
    """The part of a checkpoint that a model reads."""

    def names(self) -> list[str]:
        """All tensors, Hugging Face names."""
        ...

    def weight(self, name: str, index: int | None = None) -> Weight:
        """One tensor, unread; `index` picks a slice of a 3-D one."""
        ...

    def check(self, expected: Mapping[str, tuple[int, ...]], ignored: Collection[str] = ()) -> None:
        """Raise CheckpointError naming all missing, unused and wrongly shaped tensors."""
        ...


class Source(ABC):
    """What a layer asks for. Handles come back as Any: a survey has none to give."""

    def __init__(self, names: Collection[str]) -> None:
        self.names = frozenset(names)

    @abstractmethod
    def linear(
        self, rows: Sequence[Rows], width: int, *, bias: bool = False, role: Role = "linear", cut: Cut = "none"
    ) -> Any:
        """One projection, its rows stacked from modules (each `[height, width]`, bias `[height]`)."""

    @abstractmethod
    def vector(self, name: str, width: int) -> Any:
        """A float32 vector `[width]` on the device: a norm's gain, a router's bias."""

    @abstractmethod
    def experts(self, prefix: str, count: int, hidden: int, width: int) -> Any:
        """The routed experts below `prefix`, whether they are stored packed or one by one."""

    @abstractmethod
    def kv_grid(self, prefix: str, heads: int, k_dim: int, v_dim: int) -> KvGrid | None:
        """The grid of a layer's keys and values, if the file has one below `prefix`."""

    def gate_up(self, prefix: str, width: int, *, fused: bool) -> list[Rows]:
        """gate and up below `prefix` as the file has them; if it lacks both, as the family writes them."""
        if prefix + "gate_up_proj.weight" in self.names:
            fused = True
        elif prefix + "gate_proj.weight" in self.names or prefix + "up_proj.weight" in self.names:
            fused = False
        if fused:
            return [Rows(prefix + "gate_up_proj", 2 * width, stacked=2)]
        return [Rows(prefix + "gate_proj", width), Rows(prefix + "up_proj", width)]

    def packed(self, prefix: str) -> bool:
        """Whether the experts below `prefix` are stored as two 3-D tensors."""
        return prefix + "gate_up_proj" in self.names or prefix + "down_proj" in self.names


class Survey(Source):
    """Notes the names and shapes, reads nothing."""

    def __init__(self, names: Collection[str]) -> None:
        super().__init__(names)
        self.expected: dict[str, tuple[int, ...]] = {}

    def linear(
        self, rows: Sequence[Rows], width: int, *, bias: bool = False, role: Role = "linear", cut: Cut = "none"
    ) -> Any:
        """Note the modules' weights and biases, whole."""
        for module, height, *_ in rows:
            self.expected[module + ".weight"] = (height, width)
            if bias:
                self.expected[module + ".bias"] = (height,)

    def vector(self, name: str, width: int) -> Any:
        """Note one vector."""
        self.expected[name] = (width,)

    def experts(self, prefix: str, count: int, hidden: int, width: int) -> Any:
        """Note either form."""
        if self.packed(prefix):
            self.expected[prefix + "gate_up_proj"] = (count, 2 * width, hidden)
            self.expected[prefix + "down_proj"] = (count, hidden, width)
            return
        for expert in range(count):
            self.expected[f"{prefix}{expert}.gate_proj.weight"] = (width, hidden)
            self.expected[f"{prefix}{expert}.up_proj.weight"] = (width, hidden)
            self.expected[f"{prefix}{expert}.down_proj.weight"] = (hidden, width)

    def kv_grid(self, prefix: str, heads: int, k_dim: int, v_dim: int) -> KvGrid | None:
        """Note its four vectors if there is one of them."""
        if any(prefix + name in self.names for name in KV_SCALES):
            for name, dim in zip(KV_SCALES, (k_dim, k_dim, v_dim, v_dim), strict=True):
                self.expected[prefix + name] = (heads * dim,)
        return None


class Packer(Source):
    """Hands the tensors, or one rank's part of them, to a backend, which reads them while it packs.

    `role_of(weights, role)` tells of the matrices of one projection whether they stay more precise than the model.
    """

    def __init__(self, checkpoint: CheckpointLike, ops: Ops, role_of: RoleOf, placement: Placement = ALONE) -> None:
        super().__init__(checkpoint.names())
        self.checkpoint = checkpoint
        self.ops = ops
        self.placement = placement
        self._role_of = role_of

    def linear(
        self, rows: Sequence[Rows], width: int, *, bias: bool = False, role: Role = "linear", cut: Cut = "none"
    ) -> Any:
        """`pack_linear`. Where the columns are cut the ranks' outputs are added up, so only the first has the bias."""
        weights = [self.checkpoint.weight(module.module + ".weight") for module in rows]
        bias = bias and (cut != "columns" or self.placement.tp_rank == 0)
        biases = [self.checkpoint.weight(module.module + ".bias") for module in rows] if bias else []
        role = self._role_of(weights, role)
        if self.placement.tp > 1 and cut == "rows":
            held = [module.held(self.placement) for module in rows]
            weights, biases = rows_of(weights, held), rows_of(biases, held)
        elif self.placement.tp > 1 and cut == "columns":
            weights = [self._columns(weight) for weight in weights]
        return self.ops.pack_linear(weights, biases, role)

    def vector(self, name: str, width: int) -> Any:
        """`upload`; every rank has all of it."""
        values: FloatArray = self.checkpoint.weight(name).float32()
        return self.ops.upload(values)

    def experts(self, prefix: str, count: int, hidden: int, width: int) -> Any:
        """`pack_experts` of the experts that this rank holds, or of its columns of all; nothing is stacked here."""
        weight, held = self.checkpoint.weight, share(count, self.placement.ep, self.placement.ep_rank)
        gate_up: list[list[Weight]]
        if self.packed(prefix):
            modules = [Rows(prefix + "gate_up_proj", 2 * width, stacked=2)]
            gate_up = [[weight(prefix + "gate_up_proj", e)] for e in held]
            down = [weight(prefix + "down_proj", e) for e in held]
        else:
            modules = [Rows(f"{prefix}{part}", width) for part in ("gate_proj", "up_proj")]
            gate_up = [[weight(f"{prefix}{e}.gate_proj.weight"), weight(f"{prefix}{e}.up_proj.weight")] for e in held]
            down = [weight(f"{prefix}{e}.down_proj.weight") for e in held]
        roles = self._role_of([part for parts in gate_up for part in parts], "linear"), self._role_of(down, "linear")
        if self.placement.tp > 1 and self.placement.ep == 1:
            rows = [module.held(self.placement) for module in modules]
            gate_up, down = [rows_of(parts, rows) for parts in gate_up], [self._columns(part) for part in down]
        return self.ops.pack_experts(gate_up, down, roles)

    def kv_grid(self, prefix: str, heads: int, k_dim: int, v_dim: int) -> KvGrid | None:
        """Read the numbers of the heads that this rank holds."""
        if prefix + KV_SCALES[0] not in self.names:
            return None
        held = share(heads, self.placement.tp, self.placement.tp_rank)
        values = [self.checkpoint.weight(prefix + name).float32() for name in KV_SCALES]
        shaped = [
            v.reshape(heads, dim)[held.start : held.stop]
            for v, dim in zip(values, (k_dim, k_dim, v_dim, v_dim), strict=True)
        ]
        return KvGrid(*shaped)

    def _columns(self, weight: Weight) -> Weight:
        columns = share(weight.shape[1], self.placement.tp, self.placement.tp_rank)
        return Columns(weight, columns, corrects=self.placement.tp_rank == 0)


def rows_of(weights: Sequence[Weight], held: Sequence[Sequence[range]]) -> list[Weight]:
    """The rows `held[i]` of each weight or bias `i`, in order."""
    return [
        weight.rows(rows.start, rows.stop)
        for weight, ranges in zip(weights, held, strict=bool(weights))
        for rows in ranges
    ]
