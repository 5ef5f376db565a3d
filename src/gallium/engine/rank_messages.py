"""What the engine and its rank processes say to each other, as pickles over a socket that only they have.

The engine: Order, once loaded MakeCaches, then a LaneStep per step, or None for a step in which this rank has no work
of its own; the end of the connection ends the rank. A rank: Progress while it loads, Loaded, Ready, then a StepResult
per LaneStep from the first rank of each group; Failed at any time.
"""

from __future__ import annotations

from dataclasses import dataclass

from gallium import errors
from gallium.errors import GalliumError
from gallium.ops.backend import Support
from gallium.ops.handles import KvPrecision, Placement, Precision
from gallium.settings import EngineSettings


@dataclass(frozen=True, slots=True)
class Order:
    """What a rank loads."""

    path: str  # of the checkpoint
    backend: str
    settings: EngineSettings
    placement: Placement


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a rank has come with the weights."""

    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Loaded:
    """A rank has its part of the model."""

    precision: Precision
    support: list[Support]
    block_size: int  # tokens per KV block
    block_bytes: int  # of one KV block in all layers
    free_bytes: int | None  # on its device, for the KV cache; None: it uses the host's memory
    kv_precision: KvPrecision | None = None  # what the cache holds, where the backend tells


@dataclass(frozen=True, slots=True)
class MakeCaches:
    """The size of the KV cache, the same on all ranks."""

    num_blocks: int
    block_size: int


@dataclass(frozen=True, slots=True)
class Ready:
    """A rank can run steps."""


@dataclass(frozen=True, slots=True)
class Failed:
    """A rank cannot go on."""

    kind: str  # the error's class
    text: str
    trace: str  # for the log; "" for errors that are meant for the user

    @classmethod
    def of(cls, error: BaseException, trace: str) -> Failed:
        """An error as a message."""
        deliberate = isinstance(error, GalliumError)
        return cls(type(error).__name__, str(error), "" if deliberate else trace)

    @property
    def reason(self) -> str:
        """The error in words."""
        return self.text.rstrip(".") if not self.trace else f"{self.kind}: {self.text}"

    def error(self, rank: int) -> GalliumError | None:
        """The same error, naming the rank, if it is one that is meant for the user."""
        known = getattr(errors, self.kind, None)
        if self.trace or not (isinstance(known, type) and issubclass(known, GalliumError)):
            return None
        return known(f"rank {rank}: {self.text}")
