"""Decode steps as graphs: padded to a few sizes, captured once each, replayed with new inputs in the same memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch

from gallium.backends.torch.plan import TorchPlan
from gallium.ops.handles import Step

if TYPE_CHECKING:
    from gallium.backends.torch.ops import TorchOps

Forward: TypeAlias = Callable[[Any], Any]
"""From a plan to the logits of its logit rows."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """One captured size: the graph, the plan whose tensors it reads, and the tensor that it writes."""

    graph: Any
    plan: TorchPlan
    output: torch.Tensor  # [sequences, vocab]


class GraphedStep:
    """What `compile_step` returns where steps can be captured: decode steps are replayed, all others run eagerly.

    A decode step has one token per sequence. It is padded with sequences that own no block, which write to the dummy
    page and read nothing else, up to the next of `sizes`, and its block table to a width that `table_width` chooses.
    Each pair of size and width is captured when it is first met: the step runs once eagerly, which is its result and
    makes what is kept on the host (slots, rope tables); then `capture` records the same call, with everything that is
    computed on the device inside. From then on `plan.load` writes a step into the tensors that the graph reads.

    To extend it for another kind of graph, override

    * `capture(run)`: record `run()` without executing it -> (graph, the tensor that it returned);
    * `update(recorded)`: before a replay, with the plan already loaded: give the graph what is not in device memory,
      such as lengths that a kernel takes from the host (`recorded.plan.step` has them, padding included);
    * `replay(recorded)`: run it, on the current stream;
    * `table_width(blocks)` and `most_keys`: how wide block tables are, and which steps are too large.

    and name the class in the ops' `step_graphs`. The plan is made by `ops.fixed_plan`.
    """

    most_keys: int | None = 1 << 19
    """Sequences times the longest context of a captured step; beyond it gathering all of them side by side wastes
    too much, and the step runs eagerly. None: no limit."""

    def __init__(self, ops: TorchOps, forward: Forward, sizes: Sequence[int]) -> None:
        self.ops = ops
        self.forward = forward
        self.sizes = tuple(sorted(set(sizes)))
        self.recorded: dict[tuple[int, int], Recorded] = {}

    def __call__(self, step: Step) -> Any:
        """The step's logits; the caller may keep them."""
        size = self.size_of(step)
        if size is None:
            return self.forward(self.ops.plan(step))
        live = len(step.context_lens)
        padded = pad(step, size, self.table_width(used_blocks(step)))
        key = padded.block_tables.shape
        recorded = self.recorded.get(key)
        if recorded is None:
            logits = self._record(key, padded, live)
        else:
            recorded.plan.load(padded, live)
            self.update(recorded)
            self.replay(recorded)
            logits = recorded.output
        return self._rows(logits, step)

    def size_of(self, step: Step) -> int | None:
        """To how many sequences this step is padded; None: it runs eagerly."""
        seqs = len(step.context_lens)
        if not seqs or len(step.token_ids) != seqs or (np.diff(step.query_start) != 1).any():
            return None
        size = next((size for size in self.sizes if size >= seqs), None)
        if size is None or self.most_keys is None:
            return size
        return size if size * int(step.context_lens.max()) <= self.most_keys else None

    def table_width(self, blocks: int) -> int:
        """Columns of the block table for so many used ones: the next power of two, so that there are few widths."""
        return 1 << max(0, blocks - 1).bit_length()

    def capture(self, run: Callable[[], torch.Tensor]) -> tuple[Any, torch.Tensor]:
        """Record one call -> (graph, what the call returned)."""
        pool = next((recorded.graph.pool() for recorded in self.recorded.values()), None)
        graph = torch.accelerator.Graph(pool=pool)
        with torch.Stream(device=self.ops.device), graph:
            output = run()
        return graph, output

    def update(self, recorded: Recorded) -> None:
        """Nothing: all that changes between steps is in device memory."""

    def replay(self, recorded: Recorded) -> None:
        """Run the graph."""
        recorded.graph.replay()

    def _record(self, key: tuple[int, int], padded: Step, live: int) -> torch.Tensor:
        plan = self.ops.fixed_plan(padded, live)
        logits: torch.Tensor = self.forward(plan)
        plan.forget_derived()
        graph, output = self.capture(lambda: self.forward(plan))
        self.recorded[key] = Recorded(graph, plan, output)
        return logits

    def _rows(self, logits: torch.Tensor, step: Step) -> torch.Tensor:
        """The logit rows of the step that was asked for, in memory of their own."""
        rows = step.logit_rows
        if np.array_equal(rows, np.arange(len(rows))):
            return logits[: len(rows)].clone()
        return logits.index_select(0, torch.from_numpy(rows.astype(np.int64)).to(logits.device))


def can_capture(device: torch.device) -> bool:
    """Whether PyTorch can capture graphs on this device."""
    if device.type == "cpu" or not hasattr(torch.accelerator, "Graph"):
        return False
    try:
        torch.accelerator.Graph()
    except RuntimeError:
        return False
    return True


def used_blocks(step: Step) -> int:
    """Columns of the block table that some sequence has a block in."""
    return int((step.block_tables >= 0).sum(axis=1).max(initial=0))


def pad(step: Step, size: int, width: int) -> Step:
    """The decode step with `size` sequences and logit rows, and `width` columns of blocks.

    A padding sequence has token 0 at position 0 and no block.
    """
    more = size - len(step.context_lens)
    tables = np.full((size, width), -1, np.int32)
    kept = min(width, step.block_tables.shape[1])
    tables[: len(step.block_tables), :kept] = step.block_tables[:, :kept]
    return Step(
        token_ids=np.pad(step.token_ids, (0, more)),
        positions=np.pad(step.positions, (0, more)),
        query_start=np.arange(size + 1, dtype=np.int32),
        context_lens=np.pad(step.context_lens, (0, more), constant_values=1),
        block_tables=tables,
        logit_rows=np.arange(size, dtype=np.int32),
    )
