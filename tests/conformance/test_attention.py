"""Paged attention: cache writes, grouped heads, block tables in every state, and the whole gqa block."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from tests.conformance.cases import Pair, block_tables, normal, pair, step_of, whole
from tests.conformance.targets import Target

from gallium.models.decoder import GqaWeights
from gallium.ops.handles import AttentionSpec, RopeSpec

Chunks = Sequence[tuple[int, int]]


def spec_of(heads: int, kv_heads: int, dim: int, v_dim: int | None = None, rope: int | None = None) -> AttentionSpec:
    return AttentionSpec("gqa", heads, kv_heads, dim, v_dim or dim, dim**-0.5, RopeSpec(rope or dim, 1e4, True))


def fill(p: Pair, spec: AttentionSpec, caches: object, tables: np.ndarray, firsts: Sequence[int]) -> None:  # type: ignore[type-arg]
    """Write the keys and values of each sequence's first positions, in one step."""
    chunks = [(0, first) for first in firsts]
    n = sum(firsts)
    k, v = normal(11, n, spec.num_kv_heads, spec.head_dim), normal(12, n, spec.num_kv_heads, spec.v_head_dim)
    p.check("kv_write", p.kept(k), p.kept(v), caches, p.plans(step_of(chunks, tables)))


def attend(target: Target, spec: AttentionSpec, chunks: Chunks, block_size: int, order: str = "shuffled") -> None:
    """Fill the context before the chunks, write the chunks, attend, compare."""
    p = pair(target, spec)
    tables, num_blocks = block_tables([first + count for first, count in chunks], block_size, order)
    caches = p.caches(spec, num_blocks, block_size)
    fill(p, spec, caches, tables, [first for first, _ in chunks])
    n = sum(count for _, count in chunks)
    plans = p.plans(step_of(chunks, tables))
    k, v = normal(1, n, spec.num_kv_heads, spec.head_dim), normal(2, n, spec.num_kv_heads, spec.v_head_dim)
    p.check("kv_write", p.kept(k), p.kept(v), caches, plans)
    p.check("attend", p.kept(normal(3, n, spec.num_heads, spec.head_dim)), caches, plans, spec)


@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (4, 4), (4, 2), (6, 2), (5, 1), (12, 1), (32, 2)])
def test_head_ratios(target: Target, heads: int, kv_heads: int) -> None:
    attend(target, spec_of(heads, kv_heads, 16), [(0, 5), (9, 1)], 4)


@pytest.mark.parametrize(("dim", "v_dim"), [(2, 2), (6, 6), (20, 20), (64, 64), (128, 128), (24, 16), (16, 40)])
def test_head_widths(target: Target, dim: int, v_dim: int) -> None:
    attend(target, spec_of(4, 2, dim, v_dim), [(0, 7), (6, 2)], 4)


@pytest.mark.parametrize("chunks", [[(40, 1), (0, 1), (129, 1)], [(0, 130), (17, 1), (30, 4)]], ids=["decode", "mixed"])
@pytest.mark.parametrize(("dim", "block_size"), [(64, 16), (128, 128)])
def test_widths_and_blocks_of_real_models(target: Target, dim: int, block_size: int, chunks: Chunks) -> None:
    """Which fused kernels of accelerators take, with one query per sequence and with many."""
    attend(target, spec_of(8, 2, dim, rope=dim // 2), chunks, block_size)


@pytest.mark.parametrize("order", ["shuffled", "reversed", "straight"])
@pytest.mark.parametrize("block_size", [1, 4, 16, 32])
def test_block_orders(target: Target, order: str, block_size: int) -> None:
    attend(target, spec_of(4, 2, 16), [(0, 9), (13, 1), (30, 4)], block_size, order)


@pytest.mark.parametrize(
    "chunks",
    [
        [(0, 1)],  # the first token of all
        [(0, 8)],  # exactly one block
        [(0, 9)],  # one past it
        [(7, 1)],  # fills its block
        [(8, 1)],  # opens the next
        [(7, 2)],  # over the edge
        [(0, 16), (15, 1), (16, 1), (3, 5)],
    ],
)
def test_block_edges(target: Target, chunks: Chunks) -> None:
    attend(target, spec_of(4, 2, 16), chunks, 8)


def test_a_mixed_batch(target: Target) -> None:
    """Prefill, continued prefill and decode in one step."""
    attend(target, spec_of(6, 2, 16), [(0, 13), (40, 1), (17, 6), (0, 1), (63, 1), (5, 30)], 16)


def test_a_long_context(target: Target) -> None:
    attend(target, spec_of(4, 1, 32), [(1500, 1), (700, 3)], 32)


def test_no_tokens(target: Target) -> None:
    attend(target, spec_of(4, 2, 16), [], 4)


def test_scale_is_the_spec_s(target: Target) -> None:
    spec = AttentionSpec("gqa", 2, 1, 16, 16, 1.0, RopeSpec(16, 1e4, True))
    attend(target, spec, [(5, 4)], 4)


def test_large_scores_do_not_overflow(target: Target) -> None:
    spec = AttentionSpec("gqa", 2, 1, 8, 8, 1.0, RopeSpec(8, 1e4, True))
    p = pair(target, spec)
    tables, num_blocks = block_tables([6], 4)
    caches = p.caches(spec, num_blocks, 4)
    plans = p.plans(step_of([(0, 6)], tables))
    k = whole(1, -30, 30, 6, 1, 8)
    p.check("kv_write", p.tensors(k), p.tensors(normal(2, 6, 1, 8)), caches, plans)
    p.check("attend", p.tensors(whole(3, -30, 30, 6, 2, 8)), caches, plans, spec)


def test_shared_blocks_are_read_by_both(target: Target) -> None:
    """Two sequences with a common prefix: the same blocks stand in both tables."""
    spec = spec_of(4, 2, 16)
    p = pair(target, spec)
    tables = np.array([[5, 2, 7, -1], [5, 2, 0, -1]], np.int32)
    caches = p.caches(spec, 9, 4)
    fill(p, spec, caches, tables[:1], [8])
    plans = p.plans(step_of([(8, 3), (8, 1)], tables))
    p.check("kv_write", p.tensors(normal(1, 4, 2, 16)), p.tensors(normal(2, 4, 2, 16)), caches, plans)
    p.check("attend", p.tensors(normal(3, 4, 4, 16)), caches, plans, spec)


def test_a_block_that_is_used_again_forgets_its_old_content(target: Target) -> None:
    spec = spec_of(4, 2, 16)
    p = pair(target, spec)
    tables = np.array([[1, 0, -1]], np.int32)
    caches = p.caches(spec, 2, 4)
    fill(p, spec, caches, tables, [8])
    plans = p.plans(step_of([(0, 3)], tables[:, ::-1][:, 1:].copy()))
    p.check("kv_write", p.tensors(normal(4, 3, 2, 16)), p.tensors(normal(5, 3, 2, 16)), caches, plans)
    p.check("attend", p.tensors(normal(6, 3, 4, 16)), caches, plans, spec)


def test_block_bytes_are_positive_and_grow_with_the_block(target: Target) -> None:
    spec = spec_of(4, 2, 16)
    ops = target.open(spec)
    one, two = ops.kv_block_bytes(spec, 16), ops.kv_block_bytes(spec, 32)
    assert two == 2 * one >= 2 * 16 * 2 * 2 * 16  # at least one byte for each of k and v


@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("norms", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_gqa(target: Target, interleaved: bool, norms: bool, bias: bool) -> None:
    hidden, heads, kv_heads, dim = 36, 6, 2, 12
    spec = AttentionSpec("gqa", heads, kv_heads, dim, dim, dim**-0.5, RopeSpec(6, 1e4, interleaved))
    p = pair(target, spec)
    rows = (heads + 2 * kv_heads) * dim
    qkv = p.linear(normal(1, rows, hidden, scale=0.2), normal(2, rows) if bias else None)
    out = p.linear(normal(3, hidden, heads * dim, scale=0.2))
    gains = [p.tensors(normal(seed, dim)) if norms else (None, None) for seed in (4, 5)]
    weights = tuple(GqaWeights(*side) for side in zip(qkv, out, *gains, strict=True))
    chunks = [(0, 13), (0, 4), (0, 1)]
    tables, num_blocks = block_tables([20, 4, 9], 4)
    caches = p.caches(spec, num_blocks, 4)
    for seed, chunks in enumerate([[(0, 13), (0, 4), (0, 1)], [(13, 1), (4, 0), (1, 7)], [(14, 6), (4, 0), (8, 1)]]):
        live = [i for i, (_, count) in enumerate(chunks) if count]
        plans = p.plans(step_of([chunks[i] for i in live], tables[live]))
        n = sum(count for _, count in chunks)
        p.check("gqa", p.tensors(normal(20 + seed, n, hidden)), weights, caches, plans, spec, 1e-5)


def test_gqa_of_no_tokens(target: Target) -> None:
    spec = spec_of(2, 1, 8)
    p = pair(target, spec)
    weights = tuple(
        GqaWeights(*side) for side in zip(p.linear(normal(1, 32, 16)), p.linear(normal(2, 16, 16)), strict=True)
    )
    tables, num_blocks = block_tables([], 4)
    plans = p.plans(step_of([], tables))
    p.check("gqa", p.tensors(normal(1, 0, 16)), weights, p.caches(spec, num_blocks, 4), plans, spec, 1e-5)
