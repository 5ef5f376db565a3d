"""One step on the device: the model's logits, the drawn tokens, and raw logits where they are wanted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from gallium.ops.handles import FloatArray, KvCache, SamplerInputs, Step, Tensor
from gallium.ops.interface import Ops


@dataclass(frozen=True, slots=True)
class StepResult:
    """What came back from the device."""

    tokens: list[int]  # one per drawn row
    logits: FloatArray | None  # [rows, vocab], if asked for


class Runner(Protocol):
    """What the loop needs of a model; tests have a pretend one."""

    def run(self, step: Step, how: SamplerInputs | None, want_logits: bool) -> StepResult:
        """Compute one step; draw from its first rows as `how` says (None: no row is drawn from)."""
        ...


class Forward(Protocol):
    """A loaded model."""

    def forward(self, plan: Any, caches: Sequence[KvCache]) -> Tensor:
        """Logits of the plan's logit rows."""
        ...


class ModelRunner:
    """A model on its backend."""

    def __init__(self, model: Forward, ops: Ops, caches: Sequence[KvCache]) -> None:
        self._ops = ops
        self._forward = ops.compile_step(lambda plan: model.forward(plan, caches))

    def run(self, step: Step, how: SamplerInputs | None, want_logits: bool) -> StepResult:
        """See Runner."""
        logits = self._forward(step)
        tokens: list[int] = []
        if how is not None:
            rows = len(how.seed)
            drawn = logits if rows == logits.shape[0] else logits[:rows]
            tokens = self._ops.download(self._ops.sample(drawn, how)).tolist()
        return StepResult(tokens, self._ops.download(logits) if want_logits else None)
