"""How a layer names what it needs. The description is read twice: to check the file, then to pack it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias

from gallium.ops.handles import FloatArray, Role, Weight
from gallium.ops.interface import Ops

Sensitive: TypeAlias = Callable[[Sequence[Weight]], bool]


class Rows(NamedTuple):
    """A module whose `weight` is `height` output rows of a projection."""

    module: str
    height: int


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
    def linear(self, rows: Sequence[Rows], width: int, *, bias: bool = False, role: Role = "linear") -> Any:
        """One projection, its rows stacked from modules (each `[height, width]`, bias `[height]`)."""

    @abstractmethod
    def vector(self, name: str, width: int) -> Any:
        """A float32 vector `[width]` on the device: a norm's gain, a router's bias."""

    @abstractmethod
    def experts(self, prefix: str, count: int, hidden: int, width: int) -> Any:
        """The routed experts below `prefix`, whether they are stored packed or one by one."""

    def gate_up(self, prefix: str, width: int, *, fused: bool) -> list[Rows]:
        """gate and up below `prefix` as the file has them; if it lacks both, as the family writes them."""
        if prefix + "gate_up_proj.weight" in self.names:
            fused = True
        elif prefix + "gate_proj.weight" in self.names or prefix + "up_proj.weight" in self.names:
            fused = False
        if fused:
            return [Rows(prefix + "gate_up_proj", 2 * width)]
        return [Rows(prefix + "gate_proj", width), Rows(prefix + "up_proj", width)]

    def packed(self, prefix: str) -> bool:
        """Whether the experts below `prefix` are stored as two 3-D tensors."""
        return prefix + "gate_up_proj" in self.names or prefix + "down_proj" in self.names


class Survey(Source):
    """Notes the names and shapes, reads nothing."""

    def __init__(self, names: Collection[str]) -> None:
        super().__init__(names)
        self.expected: dict[str, tuple[int, ...]] = {}

    def linear(self, rows: Sequence[Rows], width: int, *, bias: bool = False, role: Role = "linear") -> Any:
        """Note the modules' weights and biases."""
        for module, count in rows:
            self.expected[module + ".weight"] = (count, width)
            if bias:
                self.expected[module + ".bias"] = (count,)

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


class Packer(Source):
    """Hands the tensors to a backend, which reads them while it packs.

    `sensitive(weights)` tells of the matrices of one projection that they should stay more precise than the model.
    """

    def __init__(self, checkpoint: CheckpointLike, ops: Ops, sensitive: Sensitive) -> None:
        super().__init__(checkpoint.names())
        self.checkpoint = checkpoint
        self.ops = ops
        self._sensitive = sensitive

    def _role(self, weights: Sequence[Weight], role: Role = "linear") -> Role:
        return "sensitive" if role == "linear" and self._sensitive(weights) else role

    def linear(self, rows: Sequence[Rows], width: int, *, bias: bool = False, role: Role = "linear") -> Any:
        """`pack_linear`."""
        weights = [self.checkpoint.weight(module + ".weight") for module, _ in rows]
        biases = [self.checkpoint.weight(module + ".bias") for module, _ in rows] if bias else []
        return self.ops.pack_linear(weights, biases, self._role(weights, role))

    def vector(self, name: str, width: int) -> Any:
        """`upload`."""
        values: FloatArray = self.checkpoint.weight(name).float32()
        return self.ops.upload(values)

    def experts(self, prefix: str, count: int, hidden: int, width: int) -> Any:
        """`pack_experts`; nothing is stacked here."""
        weight = self.checkpoint.weight
        gate_up: list[list[Weight]]
        if self.packed(prefix):
            gate_up = [[weight(prefix + "gate_up_proj", e)] for e in range(count)]
            down = [weight(prefix + "down_proj", e) for e in range(count)]
        else:
            gate_up = [
                [weight(f"{prefix}{e}.gate_proj.weight"), weight(f"{prefix}{e}.up_proj.weight")] for e in range(count)
            ]
            down = [weight(f"{prefix}{e}.down_proj.weight") for e in range(count)]
        roles = self._role([part for parts in gate_up for part in parts]), self._role(down)
        return self.ops.pack_experts(gate_up, down, roles)
