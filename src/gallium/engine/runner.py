"""One step on the devices: the model's logits, the drawn tokens, and raw logits where they are wanted."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from gallium.errors import RankLost
from gallium.ops.handles import FloatArray, KvCache, SamplerInputs, Step, Tensor
from gallium.ops.interface import Ops

SMALL_SIZES = (1, 2, 4)  # decode batches below SIZE_GAP that get a graph of their own
SIZE_GAP = 8


class LaneStep(NamedTuple):
    """What one lane computes in a step."""

    step: Step
    how: SamplerInputs | None  # how its first logit rows are drawn from; None: no row is
    want_logits: bool


class StepResult(NamedTuple):
    """What came back from the device."""

    tokens: list[int]  # one per drawn row
    logits: FloatArray | None  # [rows, vocab], if asked for


NOTHING = StepResult([], None)
"""The result of a lane without work."""


class Runner(ABC):
    """What the loop needs of a model; tests have a pretend one. Only `run` matters to a model in this process."""

    @abstractmethod
    def run(self, lanes: Sequence[LaneStep | None]) -> list[StepResult]:
        """Compute one step of every lane; None is a lane without work. Raises RankLost if a restart can help."""

    @property
    def lost(self) -> RankLost | None:
        """Why no further step can run before a restart, or None."""
        return None

    def watch(self, notify: Callable[[], None]) -> None:  # noqa: B027 - nothing to watch in one process
        """Call `notify` from any thread as soon as `lost` is set."""

    def restart(self, why: RankLost) -> None:
        """Start again with empty caches. Raises EngineDead if that does not work, or works too often."""
        raise why

    def interrupt(self) -> None:  # noqa: B027
        """Let `run` or `restart`, in another thread, end at once with RankLost."""

    def close(self) -> None:  # noqa: B027
        """Give back what the runner holds outside this process. Safe to call again."""


class Forward(Protocol):
    """A loaded model."""

    def forward(self, plan: Any, caches: Sequence[KvCache]) -> Tensor:
        """Logits of the plan's logit rows."""
        ...


class ModelRunner(Runner):
    """A model on its backend in this process: one lane.

    `decode_sizes` are the numbers of sequences whose decode steps may be captured.
    """

    def __init__(self, model: Forward, ops: Ops, caches: Sequence[KvCache], decode_sizes: tuple[int, ...] = ()) -> None:
        self._ops = ops
        self._forward = ops.compile_step(lambda plan: model.forward(plan, caches), decode_sizes)

    def run(self, lanes: Sequence[LaneStep | None]) -> list[StepResult]:
        """See Runner."""
        return [NOTHING if lane is None else self.run_lane(lane) for lane in lanes]

    def run_lane(self, lane: LaneStep) -> StepResult:
        """Compute one step and draw from it."""
        logits = self._forward(lane.step)
        tokens: list[int] = []
        if lane.how is not None:
            rows = len(lane.how.seed)
            drawn = logits if rows == logits.shape[0] else logits[:rows]
            tokens = self._ops.download(self._ops.sample(drawn, lane.how)).tolist()
        return StepResult(tokens, self._ops.download(logits) if lane.want_logits else None)

    def take_part(self, step: Step) -> None:
        """Compute one step whose result another rank reports."""
        self._forward(step)


def decode_sizes(max_batch: int) -> tuple[int, ...]:
    """The numbers of sequences that get a graph of their own: 1, 2, 4, then every 8th, and the largest.

    A batch between two of them is padded to the next, which wastes less than 8 rows.
    """
    return tuple(
        sorted({n for n in (*SMALL_SIZES, *range(SIZE_GAP, max_batch, SIZE_GAP), max_batch) if n <= max_batch})
    )
