"""What the engine knows of a request: its sequences, and where each stands."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, TypeAlias

from gallium.errors import GalliumError
from gallium.types import Delta, SamplingParams

if TYPE_CHECKING:
    from gallium.engine.sampling import SamplingState
    from gallium.engine.speculate import Drafter
    from gallium.engine.stopping import Stopper
    from gallium.ops.handles import FloatArray

OnDelta: TypeAlias = Callable[[Delta | GalliumError], None]


class State(Enum):
    """Where a sequence stands. A preempted sequence is WAITING again."""

    HELD = "held"  # until the first choice of the same request has computed the prompt that all share
    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(slots=True, eq=False, kw_only=True)
class Sequence:
    """One run of tokens, as the scheduler sees it: counts and block numbers, no tensors."""

    arrival: tuple[int, int]  # (request number, choice): the order of service
    tokens: list[int]  # prompt, then output
    max_computed: int  # the most tokens it will ever have in the cache
    max_chunk: int = 2**31 - 1  # the most tokens it computes in one step
    reuse_prefix: bool = True
    lane: int = 0  # whose cache holds it
    state: State = State.WAITING
    prompt_len: int = 0
    num_computed: int = 0  # tokens whose keys and values are in the cache, or will be after the planned steps
    pending: int = 0  # tokens that planned steps will append
    block_table: array[int] = field(default_factory=lambda: array("i"))
    digests: list[bytes] = field(default_factory=list)  # names of the full blocks, see blocks.block_digest
    num_committed: int = 0  # tokens whose keys and values are in the cache now, for others to share
    cached_tokens: int | None = None  # prompt tokens found in the cache when it first ran
    preemptions: int = 0
    leader: Sequence | None = None  # the first choice of the same request

    def __post_init__(self) -> None:
        self.prompt_len = len(self.tokens)

    @property
    def remaining(self) -> int:
        """Tokens to compute before the next one can be drawn; 1 while decoding."""
        return min(len(self.tokens) + self.pending, self.max_computed) - self.num_computed


@dataclass(slots=True, eq=False)
class Request:
    """One submitted request and its `n` choices."""

    number: int
    params: SamplingParams
    on_delta: OnDelta
    choices: list[Choice] = field(default_factory=list)
    open_choices: int = 0


@dataclass(slots=True)
class Reading:
    """How much of a choice's text a draft model has in its cache."""

    tokens: int = 0  # from the beginning
    epoch: int = -1  # the choice's preemptions when this was so
    checked: int = 0  # tokens that the draft model knows


@dataclass(slots=True, eq=False, kw_only=True)
class Choice(Sequence):
    """One answer being generated."""

    request: Request
    sampling: SamplingState
    stopper: Stopper
    drafter: Drafter | None = None
    reading: Reading = field(default_factory=Reading)

    @property
    def index(self) -> int:
        """Which of the request's choices."""
        return self.arrival[1]


@dataclass(slots=True, eq=False, kw_only=True)
class Scoring(Sequence):
    """A prompt whose logits are wanted, all of them, and no answer."""

    deliver: Callable[[FloatArray | GalliumError], None]
    rows: list[FloatArray] = field(default_factory=list)


Job: TypeAlias = Choice | Scoring
