"""A KV cache of 8-bit codes, each token and head with a step of its own, on backends that have one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from tests.conformance.cases import Pair, block_tables, normal, pair, step_of
from tests.conformance.targets import GQA, Target, facts

from gallium.errors import BackendError
from gallium.models.decoder import GqaWeights
from gallium.ops.backend import TellsKv, open_ops
from gallium.ops.handles import AttentionSpec, RopeSpec
from gallium.ops.reference import ReferenceOps

MLA = AttentionSpec("mla", 2, 2, 16, 16, 0.25, RopeSpec(8, 1e4, True), latent_dim=32)


def refusal_of(target: Target, spec: AttentionSpec) -> str | None:
    """Why the target has no such cache; None if it has one."""
    if not isinstance(target.backend, TellsKv):
        return "it cannot choose"
    rows = target.backend.kv_support(facts(spec), target.precision)
    return next(row.refusal for row in rows if row.precision == "int8") or None


def open_pair(target: Target, spec: AttentionSpec) -> Pair:
    """The target beside the reference, both with 8 bits.

    Queries and softmax weights may be 16-bit codes then, which is finer than bfloat16 and coarser than float32.
    """
    if refusal_of(target, spec) is not None:
        pytest.skip("this backend has no cache of 8-bit codes")
    ours = open_ops(target.backend, facts(spec), target.precision, "int8")
    return Pair(ours, ReferenceOps("int8"), "bfloat16" if target.precision == "float32" else target.precision)


def spec_of(heads: int, kv_heads: int, dim: int, v_dim: int | None = None) -> AttentionSpec:
    return AttentionSpec("gqa", heads, kv_heads, dim, v_dim or dim, dim**-0.5, RopeSpec(dim // 4 * 2, 1e4, True))


def attend(p: Pair, spec: AttentionSpec, chunks: Sequence[tuple[int, int]], scale: float = 1.0) -> None:
    """The contexts before the chunks, the chunks, attention: each beside the reference."""
    tables, num_blocks = block_tables([first + count for first, count in chunks], 16)
    caches = p.caches(spec, num_blocks, 16)
    for turn, rows in enumerate(([(0, first) for first, _ in chunks], chunks)):
        plans, n = p.plans(step_of(rows, tables)), sum(count for _, count in rows)
        k, v = normal(turn, n, spec.num_kv_heads, spec.head_dim), normal(9, n, spec.num_kv_heads, spec.v_head_dim)
        p.check("kv_write", p.tensors(k * np.float32(scale)), p.tensors(v * np.float32(scale)), caches, plans)
        if turn:
            p.check("attend", p.kept(normal(3, n, spec.num_heads, spec.head_dim)), caches, plans, spec)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "v_dim"),
    [(4, 2, 16, 16), (5, 1, 6, 6), (32, 2, 64, 64), (4, 2, 24, 16), (3, 1, 16, 40)],
)
def test_attention(target: Target, heads: int, kv_heads: int, dim: int, v_dim: int) -> None:
    spec = spec_of(heads, kv_heads, dim, v_dim)
    attend(open_pair(target, spec), spec, [(0, 9), (21, 1), (63, 1), (64, 4), (70, 30)])


def test_a_long_context(target: Target) -> None:
    spec = spec_of(4, 1, 32)
    attend(open_pair(target, spec), spec, [(1500, 1), (700, 3)])


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-3, 30.0])
def test_sizes_of_numbers(target: Target, scale: float) -> None:
    spec = spec_of(4, 2, 16)
    attend(open_pair(target, spec), spec, [(20, 5), (9, 1)], scale)


def test_gqa(target: Target) -> None:
    """The whole block, whose kernels may write the cache themselves."""
    spec = spec_of(6, 2, 12)
    p = open_pair(target, spec)
    qkv, out = p.linear(normal(1, 120, 36, scale=0.2)), p.linear(normal(3, 36, 72, scale=0.2))
    weights = tuple(GqaWeights(*side) for side in zip(qkv, out, strict=True))
    tables, num_blocks = block_tables([20, 9], 16)
    caches = p.caches(spec, num_blocks, 16)
    for seed, chunks in enumerate([[(0, 13), (0, 8)], [(13, 7), (8, 1)]]):
        n = sum(count for _, count in chunks)
        p.check(
            "gqa", p.tensors(normal(20 + seed, n, 36)), weights, caches, p.plans(step_of(chunks, tables)), spec, 1e-5
        )


def test_a_block_is_smaller(target: Target) -> None:
    spec = spec_of(4, 2, 128)
    p = open_pair(target, spec)
    if isinstance(p.ours, ReferenceOps):
        pytest.skip("the reference keeps float32 whatever it rounds to")
    usual = open_ops(target.backend, facts(spec), target.precision, "bfloat16")
    assert p.ours.kv_precision == "int8"
    assert p.ours.kv_block_bytes(spec, 32) < 0.52 * usual.kv_block_bytes(spec, 32)


@pytest.mark.parametrize("spec", [GQA, MLA], ids=["gqa", "mla"])
def test_what_is_refused_has_a_reason(target: Target, spec: AttentionSpec) -> None:
    why = refusal_of(target, spec)
    if why is None:
        pytest.skip("this backend has it")
    with pytest.raises(BackendError, match=r"8 bits|latent|KV cache"):
        open_ops(target.backend, facts(spec), target.precision, "int8")


def test_auto_is_what_open_gives(target: Target) -> None:
    """And the first that the backend names."""
    ops = pair(target).ours
    if isinstance(target.backend, TellsKv):
        assert ops.kv_precision == target.backend.kv_support(facts(), target.precision)[0].precision
