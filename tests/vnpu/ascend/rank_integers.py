"""What each of two ranks of test_rank_models runs: quantised models, cut in every way, against one chip."""

from __future__ import annotations

import sys
import traceback
from dataclasses import replace

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from tests.models.driving import Driver
from tests.models.integer_checkpoint import Kind, integer_checkpoint
from tests.vnpu.ascend.models import wide_spec

from gallium.backends.ascend import backend
from gallium.models.catalog import load_model
from gallium.models.sharding import local_spec
from gallium.ops.handles import ALONE, Placement

BOUND = 0.08
"""Of the difference relative to the size of the logits; measured: up to 0.043, and 0.70 if both ranks correct. Summands
in bfloat16 turn roundings to integers over, and each rank scales its own columns of what o and down take."""
CASES: dict[str, tuple[str, Kind, Placement]] = {
    "static tp2": ("glm", "static", Placement(tp=2)),
    "dynamic tp2": ("glm", "dynamic", Placement(tp=2)),
    "dynamic experts tp2": ("glm4_moe", "dynamic", Placement(tp=2)),
    "dynamic ep2": ("glm4_moe", "dynamic", Placement(tp=2, ep=2)),
    "dynamic dp2 ep2": ("glm4_moe", "dynamic", Placement(dp=2, ep=2)),
    "groups tp2": ("glm4_moe", "groups", Placement(tp=2)),
}


def logits(arch: str, kind: Kind, placement: Placement) -> NDArray[np.float32]:
    """All logits of a prompt and a few tokens after it."""
    spec = wide_spec(arch)
    if spec.moe is not None:  # every expert is chosen: a choice that rounding turns over would hide all else
        spec = replace(spec, moe_ffn=128, moe=replace(spec.moe, top_k=16, num_groups=1, top_groups=1))
    ops = backend.open(local_spec(spec, placement).facts, "int4" if kind == "groups" else "int8", 1, placement)
    driver = Driver(load_model(integer_checkpoint(spec, kind), spec, ops, placement=placement), 32, 16)
    steps = [driver.step({"a": [3, 1, 4, 1, 5, 9]}), *(driver.step({"a": [token]}) for token in (2, 6, 5))]
    return np.concatenate([step["a"] for step in steps])


def main(world: int, rank: int, rendezvous: str) -> None:
    """All checks; each prints "ok rank name"."""
    torch.set_num_threads(1)
    for name, (arch, kind, placement) in CASES.items():
        got = logits(arch, kind, replace(placement, rank=rank, rendezvous=rendezvous))
        expected = logits(arch, kind, ALONE)
        error = float(np.linalg.norm(got - expected) / np.linalg.norm(expected))
        print(f"{name}: {error:.4f}", flush=True)
        assert error < BOUND, f"{name}: {error:.4f}"
        print(f"ok {rank} {name}", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    try:
        main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
    except BaseException:
        traceback.print_exc()
        sys.exit(1)
