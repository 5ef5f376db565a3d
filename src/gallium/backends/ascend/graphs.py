"""Decode steps as NPUGraphs: attention takes context lengths from the host, so each replay is preceded by an update."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch_npu

from gallium.backends.torch.graphs import Forward, GraphedStep, Recorded

if TYPE_CHECKING:
    from gallium.backends.ascend.ops import AscendOps

NARROWEST_TABLE = 16  # columns of block tables: an attention kernel reads no more of them than it needs


class NpuGraphedStep(GraphedStep):
    """GraphedStep with torch_npu's task update.

    torch_npu records every attention call of a capture as a group of tasks behind an event. `NPUGraph.update` replaces
    their lengths on a stream of its own and then sets the events, for which the replayed graph waits.
    """

    def __init__(self, ops: AscendOps, forward: Forward, sizes: Sequence[int]) -> None:
        super().__init__(ops, forward, sizes)
        self.fused = ops.fuses_decoding
        if self.fused:
            self.most_keys = None  # nothing is gathered
        self.finished: Any = torch_npu.npu.Event()  # behind the last replay

    def table_width(self, blocks: int) -> int:
        """Few widths, because each is a graph."""
        width = super().table_width(blocks)
        return max(width, NARROWEST_TABLE) if self.fused else width

    def capture(self, run: Callable[[], torch.Tensor]) -> tuple[Any, torch.Tensor]:
        """Record one call in an NPUGraph, in the memory pool of the others."""
        pool = next((recorded.graph.pool() for recorded in self.recorded.values()), None)
        graph = torch_npu.npu.NPUGraph()
        with torch_npu.npu.graph(graph, pool=pool, auto_dispatch_capture=True):
            output = run()
        return graph, output

    def update(self, recorded: Recorded) -> None:
        """Give the attention calls the step's context lengths; those of a replay that still runs must not change."""
        self.finished.synchronize()
        recorded.graph.update(cpu_update_input=[{"actual_seq_lengths_kv": recorded.plan.step.context_lens.tolist()}])

    def replay(self, recorded: Recorded) -> None:
        """Run the graph, and mark its end."""
        recorded.graph.replay()
        self.finished.record()
