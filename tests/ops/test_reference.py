"""The definitions of the ops against torch, against other ways to compute the same, and at their edges."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from tests.conformance.cases import block_tables, normal, plain_step, step_of
from tests.models.memory_checkpoint import weight

from gallium.ops.handles import AttentionSpec, FloatArray, MoeSpec, RopeSpec, Step
from gallium.ops.reference import ReferenceOps

OPS = ReferenceOps()
GQA = AttentionSpec("gqa", 6, 2, 8, 10, 0.3, RopeSpec(4, 1e4, True))
MLA = AttentionSpec("mla", 3, 3, 8, 6, 0.25, RopeSpec(4, 1e4, True), latent_dim=12)
SPARSE = replace(MLA, kind="mla_sparse", index_dim=5, index_topk=4)


def near(got: Any, wanted: Any, atol: float = 2e-6) -> None:
    np.testing.assert_allclose(got, np.asarray(wanted), atol=atol, rtol=2e-6)


def linear(out: int, width: int, seed: int, bias: FloatArray | None = None) -> Any:
    return OPS.pack_linear([weight(normal(seed, out, width, scale=0.4))], [] if bias is None else [weight(bias)])


# -- rows ------------------------------------------------------------------------


def test_rms_norm_is_torch_s() -> None:
    import torch

    x, gain = normal(1, 5, 36, scale=3), normal(2, 36)
    near(OPS.rms_norm(x, gain, 1e-5), torch.nn.functional.rms_norm(torch.tensor(x), (36,), torch.tensor(gain), 1e-5))


def test_linear_is_torch_s() -> None:
    import torch

    x, bias = normal(1, 5, 20), normal(2, 7)
    w = linear(7, 20, 3, bias)
    near(OPS.linear(x, w), torch.nn.functional.linear(*map(torch.tensor, (x, w.data, bias))))


def test_swiglu_is_torch_s_with_the_gate_first() -> None:
    import torch

    x = normal(1, 4, 22, scale=5)
    gate, up = torch.tensor(x).chunk(2, dim=-1)
    near(OPS.swiglu(x), torch.nn.functional.silu(gate) * up)


def test_swiglu_neither_overflows_nor_warns() -> None:
    x = np.array([[-1e4, 1e4, -90.0, 2.0, 2.0, 2.0]], np.float32)
    near(OPS.swiglu(x), [[0.0, 2e4, 0.0]])


def test_a_head_s_projection_is_its_own() -> None:
    x, heads = normal(1, 4, 3, 5), normal(2, 3, 7, 5)
    got = OPS.head_linear(x, OPS.pack_heads([weight(head) for head in heads]))
    near(got, np.stack([x[:, h] @ heads[h].T for h in range(3)], axis=1))


# -- rope ------------------------------------------------------------------------


def rotated(x: FloatArray, first: int, spec: RopeSpec) -> FloatArray:
    return OPS.rope(x, plain_step(len(x), first), spec)


@pytest.mark.parametrize("interleaved", [True, False])
def test_rope_is_a_rotation_of_the_first_dims(interleaved: bool) -> None:
    spec = RopeSpec(8, 1e4, interleaved)
    x = normal(1, 6, 2, 12)
    out = rotated(x, 5, spec)
    near(np.linalg.norm(out, axis=-1), np.linalg.norm(x, axis=-1), 1e-5)
    np.testing.assert_array_equal(out[..., 8:], x[..., 8:])
    np.testing.assert_array_equal(rotated(x[:1], 0, spec), x[:1])


def test_the_two_pairings_are_one_rotation_of_permuted_dims() -> None:
    x = normal(1, 6, 2, 8)
    halves_to_pairs = np.arange(8).reshape(2, 4).T.ravel()  # new dim 2i from i, 2i + 1 from i + 4
    pairs = rotated(x[..., halves_to_pairs], 3, RopeSpec(8, 1e4, True))
    np.testing.assert_array_equal(pairs, rotated(x, 3, RopeSpec(8, 1e4, False))[..., halves_to_pairs])


def test_the_angle_is_the_position_times_the_frequency() -> None:
    x = np.zeros((1, 1, 4), np.float32)
    x[0, 0, [0, 2]] = 1.0
    out = rotated(x, 7, RopeSpec(4, 100.0, True))[0, 0]
    near(out, [np.cos(7), np.sin(7), np.cos(0.7), np.sin(0.7)])


def test_scores_depend_on_the_distance_only() -> None:
    spec = RopeSpec(8, 1e4, True)
    q, k = normal(1, 1, 1, 8), normal(2, 1, 1, 8)
    scores = [(rotated(q, 4 + far, spec) * rotated(k, far, spec)).sum() for far in (0, 3, 500)]
    near(scores, [scores[0]] * 3, 1e-5)
    assert abs(scores[0] - (rotated(q, 5, spec) * rotated(k, 0, spec)).sum()) > 1e-3


# -- attention -------------------------------------------------------------------


def cached(spec: AttentionSpec, step: Step, num_blocks: int, block_size: int, *values: FloatArray) -> Any:
    cache = OPS.make_kv_cache(spec, num_blocks, block_size)
    OPS.kv_write(*values, cache, step)
    return cache


def test_attention_is_torch_s() -> None:
    import torch

    tokens = 11
    tables, num_blocks = block_tables([tokens], 4)
    step = step_of([(0, tokens)], tables)
    q, k, v = normal(1, tokens, 6, 8), normal(2, tokens, 2, 8), normal(3, tokens, 2, 10)
    got = OPS.attend(q, cached(GQA, step, num_blocks, 4, k, v), step, GQA)
    heads_first = [torch.tensor(x).transpose(0, 1)[None] for x in (q, k, v)]
    wanted = torch.nn.functional.scaled_dot_product_attention(
        *heads_first, is_causal=True, scale=GQA.scale, enable_gqa=True
    )
    near(got, wanted[0].transpose(0, 1))


def test_a_slot_that_was_never_written_shows() -> None:
    """Pages begin as NaN, so that a stray read cannot look right."""
    tables, num_blocks = block_tables([5], 4)
    step = step_of([(0, 5)], tables)
    q, k, v = normal(1, 5, 6, 8), normal(2, 5, 2, 8), normal(3, 5, 2, 10)
    cache = cached(GQA, step, num_blocks, 4, k, v)
    assert np.isfinite(OPS.attend(q, cache, step, GQA)).all()
    later = step_of([(6, 1)], tables)  # position 5 was left out
    assert np.isnan(OPS.attend(q[:1], cache, later, GQA)).all()


@dataclass
class LatentWeights:
    """What the mla blocks read."""

    q_down: Any
    q_gain: FloatArray
    q_up: Any
    kv_down: Any
    kv_gain: FloatArray
    k_absorb: Any
    v_absorb: Any
    out: Any
    index_q: Any = None
    index_k: Any = None
    index_weight: Any = None
    index_heads: int = 2


HIDDEN, LOW = 14, 9


def latent_weights(k_up: FloatArray, v_up: FloatArray) -> LatentWeights:
    """`k_up [heads, nope, latent]` and `v_up [heads, v, latent]`, absorbed into q and the output."""
    heads, nope = MLA.num_heads, MLA.head_dim
    return LatentWeights(
        q_down=linear(LOW, HIDDEN, 1), q_gain=normal(2, LOW), q_up=linear(heads * (nope + MLA.rope.dim), LOW, 3),
        kv_down=linear(MLA.latent_dim + MLA.rope.dim, HIDDEN, 4), kv_gain=normal(5, MLA.latent_dim),
        k_absorb=OPS.pack_heads([weight(k.T) for k in k_up]), v_absorb=OPS.pack_heads([weight(v) for v in v_up]),
        out=linear(HIDDEN, heads * MLA.v_head_dim, 6), index_q=linear(2 * SPARSE.index_dim, LOW, 7),
        index_k=linear(SPARSE.index_dim, HIDDEN, 8), index_weight=linear(2, HIDDEN, 9),
    )  # fmt: skip


def test_latent_attention_is_ordinary_attention_with_the_latents_expanded() -> None:
    """MLA written out: keys are [k_up · latent, rope key], values v_up · latent, one KV head per head."""
    tokens, eps = 9, 1e-6
    heads, nope, rope = MLA.num_heads, MLA.head_dim, MLA.rope
    k_up, v_up = normal(11, heads, nope, MLA.latent_dim), normal(12, heads, MLA.v_head_dim, MLA.latent_dim)
    w, x = latent_weights(k_up, v_up), normal(13, tokens, HIDDEN)
    tables, num_blocks = block_tables([tokens], 4)
    step = step_of([(0, tokens)], tables)
    got = OPS.mla(x, w, OPS.make_kv_cache(MLA, num_blocks, 4), step, MLA, eps)

    q = OPS.linear(OPS.rms_norm(OPS.linear(x, w.q_down), w.q_gain, eps), w.q_up).reshape(tokens, heads, -1)
    kv = OPS.linear(x, w.kv_down)
    latent = OPS.rms_norm(kv[:, : MLA.latent_dim], w.kv_gain, eps)
    k_rope = OPS.rope(kv[:, None, MLA.latent_dim :], step, rope)
    k = np.concatenate([np.einsum("tl,hnl->thn", latent, k_up), np.repeat(k_rope, heads, axis=1)], axis=-1)
    q = np.concatenate([q[..., :nope], OPS.rope(q[..., nope:], step, rope)], axis=-1)
    v = np.einsum("tl,hvl->thv", latent, v_up)
    plain = AttentionSpec("gqa", heads, heads, nope + rope.dim, MLA.v_head_dim, MLA.scale, rope)
    o = OPS.attend(q, cached(plain, step, num_blocks, 4, k, v), step, plain)
    near(got, OPS.linear(o.reshape(tokens, -1), w.out), 2e-5)


@pytest.mark.parametrize("sizes", [[1] * 9, [4, 1, 4], [2, 7]])
@pytest.mark.parametrize("spec", [MLA, SPARSE], ids=lambda spec: spec.kind)
def test_latent_attention_in_pieces(spec: AttentionSpec, sizes: list[int]) -> None:
    w = latent_weights(normal(11, 3, 8, 12), normal(12, 3, 6, 12))
    x = normal(13, 9, HIDDEN)
    tables, num_blocks = block_tables([9], 4)
    block = getattr(OPS, spec.kind)

    def run(pieces: list[int]) -> FloatArray:
        cache, starts = OPS.make_kv_cache(spec, num_blocks, 4), np.cumsum([0, *pieces])
        steps = [(int(start), size) for start, size in zip(starts, pieces, strict=False)]
        return np.concatenate(
            [block(x[at : at + size], w, cache, step_of([(at, size)], tables), spec, 1e-6) for at, size in steps]
        )

    near(run(sizes), run([9]), 1e-5)


def test_sparse_attention_sees_everything_while_the_context_is_short() -> None:
    w, x = latent_weights(normal(11, 3, 8, 12), normal(12, 3, 6, 12)), normal(13, 9, HIDDEN)
    tables, num_blocks = block_tables([9], 4)
    step = step_of([(0, 9)], tables)
    dense = OPS.mla(x, w, OPS.make_kv_cache(MLA, num_blocks, 4), step, MLA, 1e-6)
    sparse = OPS.mla_sparse(x, w, OPS.make_kv_cache(SPARSE, num_blocks, 4), step, SPARSE, 1e-6)
    near(sparse[:4], dense[:4], 1e-5)
    assert (np.abs(sparse[4:] - dense[4:]).max(axis=1) > 1e-3).any()


def test_index_topk_prefers_the_lower_position_and_ends_with_minus_one() -> None:
    """ReLU makes exact ties at zero: a key that points away scores as little as one that is orthogonal."""
    tables, num_blocks = block_tables([4], 4)
    step = step_of([(0, 4)], tables)
    cache = OPS.make_kv_cache(SPARSE, num_blocks, 4)
    keys = np.zeros((4, 5), np.float32)
    keys[:, 0] = [-1.0, 0.0, 2.0, 1.0]
    OPS.index_write(keys, cache, step)
    q = np.zeros((4, 2, 5), np.float32)
    q[:, 0, 0] = 1.0
    ids = OPS.index_topk(q, np.ones((4, 2), np.float32), cache, step, 3)
    assert ids.dtype == np.int32
    assert ids.tolist() == [[0, -1, -1], [0, 1, -1], [2, 0, 1], [2, 3, 0]]


# -- experts ---------------------------------------------------------------------

ROUTER = MoeSpec(6, 2, "sigmoid", renormalize=True, routed_scale=3.0, num_groups=3, top_groups=2)


def sigmoid(x: FloatArray) -> FloatArray:
    return 1 / (1 + np.exp(-x))


def test_route_by_hand() -> None:
    logits = np.array([[0.0, 1.0, 2.0, -1.0, 0.5, 0.4]], np.float32)
    bias = np.array([0.0, 0.0, -5.0, 0.0, 0.0, 0.3], np.float32)
    # s + bias by group: [.5 .73] [-4.1 .27] [.62 .9], sums 1.23, -3.9, 1.52: groups 0 and 2 stay; best are 5 and 1
    weights, ids = OPS.route(logits, bias, ROUTER)
    assert ids.tolist() == [[5, 1]]
    scores = sigmoid(logits[0, [5, 1]])
    near(weights, [3.0 * scores / scores.sum()])


@pytest.mark.parametrize("scoring", ["sigmoid", "softmax"])
def test_route_without_renormalising(scoring: Any) -> None:
    spec = MoeSpec(6, 2, scoring, renormalize=False, routed_scale=1.0)
    logits = np.array([[0.0, 1.0, 3.0, -1.0, 0.5, 0.4]], np.float32)
    weights, ids = OPS.route(logits, np.zeros(6, np.float32), spec)
    scores = sigmoid(logits) if scoring == "sigmoid" else np.exp(logits) / np.exp(logits).sum()
    assert ids.tolist() == [[2, 1]]
    near(weights, scores[:, [2, 1]])


def test_route_of_equal_scores_takes_the_first_experts_of_the_first_groups() -> None:
    zeros = np.zeros((2, 6), np.float32)
    _, ids = OPS.route(zeros, zeros[0], replace(ROUTER, top_k=4))
    assert ids.tolist() == [[0, 1, 2, 3]] * 2


def test_experts_are_weighted_dense_mlps() -> None:
    count, hidden, width = 4, 6, 5
    gate_up, down = normal(1, count, 2 * width, hidden), normal(2, count, hidden, width)
    packed = OPS.pack_experts(
        [[weight(g[:width]), weight(g[width:])] for g in gate_up], [weight(matrix) for matrix in down]
    )
    x, ids = normal(3, 3, hidden), np.array([[3, 0], [1, 1], [2, 3]], np.int32)
    weights = np.abs(normal(4, 3, 2))
    wanted = [
        sum(weights[t, r] * (OPS.swiglu(x[t] @ gate_up[e].T) @ down[e].T) for r, e in enumerate(ids[t]))
        for t in range(3)
    ]
    near(OPS.experts(x, weights, ids, packed), wanted)
    assert (packed.num_experts, packed.hidden, packed.width) == (count, hidden, width)
