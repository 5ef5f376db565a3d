"""The ops of latent attention (mla) and of its sparse form: cache, scores, selection, per-head projections."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tests.conformance.cases import Pair, block_tables, normal, pair, step_of, whole
from tests.conformance.targets import Target

from gallium.ops.handles import AttentionSpec, RopeSpec, Step

MLA = AttentionSpec("mla", 4, 4, 24, 16, 0.2, RopeSpec(8, 1e4, True), latent_dim=32)
SPARSE = replace(MLA, kind="mla_sparse", index_dim=16, index_topk=5)
ODD = replace(SPARSE, num_heads=5, num_kv_heads=5, latent_dim=19, rope=RopeSpec(6, 1e4, True), index_dim=7)
GLM_5 = replace(SPARSE, num_heads=2, num_kv_heads=2, scale=576**-0.5, latent_dim=512, rope=RopeSpec(64, 1e6, True))
SPECS = {"even": SPARSE, "odd": ODD, "glm-5": replace(GLM_5, index_dim=128)}
CHUNKS = [(0, 9), (13, 1), (4, 5), (16, 1)]
INDEX_HEADS = 3


def steps(block_size: int) -> tuple[list[Step], int]:
    """First what the sequences have already, then the step under test."""
    tables, num_blocks = block_tables([first + count for first, count in CHUNKS], block_size)
    before = step_of([(0, max(first, 1)) for first, _ in CHUNKS], tables)
    return [before, step_of(CHUNKS, tables)], num_blocks


def filled(p: Pair, spec: AttentionSpec, block_size: int) -> tuple[object, tuple[object, object], Step]:
    """Caches on both sides with latents, rope keys and whole-numbered index keys of both steps."""
    both, num_blocks = steps(block_size)
    cache = p.caches(spec, num_blocks, block_size)
    for seed, step in enumerate(both):
        n = len(step.token_ids)
        plans = p.plans(step)
        latent, k_rope = normal(seed, n, spec.latent_dim), normal(seed + 9, n, spec.rope.dim)
        p.check("kv_write", p.kept(latent), p.kept(k_rope), cache, plans)
        if spec.index_dim:
            p.check("index_write", p.tensors(whole(seed + 5, -3, 3, n, spec.index_dim)), cache, plans)
    return cache, plans, both[-1]


@pytest.mark.parametrize("block_size", [4, 16])
@pytest.mark.parametrize("name", SPECS)
def test_attend_latent_over_everything(target: Target, name: str, block_size: int) -> None:
    spec = replace(SPECS[name], kind="mla", index_dim=0, index_topk=0)
    p = pair(target, spec)
    cache, plans, step = filled(p, spec, block_size)
    n = len(step.token_ids)
    q, q_rope = normal(31, n, spec.num_heads, spec.latent_dim), normal(32, n, spec.num_heads, spec.rope.dim)
    p.check("attend_latent", p.kept(q), p.kept(q_rope), cache, plans, spec, None)


@pytest.mark.parametrize("block_size", [4, 16])
@pytest.mark.parametrize("name", SPECS)
def test_index_topk_and_attention_over_what_it_selects(target: Target, name: str, block_size: int) -> None:
    """Whole numbers, so that scores tie often and are exact in every precision."""
    spec = SPECS[name]
    p = pair(target, spec)
    cache, plans, step = filled(p, spec, block_size)
    n = len(step.token_ids)
    index_q, weights = whole(41, -2, 2, n, INDEX_HEADS, spec.index_dim), whole(42, -1, 2, n, INDEX_HEADS)
    selected = p.check("index_topk", p.tensors(index_q), p.tensors(weights), cache, plans, spec.index_topk)
    q, q_rope = normal(43, n, spec.num_heads, spec.latent_dim), normal(44, n, spec.num_heads, spec.rope.dim)
    p.check("attend_latent", p.kept(q), p.kept(q_rope), cache, plans, spec, selected)


def test_index_topk_ties_go_to_the_lower_position(target: Target) -> None:
    """ReLU makes exact zeros; a context shorter than k ends with -1."""
    p = pair(target, SPARSE)
    cache, plans, step = filled(p, SPARSE, 16)
    n = len(step.token_ids)
    zeros = np.zeros((n, INDEX_HEADS, SPARSE.index_dim), np.float32)
    got, _ = p.check("index_topk", p.tensors(zeros), p.tensors(np.ones((n, INDEX_HEADS), np.float32)), cache, plans, 5)
    ids = p.ours.download(got)
    for row, position in zip(ids, step.positions, strict=True):
        assert row.tolist() == [i if i <= position else -1 for i in range(5)]


def test_no_tokens(target: Target) -> None:
    p = pair(target, SPARSE)
    tables, num_blocks = block_tables([1], 16)
    step = step_of([], tables)
    cache, plans = p.caches(SPARSE, num_blocks, 16), p.plans(step)
    q, q_rope = np.zeros((0, 4, 32), np.float32), np.zeros((0, 4, 8), np.float32)
    p.check("attend_latent", p.tensors(q), p.tensors(q_rope), cache, plans, SPARSE, None)
    p.check("index_topk", p.tensors(q[..., :16]), p.tensors(q[..., 0]), cache, plans, 5)
