"""What each of two ranks of test_rank_models runs: a product that sums over the ranks itself, and captured steps."""

from __future__ import annotations

import sys
import traceback
from dataclasses import replace

import numpy as np
import torch
import torch.distributed as dist
from tests.models.driving import Driver
from tests.models.memory_checkpoint import random_checkpoint, weight
from tests.vnpu.ascend.models import wide_spec
from tests.vnpu.support import called

from gallium.backends.ascend import backend
from gallium.backends.ascend.graphs import NpuGraphedStep
from gallium.models.catalog import load_model
from gallium.models.decoder import Model
from gallium.models.sharding import local_spec
from gallium.ops.handles import Placement

ROWS, WIDTH, OUT = 300, 64, 48


def load(placement: Placement) -> Model:
    """One rank's part of a small glm in bfloat16."""
    spec = wide_spec("glm")
    ops = backend.open(local_spec(spec, placement).facts, "bfloat16", 1, placement)
    return load_model(random_checkpoint(spec), spec, ops, placement=placement)


def check_product_and_sum(model: Model, rank: int) -> None:
    """Many rows: one kernel, which talks to the other rank, if the chip has it; few rows: a product and a sum."""
    rng = np.random.default_rng(0)
    xs = [rng.integers(-3, 4, (ROWS, WIDTH)).astype(np.float32) for _ in range(2)]
    ws = [rng.integers(-3, 4, (OUT, WIDTH)).astype(np.float32) for _ in range(2)]
    total = sum(x @ w.T for x, w in zip(xs, ws, strict=True))
    packed = model.ops.pack_linear([weight(ws[rank])])
    has_one = model.ops.chip.has("npu_mm_all_reduce_base")  # type: ignore[attr-defined]
    for rows, fused in ((ROWS, has_one), (5, False), (0, False)):
        with called() as names:
            y = model.ops.row_linear(model.ops.upload(xs[rank][:rows]), packed)
        assert ("MatmulAllReduce" in names) == fused, names
        np.testing.assert_allclose(model.ops.download(y), total[:rows], rtol=2**-7, atol=2)


def check_captured_steps(model: Model, rank: int) -> None:
    """Sums over the ranks are part of the graph."""
    eager, captured = Driver(model, 32, 16), Driver(model, 32, 16)
    captured.run = model.ops.compile_step(lambda plan: model.forward(plan, captured.caches), (1, 2))
    assert isinstance(captured.run, NpuGraphedStep)
    rows = []
    for driver in (eager, captured):
        driver.step({"a": [3, 1, 4], "b": [1, 5, 9, 2, 6]})
        rows.append([driver.step({"a": [token], "b": [token + 1]}) for token in range(6)])
    assert len(captured.run.recorded) == 1
    for wanted, got in zip(*rows, strict=True):
        for name in wanted:
            np.testing.assert_array_equal(got[name], wanted[name])


def main(world: int, rank: int, rendezvous: str) -> None:
    """All checks; each prints "ok rank name"."""
    torch.set_num_threads(1)
    model = load(replace(Placement(tp=world), rank=rank, rendezvous=rendezvous))
    for check in (check_product_and_sum, check_captured_steps):
        check(model, rank)
        print(f"ok {rank} {check.__name__}", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    try:
        main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
    except BaseException:
        traceback.print_exc()
        sys.exit(1)
