"""Packed weights outside a backend: what it gives out to be stored in a file, and how it gets them back.

A backend that keeps its layout in files has `export`. What it exported comes back as weights of the storage "packed",
which its `pack_*` ops take over as they are; to any other backend such a weight is an error that says so.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, NamedTuple, Protocol, runtime_checkable

from numpy.typing import NDArray

from gallium.errors import BackendError
from gallium.ops.handles import Experts, Linear, Precision, Weight
from gallium.ops.interface import Ops

STORAGE = "packed"
"""`Weight.storage` of what is part of a packed handle."""


class Exported(NamedTuple):
    """One handle, as its backend keeps it in memory."""

    facts: dict[str, Any]  # as JSON has it
    arrays: dict[str, NDArray[Any]]  # uint8, float32 or int32


@dataclass(frozen=True, slots=True)
class PackedHandle:
    """A stored handle: what `export` gave, with the weights that it was packed from."""

    layout: str  # whose layout, and which version of it
    precision: Precision  # that the backend was opened in
    parts: tuple[str, ...]  # the names of the weights, in the order in which they were packed
    facts: Mapping[str, Any]
    arrays: Mapping[str, NDArray[Any]]
    source: str = ""  # the model that was packed, for errors


@runtime_checkable
class StoresPacked(Protocol):
    """Ops whose handles can be stored, and taken over again."""

    layout: str

    def export(self, handle: Linear | Experts) -> Exported:
        """All that a handle is made of besides the bias; views of its memory."""
        ...


@runtime_checkable
class PackedWeight(Protocol):
    """A Weight that is a part of a stored handle. Neither its bytes nor its numbers can be read."""

    @property
    def handle(self) -> PackedHandle:
        """What it is a part of."""
        ...


def stored_handle(parts: Sequence[Weight]) -> PackedHandle | None:
    """The handle that was packed from just these weights; None if they are ordinary ones. Raises BackendError."""
    first = parts[0] if parts else None
    if not isinstance(first, PackedWeight):
        return None
    if tuple(part.name for part in parts) != first.handle.parts:
        raise BackendError(
            f"{', '.join(part.name for part in parts[:4])} are not what was packed together "
            f"({', '.join(first.handle.parts[:4])}): pack {first.handle.source} again."
        )
    return first.handle


def given_away(ops: Ops, take: Callable[[tuple[Weight, ...], Exported], None]) -> Ops:
    """The same `ops`, which now hands all that it packs to `take`; its handles are empty.

    Raises BackendError if the backend does not store what it packs.
    """
    if not isinstance(ops, StoresPacked):
        raise BackendError(f"backend {ops.name!r} does not keep packed weights in files.")
    export = ops.export

    def away(method: Callable[..., Any], parts_of: Callable[..., Sequence[Weight]]) -> Callable[..., Any]:
        @functools.wraps(method)
        def pack(*args: Any) -> Any:
            handle = method(*args)
            take(tuple(parts_of(*args)), export(handle))
            return replace(handle, data=None)

        return pack

    ways: dict[str, Callable[..., Sequence[Weight]]] = {
        "pack_linear": lambda parts, bias=(), role="linear": parts,
        "pack_heads": lambda weight: weight,
        "pack_experts": lambda gate_up, down, roles=(): [*chain.from_iterable(gate_up), *down],
    }
    for name, parts_of in ways.items():
        setattr(ops, name, away(getattr(ops, name), parts_of))
    return ops
