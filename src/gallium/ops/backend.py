"""Find, explain and open hardware. Probing never raises and never starts a device."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, runtime_checkable

from gallium.errors import BackendError, UsageError
from gallium.ops.entry_points import EntryPoint, entry_points
from gallium.ops.handles import ALONE, KvPrecision, ModelFacts, Placement, Precision
from gallium.ops.interface import Ops, op_names

API_VERSION = 2
ENTRY_POINT_GROUP = "gallium.backends"
Status = Literal["verified", "unverified", "unsupported"]


class Probe(NamedTuple):
    """Whether a backend can be used on this machine."""

    available: bool
    emulated: bool
    devices: int
    reason: str = ""  # why not, in words a user can act on


class Support(NamedTuple):
    """What a backend says of one op for one model and precision."""

    op: str
    status: Status
    reason: str  # "kernel ga_rms_norm (avx512)", "composed of add + rms_norm", "needs head_dim % 16 == 0"


class KvSupport(NamedTuple):
    """What a backend says of one precision of the KV cache for one model."""

    precision: KvPrecision
    refusal: str = ""  # why not, in words a user can act on; empty: it can be chosen


class Backend(Protocol):
    """What the entry-point group `gallium.backends` yields."""

    name: str  # "cpu", "reference", …
    priority: int  # for "auto"; the CPU has 0 and is always there; negative is never chosen by "auto"
    api_version: int

    def probe(self) -> Probe:
        """Look, without starting anything."""
        ...

    def support(self, model: ModelFacts, precision: Precision) -> list[Support]:
        """Answer for every op before anything is allocated."""
        ...

    def open(
        self, model: ModelFacts, precision: Precision, threads: int | None = None, placement: Placement = ALONE
    ) -> Ops:
        """Ops for one model, or for one rank's part of it.

        Raises BackendError with the reasons when `support` has an unsupported op, or when the placement has several
        ranks and the backend cannot join them.
        """
        ...


@runtime_checkable
class TellsKv(Protocol):
    """A backend that knows which precisions its KV cache can have."""

    def kv_support(self, model: ModelFacts, precision: Precision) -> list[KvSupport]:
        """Every precision of the cache of a model whose weights have `precision`; first what "auto" takes.

        All others are refused, unless the backend also `ChoosesKv`.
        """
        ...


@runtime_checkable
class ChoosesKv(TellsKv, Protocol):
    """A backend whose KV cache can have several precisions."""

    def open_with_kv(
        self,
        model: ModelFacts,
        precision: Precision,
        kv_precision: KvPrecision,
        threads: int | None = None,
        placement: Placement = ALONE,
    ) -> Ops:
        """As `Backend.open`, with caches of a precision that `kv_support` does not refuse."""
        ...


def open_ops(
    backend: Backend,
    model: ModelFacts,
    precision: Precision,
    kv_precision: KvPrecision | Literal["auto"] = "auto",
    threads: int | None = None,
    placement: Placement = ALONE,
) -> Ops:
    """`Backend.open` with caches of a chosen precision. Raises BackendError where the backend does not have it."""
    if kv_precision == "auto":
        return backend.open(model, precision, threads, placement)
    if not isinstance(backend, TellsKv):
        raise BackendError(
            f"the KV cache of backend {backend.name!r} has one precision only, which --kv-precision auto takes."
        )
    known = {row.precision: row.refusal for row in backend.kv_support(model, precision)}
    refusal = known.get(kv_precision, f"it has {', '.join(name for name, why in known.items() if not why)}")
    if refusal:
        raise BackendError(f"backend {backend.name!r} has no KV cache in {kv_precision} for this model: {refusal}.")
    if isinstance(backend, ChoosesKv):
        return backend.open_with_kv(model, precision, kv_precision, threads, placement)
    return backend.open(model, precision, threads, placement)


@dataclass
class Unloadable:
    """The place of a plug-in that cannot be used: it is listed with the reason, and refused when it is asked for."""

    name: str
    reason: str
    priority: int = -1
    api_version: int = API_VERSION

    def probe(self) -> Probe:
        """Never usable."""
        return Probe(available=False, emulated=False, devices=0, reason=self.reason)

    def support(self, model: ModelFacts, precision: Precision) -> list[Support]:
        """No op."""
        return [Support(op, "unsupported", self.reason) for op in op_names()]

    def open(
        self, model: ModelFacts, precision: Precision, threads: int | None = None, placement: Placement = ALONE
    ) -> Ops:
        """Raises BackendError with the reason."""
        raise BackendError(self.reason)


def installed() -> list[Backend]:
    """All backends that the environment offers, built-ins included, highest priority first.

    A plug-in that does not import, or speaks another API version, is there as Unloadable: it must not keep the others
    from working.
    """
    found = [_loaded(point) for point in entry_points(ENTRY_POINT_GROUP)]
    return sorted(found, key=lambda b: (-b.priority, b.name))


def find(name: str) -> Backend:
    """`choose` among those that are installed; if one is named, no other one's code is loaded."""
    points = [point for point in entry_points(ENTRY_POINT_GROUP) if point.name == name]
    return choose(name, [_loaded(point) for point in points] if points else installed())


def _loaded(point: EntryPoint) -> Backend:
    try:
        backend: Backend = point.load()
        version = backend.api_version
    except Exception as cause:
        reason = f"the plug-in {point.value} does not load: {type(cause).__name__}: {cause}"
        return Unloadable(point.name, reason)
    if version != API_VERSION:
        reason = f"the plug-in speaks API version {version}, Gallium speaks {API_VERSION}: install matching versions."
        return Unloadable(point.name, reason)
    return backend


def choose(name: str, backends: Iterable[Backend]) -> Backend:
    """The backend called `name`, or for "auto" the best real one. Never falls back: a named one is used or refused."""
    known = sorted(backends, key=lambda b: -b.priority)
    if name == "auto":
        for backend in known:
            probe = backend.probe()
            if backend.priority >= 0 and probe.available and not probe.emulated:
                return backend
        emulated = [b.name for b in known if b.probe().available and b.probe().emulated]
        hint = f" Emulated ones must be named: --backend {' or '.join(emulated)}." if emulated else ""
        raise BackendError(f"no usable backend is installed: `gallium doctor` lists what was found and why not.{hint}")
    backend = named(name, known)
    probe = backend.probe()
    if not probe.available:
        raise BackendError(f"backend {name!r} was asked for but is not usable: {probe.reason}")
    return backend


def named(name: str, backends: Iterable[Backend]) -> Backend:
    """The backend called `name`, usable or not. Raises UsageError if there is none."""
    known = {backend.name: backend for backend in backends}
    if name not in known:
        raise UsageError(f"unknown backend {name!r}; installed: {', '.join(known)}.")
    return known[name]
