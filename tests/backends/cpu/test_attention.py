"""Attention: a query's bits depend on its sequence alone, not on company, chunks, threads, splits or shared blocks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from gallium.backends.cpu import library
from gallium.backends.cpu.ops import CpuOps
from gallium.errors import BackendError
from gallium.ops.handles import AttentionSpec, FloatArray, KvCache, KvPrecision, RopeSpec, Step

BLOCK, WIDTH = 32, 16
SPEC = AttentionSpec("gqa", 6, 2, WIDTH, WIDTH, 0.25, RopeSpec(8, 1e4, True))
PREFIX = 1100  # two whole splits of 512 keys and a piece of the third
KINDS: tuple[KvPrecision, ...] = ("float32", "bfloat16", "int8")


def normal(seed: int, *shape: int) -> FloatArray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def tables_of(lengths: Sequence[int], shared: int = 0) -> np.ndarray:  # type: ignore[type-arg]
    """Block tables in shuffled order, the first `shared` blocks those of all."""
    need = [-(-n // BLOCK) for n in lengths]
    free = iter(np.random.default_rng(3).permutation(shared + sum(need)).astype(np.int32))
    common = [next(free) for _ in range(shared)]
    tables = np.full((len(need), max(need)), -1, np.int32)
    for row, count in zip(tables, need, strict=True):
        row[:count] = (common + [next(free) for _ in range(count)])[:count]
    return tables


def step_of(rows: Sequence[tuple[int, int]], tables: np.ndarray) -> Step:  # type: ignore[type-arg]
    """Rows of (context before, new tokens)."""
    positions = np.concatenate([np.arange(first, first + count) for first, count in rows]).astype(np.int32)
    starts = np.cumsum([0, *(count for _, count in rows)]).astype(np.int32)
    lengths = np.array([first + count for first, count in rows], np.int32)
    return Step(np.zeros(len(positions), np.int32), positions, starts, lengths, tables, starts[1:] - 1)


def filled(ops: CpuOps, tables: np.ndarray, lengths: Sequence[int]) -> KvCache:  # type: ignore[type-arg]
    """A cache in which the number of its slot decides what a token holds: shared blocks have the same for all."""
    cache = ops.make_kv_cache(SPEC, int(tables.max()) + 1, BLOCK)
    slots = cache.num_blocks * BLOCK
    k, v = normal(1, slots, 2, WIDTH), normal(2, slots, 2, WIDTH)
    for table, length in zip(tables, lengths, strict=True):
        step = step_of([(0, length)], table[None])
        at = step.slots(BLOCK)
        ops.kv_write(k[at], v[at], cache, ops.plan(step))
    return cache


@pytest.fixture(params=KINDS)
def ops(request: pytest.FixtureRequest, level: str) -> CpuOps:
    return CpuOps("bfloat16", request.param)


def test_alone_in_company_and_with_shared_blocks(ops: CpuOps, threads: None) -> None:
    """Sequences that begin alike, some interleaved with others, of one token and of several."""
    extra = [(40, 1), (7, 3), (500, 1), (0, 1), (90, 21), (33, 1)]
    rows = [(PREFIX + more, count) for more, count in extra]
    lengths = [first + count for first, count in rows]
    tables = tables_of(lengths, PREFIX // BLOCK)
    tables[3] = tables_of(lengths)[3]  # one of its own, in the middle
    cache = filled(ops, tables, lengths)
    step = step_of(rows, tables)
    q = normal(5, len(step.positions), 6 * WIDTH)
    together = ops.attend(q, cache, ops.plan(step), SPEC)
    for one, (first, last) in enumerate(zip(step.query_start, step.query_start[1:], strict=False)):
        alone = step_of([rows[one]], tables[one][None])
        for count in (1, 2, 3):
            library.set_threads(count)
            np.testing.assert_array_equal(ops.attend(q[first:last], cache, ops.plan(alone), SPEC), together[first:last])
    library.set_threads(3)
    np.testing.assert_array_equal(ops.attend(q, cache, ops.plan(step), SPEC), together)


def test_many_sequences_of_one_prefix(ops: CpuOps) -> None:
    """More rows than a tile holds: 3 heads of a group times 25 sequences."""
    lengths = [600 + i for i in range(25)]
    tables = tables_of(lengths, 512 // BLOCK)
    cache = filled(ops, tables, lengths)
    rows = [(n - 1, 1) for n in lengths]
    q = normal(5, 25, 6 * WIDTH)
    together = ops.attend(q, cache, ops.plan(step_of(rows, tables)), SPEC)
    for i in (0, 12, 20, 24):
        alone = ops.plan(step_of(rows[i : i + 1], tables[i : i + 1]))
        np.testing.assert_array_equal(ops.attend(q[i : i + 1], cache, alone, SPEC), together[i : i + 1])


def test_in_chunks(ops: CpuOps) -> None:
    """A context of 600 tokens, whole and in pieces."""
    tables = tables_of([600])
    cache = filled(ops, tables, [600])
    q = normal(5, 600, 6 * WIDTH)
    whole = ops.attend(q, cache, ops.plan(step_of([(0, 600)], tables)), SPEC)
    at = 0
    for count in (1, 2, 61, 64, 100, 283, 89):
        plan = ops.plan(step_of([(at, count)], tables))
        np.testing.assert_array_equal(ops.attend(q[at : at + count], cache, plan, SPEC), whole[at : at + count])
        at += count


def test_numbers_that_are_none_show_in_int8(level: str) -> None:
    """A value that overflowed must not become a plausible one."""
    ops = CpuOps("bfloat16", "int8")
    tables = tables_of([40, 40])
    cache = filled(ops, tables, [40, 40])
    step = step_of([(20, 1)], tables[:1])
    bad = np.full((1, 2, WIDTH), np.inf, np.float32)
    ops.kv_write(normal(1, 1, 2, WIDTH), bad, cache, ops.plan(step))
    q, plan = normal(5, 2, 6 * WIDTH), ops.plan(step_of([(39, 1), (39, 1)], tables))
    found = ops.attend(q, cache, plan, SPEC)
    assert np.isnan(found[0]).all()
    assert np.isfinite(found[1]).all()


def test_int8_needs_whole_panels() -> None:
    with pytest.raises(BackendError, match="multiple of 16 tokens, not of 24"):
        CpuOps("bfloat16", "int8").make_kv_cache(SPEC, 4, 24)
