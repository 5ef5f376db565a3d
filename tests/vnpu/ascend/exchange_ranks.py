"""What each process of test_exchange runs: experts of a model whose lanes are on different virtual NPUs.

Arguments: how many ranks there are, in two lanes; which one this is; where they meet.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence

import numpy as np
import torch
from tests.models.memory_checkpoint import weight
from tests.vnpu.support import called

from gallium.backends.ascend import backend
from gallium.backends.ascend.ops import AscendOps
from gallium.ops.handles import (
    AttentionSpec,
    FloatArray,
    IntArray,
    ModelFacts,
    MoeSpec,
    Placement,
    Precision,
    RopeSpec,
    Step,
)
from gallium.ops.reference import ReferenceOps
from gallium.ops.tolerances import TOLERANCES

LANES, COUNT, HIDDEN, WIDTH, TOP_K = 2, 8, 1024, 64, 4
KERNELS = ("MoeDistributeDispatch", "MoeDistributeCombine")
BATCHES = ((5, 3), (0, 4), (1, 0), (0, 0))
FACTS = ModelFacts(
    "glm4_moe", 1, HIDDEN, 128, AttentionSpec("gqa", 4, 2, 16, 16, 0.25, RopeSpec(8, 1e4, True)),
    MoeSpec(COUNT, TOP_K, "sigmoid", True, 1.0),
)  # fmt: skip


def floats(seed: int, *shape: int) -> FloatArray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def step_of(tokens: int) -> Step:
    seqs = 1 if tokens else 0
    places = np.arange(tokens, dtype=np.int32)
    return Step(
        places, places, np.array([0, tokens][: seqs + 1], np.int32), np.full(seqs, tokens, np.int32),
        np.zeros((seqs, 1), np.int32), places,
    )  # fmt: skip


def chosen(seed: int, tokens: int) -> tuple[FloatArray, IntArray]:
    rng = np.random.default_rng(seed)
    ids = np.stack([rng.choice(COUNT, TOP_K, replace=False) for _ in range(tokens)] or [np.zeros(TOP_K)])[:tokens]
    return rng.uniform(0.2, 1, (tokens, TOP_K)).astype(np.float32), ids.astype(np.int32)


def check(ops: AscendOps, precision: Precision, batches: Sequence[tuple[int, ...]], fused: bool) -> None:
    """This rank's lane, added up over its ranks, is what the reference computes with all experts."""
    placement = ops.collectives.placement
    up = [floats(e, 2 * WIDTH, HIDDEN) / 16 for e in range(COUNT)]
    down = [floats(100 + e, HIDDEN, WIDTH) / 4 for e in range(COUNT)]
    held = range(placement.ep_rank * COUNT // placement.ep, (placement.ep_rank + 1) * COUNT // placement.ep)
    packed = ops.pack_experts([[weight(up[e])] for e in held], [weight(down[e]) for e in held])
    reference = ReferenceOps()
    whole = reference.pack_experts([[weight(w)] for w in up], [weight(w) for w in down])
    for batch in batches:
        lane, tokens = placement.dp_rank, batch[placement.dp_rank]
        x = torch.from_numpy(floats(7 + lane, tokens, HIDDEN)).bfloat16().float().numpy()
        weights, ids = chosen(9 + lane, tokens)
        ops.plan(step_of(tokens))
        with called() as names:
            y = ops.all_reduce(ops.experts(ops.upload(x), ops.upload(weights), ops.upload(ids), packed))
        assert all(any(name.startswith(kernel) for name in names) == fused for kernel in KERNELS), names
        got, wanted = ops.download(y), reference.experts(x, weights, ids, whole)
        assert got.shape == wanted.shape
        slack = TOLERANCES["experts", precision].rtol * np.abs(wanted).max(initial=0)
        np.testing.assert_allclose(got, wanted, rtol=0, atol=slack)


def main(world: int, rank: int, rendezvous: str) -> None:
    placement = Placement(rank, world // LANES, LANES, world, rendezvous)
    for precision in ("bfloat16", "int8", "int4", "float32"):
        opened = backend.open(FACTS, precision, 1, placement)
        assert isinstance(opened, AscendOps)
        exchange = opened._exchange
        assert exchange is not None
        check(opened, precision, BATCHES, fused=precision != "float32")
        print(f"ok {precision}: {exchange.refusal or 'kernels'}", flush=True)
        if precision == "bfloat16":
            exchange._most = 4  # as if HCCL's buffer were that small: a lane has more, so both take the plain exchange
            check(opened, precision, BATCHES[:1], fused=False)
            print("ok too many", flush=True)


if __name__ == "__main__":
    try:
        main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
    except Exception:
        print(traceback.format_exc(), flush=True)
        raise
