"""A KV cache on a calibrated 8-bit grid: what is written is rounded to it, what attention sees lies on it."""

from __future__ import annotations

import numpy as np
import pytest
from tests.conformance.cases import block_tables, normal, pair, step_of
from tests.conformance.targets import Target

from gallium.ops.handles import AttentionSpec, KvGrid, RopeSpec

CHUNKS = [(0, 9), (21, 1), (6, 4)]
ONE_EACH = [(9, 1), (22, 1), (10, 1)]  # after them


def spec_of(width: int) -> AttentionSpec:
    return AttentionSpec("gqa", 4, 2, width, width, width**-0.5, RopeSpec(16, 1e4, True))


def grid_of(seed: int, offset: int, width: int) -> KvGrid:
    """Scales so coarse that a value which is not on the grid would be seen in every tolerance."""
    rng = np.random.default_rng(seed)
    scales = [rng.uniform(0.5, 1.5, (2, width)).astype(np.float32) for _ in range(2)]
    offsets = [np.full((2, width), offset, np.float32) for _ in range(2)]
    return KvGrid(scales[0], offsets[0], scales[1], offsets[1])


@pytest.mark.parametrize(("width", "block_size"), [(16, 4), (16, 16), (64, 32)])  # the last one suits kernels for int8
@pytest.mark.parametrize("offset", [0, -128, 50, 300])
def test_attention_over_a_grid(target: Target, offset: int, width: int, block_size: int) -> None:
    """A mixed step, then one of decoding alone, which backends compute otherwise."""
    spec = spec_of(width)
    p = pair(target, spec)
    tables, num_blocks = block_tables([first + count for first, count in ONE_EACH], block_size, "shuffled")
    grid = grid_of(7, offset, width)
    caches = tuple(ops.make_kv_cache(spec, num_blocks, block_size, grid) for ops in (p.ours, p.wanted))
    for turn, rows in enumerate(([(0, 21), (0, 6)], CHUNKS, ONE_EACH)):  # the contexts first
        step = step_of(rows, tables[1:] if turn == 0 else tables)
        n = len(step.token_ids)
        k, v = normal(turn, n, 2, width, scale=9.0), normal(turn + 3, n, 2, width, scale=9.0)
        p.check("kv_write", p.tensors(k), p.tensors(v), caches, p.plans(step))
        if turn:
            p.check("attend", p.tensors(normal(6, n, 4, width, scale=0.1)), caches, p.plans(step), spec)


def test_a_grid_never_makes_a_block_larger(target: Target) -> None:
    spec = spec_of(64)
    ops = target.open(spec)
    assert 0 < ops.kv_block_bytes(spec, 32, grid_of(7, 0, 64)) <= ops.kv_block_bytes(spec, 32)
