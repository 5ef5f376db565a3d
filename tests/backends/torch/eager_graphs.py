"""Graphs for the CPU, where PyTorch captures none: a replay calls what was recorded and writes to the same memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tests.models.driving import Driver
from tests.models.memory_checkpoint import random_checkpoint
from tests.models.small_specs import spec_of
from tests.models.targets import Target

from gallium.backends.torch.graphs import GraphedStep, Recorded
from gallium.backends.torch.ops import TorchOps
from gallium.models.catalog import load_model
from gallium.models.decoder import Model

SIZES = (1, 2, 4, 8)


class EagerGraphs(GraphedStep):
    """Counts what it does."""

    made: EagerGraphs  # the last one

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.captures = self.replays = 0
        EagerGraphs.made = self

    def capture(self, run: Callable[[], torch.Tensor]) -> tuple[Any, torch.Tensor]:
        """Unlike a device's graph this runs when it is recorded, which writes the same keys and values again."""
        self.captures += 1
        output = run()
        return lambda: output.copy_(run()), output

    def replay(self, recorded: Recorded) -> None:
        self.replays += 1
        recorded.plan.forget_derived()  # a device computes them again within its graph
        recorded.graph()


def model_of(name: str, target: Target) -> Model:
    """A small random model on torch whose steps are recorded as EagerGraphs."""
    spec = spec_of(name)
    ops = target.open(spec)
    assert isinstance(ops, TorchOps)
    ops.step_graphs = EagerGraphs
    return load_model(random_checkpoint(spec), spec, ops)


class GraphDriver(Driver):
    """A Driver whose decode steps are replayed."""

    def __init__(self, model: Model, num_blocks: int = 64, block_size: int = 4) -> None:
        super().__init__(model, num_blocks, block_size)
        self.run = model.ops.compile_step(lambda plan: model.forward(plan, self.caches), SIZES)
