"""What a backend may tell of the machine it runs on: facts in words, and measured limits. Both are optional."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from gallium.ops.handles import Experts, Linear, Precision


class Fact(NamedTuple):
    """One line of a report."""

    name: str  # "chip", "cores", "instruction level", …
    value: str  # with the reason where there was a choice


class Limits(NamedTuple):
    """What the machine can do at best, measured by the backend with the threads that its kernels use."""

    read_bytes_per_s: float
    operations_per_s: Mapping[Precision, float]  # multiplications and additions, of a product in this precision


@runtime_checkable
class Describes(Protocol):
    """A backend that knows its machine."""

    def describe(self) -> Sequence[Fact]:
        """Facts in the order of the report; starts nothing and takes no time worth mentioning."""
        ...


@runtime_checkable
class Measures(Protocol):
    """A backend that can measure its machine."""

    def measure(self, threads: int | None = None) -> Limits:
        """Takes about a second. The machine should be idle."""
        ...


@runtime_checkable
class KnowsWeightBytes(Protocol):
    """Ops that count what they have packed."""

    @property
    def weight_bytes(self) -> int:
        """Bytes of all packed weights."""
        ...


@runtime_checkable
class KnowsFreeMemory(Protocol):
    """Ops whose device may have memory of its own."""

    def free_bytes(self) -> int | None:
        """Bytes that weights and KV cache can still get on the device; None: it uses the host's memory."""
        ...


class Stored(NamedTuple):
    """A packed weight, all matrices of its handle together."""

    num_bytes: int
    precision: Precision  # in which its products are computed


@runtime_checkable
class KnowsStored(Protocol):
    """Ops that know how they have packed a weight."""

    def stored(self, weight: Linear | Experts) -> Stored:
        """What one handle takes."""
        ...


@runtime_checkable
class KnowsActivationBytes(Protocol):
    """Ops that know how wide their activations are."""

    @property
    def activation_bytes(self) -> int:
        """Bytes of one value."""
        ...


@runtime_checkable
class Waits(Protocol):
    """Ops whose device computes on its own while the host goes on."""

    def wait(self) -> None:
        """Return when all that was asked for is done."""
        ...
