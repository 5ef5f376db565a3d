"""A KV cache on a calibrated 8-bit grid: what is written is rounded to it, what attention sees lies on it."""

from __future__ import annotations

import numpy as np
import pytest
from tests.conformance.cases import block_tables, normal, pair, step_of
from tests.conformance.targets import Target

from gallium.ops.handles import AttentionSpec, KvGrid, RopeSpec

SPEC = AttentionSpec("gqa", 4, 2, 16, 16, 0.25, RopeSpec(16, 1e4, True))


def grid_of(seed: int, offset: int) -> KvGrid:
    """Scales so coarse that a value which is not on the grid would be seen in every tolerance."""
    rng = np.random.default_rng(seed)
    scales = [rng.uniform(0.5, 1.5, (2, 16)).astype(np.float32) for _ in range(2)]
    offsets = [np.full((2, 16), offset, np.float32) for _ in range(2)]
    return KvGrid(scales[0], offsets[0], scales[1], offsets[1])


@pytest.mark.parametrize("block_size", [4, 16])
@pytest.mark.parametrize("offset", [0, -128, 50])
def test_attention_over_a_grid(target: Target, offset: int, block_size: int) -> None:
    p = pair(target, SPEC)
    chunks = [(0, 9), (21, 1), (6, 4)]
    tables, num_blocks = block_tables([first + count for first, count in chunks], block_size, "shuffled")
    grid = grid_of(7, offset)
    caches = tuple(ops.make_kv_cache(SPEC, num_blocks, block_size, grid) for ops in (p.ours, p.wanted))
    for turn, rows in enumerate(([(0, 21), (0, 6)], chunks)):  # the contexts first
        step = step_of(rows, tables[1:] if turn == 0 else tables)
        n = len(step.token_ids)
        k, v = normal(turn, n, 2, 16, scale=9.0), normal(turn + 2, n, 2, 16, scale=9.0)
        p.check("kv_write", p.tensors(k), p.tensors(v), caches, p.plans(step))
    p.check("attend", p.tensors(normal(5, n, 4, 16, scale=0.2)), caches, p.plans(step), SPEC)
