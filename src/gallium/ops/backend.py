"""Find, explain and open hardware. Probing never raises and never starts a device."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Literal, Protocol

from gallium.errors import BackendError
from gallium.ops.handles import ModelFacts, Precision
from gallium.ops.interface import Ops

API_VERSION = 1
ENTRY_POINT_GROUP = "gallium.backends"
Status = Literal["verified", "unverified", "unsupported"]


@dataclass(frozen=True, slots=True)
class Probe:
    """Whether a backend can be used on this machine."""

    available: bool
    emulated: bool
    devices: int
    reason: str = ""  # why not, in words a user can act on


@dataclass(frozen=True, slots=True)
class Support:
    """What a backend says of one op for one model and precision."""

    op: str
    status: Status
    reason: str  # "kernel ga_rms_norm (avx512)", "composed of add + rms_norm", "needs head_dim % 16 == 0"


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

    def open(self, model: ModelFacts, precision: Precision, threads: int | None = None) -> Ops:
        """Ops for one model. Raises BackendError with the reasons when `support` has an unsupported op."""
        ...


def installed() -> list[Backend]:
    """All backends that the environment offers, built-ins included, highest priority first.

    Raises BackendError for a plug-in that does not import or speaks another API version.
    """
    found: list[Backend] = []
    for point in entry_points(group=ENTRY_POINT_GROUP):
        try:
            backend: Backend = point.load()
        except Exception as cause:
            raise BackendError(f"backend plug-in {point.name!r} ({point.value}) does not load: {cause}") from cause
        if backend.api_version != API_VERSION:
            raise BackendError(
                f"backend plug-in {point.name!r} speaks API version {backend.api_version}, Gallium speaks "
                f"{API_VERSION}: install matching versions."
            )
        found.append(backend)
    return sorted(found, key=lambda b: (-b.priority, b.name))


def choose(name: str, backends: Iterable[Backend]) -> Backend:
    """The backend called `name`, or for "auto" the best real one. Never falls back: a named one is used or refused."""
    known = sorted(backends, key=lambda b: -b.priority)
    if name == "auto":
        for backend in known:
            probe = backend.probe()
            if backend.priority >= 0 and probe.available and not probe.emulated:
                return backend
        raise BackendError("no usable backend is installed: `gallium doctor` lists what was found and why not.")
    for backend in known:
        if backend.name == name:
            probe = backend.probe()
            if not probe.available:
                raise BackendError(f"backend {name!r} was asked for but is not usable: {probe.reason}")
            return backend
    raise BackendError(f"unknown backend {name!r}; installed: {', '.join(b.name for b in known)}.")
