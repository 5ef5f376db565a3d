"""Routing and routed experts."""

from __future__ import annotations

import numpy as np
import pytest
from tests.conformance.cases import Pair, fitting_inputs, fitting_weights, normal, pair
from tests.conformance.targets import GQA, Target
from tests.models.memory_checkpoint import weight

from gallium.models.decoder import MoeWeights
from gallium.ops.handles import FloatArray, MoeSpec

SPECS = {
    "355b": MoeSpec(16, 8, "sigmoid", True, 2.5),
    "one": MoeSpec(5, 1, "sigmoid", False, 1.0),
    "all": MoeSpec(4, 4, "sigmoid", True, 1.0),
    "groups": MoeSpec(12, 3, "sigmoid", True, 1.7, num_groups=4, top_groups=2),
    "groups-of-one": MoeSpec(6, 2, "sigmoid", True, 1.0, num_groups=6, top_groups=3),
    "softmax": MoeSpec(7, 3, "softmax", False, 1.0),
    "softmax-renormalised": MoeSpec(160, 8, "softmax", True, 1.0),
}


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("tokens", [0, 1, 2, 33])
def test_route(target: Target, name: str, tokens: int) -> None:
    spec = SPECS[name]
    p = pair(target, GQA, spec)
    logits, bias = normal(1, tokens, spec.num_experts, scale=2), normal(2, spec.num_experts, scale=0.3)
    p.check("route", p.tensors(logits), p.tensors(bias), spec)


@pytest.mark.parametrize("name", SPECS)
def test_route_ties_go_to_the_lower_id(target: Target, name: str) -> None:
    """Scores that are equal because their logits are: all, in pairs, and at the edge of the top-k."""
    spec = SPECS[name]
    p = pair(target, GQA, spec)
    n = spec.num_experts
    logits = np.stack([np.zeros(n), np.arange(n) // 2, -(np.arange(n) // 2), np.arange(n) % 3]).astype(np.float32)
    zero = p.tensors(np.zeros(n, np.float32))
    _, wanted = p.check("route", p.tensors(logits), zero, spec)
    if spec.num_groups == 1:
        assert p.wanted.download(wanted[1])[0].tolist() == list(range(spec.top_k))


def test_route_bias_chooses_but_does_not_weigh(target: Target) -> None:
    spec = MoeSpec(4, 2, "sigmoid", True, 3.0)
    p = pair(target, GQA, spec)
    bias = np.array([-10, 0, 10, 0], np.float32)
    got, _ = p.check("route", p.tensors(np.zeros((1, 4), np.float32)), p.tensors(bias), spec)
    weights, ids = (p.ours.download(t) for t in got)
    assert ids.tolist() == [[2, 1]]
    np.testing.assert_allclose(weights, [[1.5, 1.5]], rtol=1e-6)


def test_route_negative_choice_scores_stay_ahead_of_closed_groups(target: Target) -> None:
    """Experts outside the chosen groups lose even against members whose biased score is negative."""
    spec = MoeSpec(4, 2, "sigmoid", False, 1.0, num_groups=2, top_groups=1)
    p = pair(target, GQA, spec)
    bias = np.array([-0.6, -3.4, -1.9, -1.9], np.float32)
    got, _ = p.check("route", p.tensors(np.zeros((1, 4), np.float32)), p.tensors(bias), spec)
    assert p.ours.download(got[1]).tolist() == [[2, 3]]


def test_route_extreme_logits(target: Target) -> None:
    spec = SPECS["355b"]
    p = pair(target, GQA, spec)
    logits = np.linspace(-200, 200, 32).reshape(2, 16).astype(np.float32)
    p.check("route", p.tensors(logits), p.tensors(np.linspace(0, 1, 16).astype(np.float32)), spec)


def packed(p: Pair, gate_up: FloatArray, down: FloatArray, split: bool) -> tuple[object, object]:
    """Experts from `[experts, 2 * width, hidden]`, given as one part or as gate and up."""
    half = gate_up.shape[1] // 2
    parts = [[weight(g[:half]), weight(g[half:])] if split else [weight(g)] for g in gate_up]
    a, b = (ops.pack_experts(parts, [weight(d) for d in down]) for ops in (p.ours, p.wanted))
    return a, b


def routed(p: Pair, tokens: int, spec: MoeSpec, seed: int) -> tuple[tuple[object, object], tuple[object, object]]:
    """Weights and ids from `route` on both sides."""
    logits, bias = p.tensors(normal(seed, tokens, spec.num_experts)), p.tensors(np.zeros(spec.num_experts, np.float32))
    ours, wanted = p.ours.route(logits[0], bias[0], spec), p.wanted.route(logits[1], bias[1], spec)
    return (ours[0], wanted[0]), (ours[1], wanted[1])


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("tokens", [0, 1, 2, 19])
@pytest.mark.parametrize(("hidden", "width"), [(36, 18), (64, 32)])
def test_experts(target: Target, split: bool, tokens: int, hidden: int, width: int) -> None:
    spec = MoeSpec(8, 3, "sigmoid", True, 1.7)
    p = pair(target, GQA, spec)
    w = packed(p, normal(1, 8, 2 * width, hidden, scale=0.2), normal(2, 8, hidden, width, scale=0.2), split)
    weights, ids = routed(p, tokens, spec, 3)
    p.check("experts", p.tensors(normal(4, tokens, hidden)), weights, ids, w)


def test_experts_that_nobody_chose_and_one_that_everybody_did(target: Target) -> None:
    spec = MoeSpec(6, 2, "sigmoid", True, 1.0)
    p = pair(target, GQA, spec)
    w = packed(p, normal(1, 6, 40, 32, scale=0.2), normal(2, 6, 32, 20, scale=0.2), True)
    logits = np.tile(np.array([9, 0, 0, 0, 0, 8], np.float32), (11, 1))
    zero = np.zeros(6, np.float32)
    ours = p.ours.route(p.ours.upload(logits), p.ours.upload(zero), spec)
    wanted = p.wanted.route(p.wanted.upload(logits), p.wanted.upload(zero), spec)
    p.check("experts", p.tensors(normal(3, 11, 32)), (ours[0], wanted[0]), (ours[1], wanted[1]), w)


def test_expert_ids_reach_the_right_weights(target: Target) -> None:
    """Each expert has its own magnitude, so a mix-up cannot hide in the tolerance."""
    spec = MoeSpec(5, 1, "sigmoid", True, 1.0)
    p = pair(target, GQA, spec)
    base = fitting_weights(target.precision, 64, 32)
    down = np.stack([fitting_weights(target.precision, 32, 32) * 4.0**e for e in range(5)])
    w = packed(p, np.stack([base * 0.01] * 5), down, False)
    logits = np.eye(5, dtype=np.float32)[[3, 0, 4, 1, 2, 3]]
    zero = np.zeros(5, np.float32)
    ours = p.ours.route(p.ours.upload(logits), p.ours.upload(zero), spec)
    wanted = p.wanted.route(p.wanted.upload(logits), p.wanted.upload(zero), spec)
    x = np.tile(fitting_inputs(target.precision, 1, 32), (6, 1)) * 0.01
    p.check("experts", p.tensors(x), (ours[0], wanted[0]), (ours[1], wanted[1]), w)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("tokens", [0, 1, 13])
def test_moe(target: Target, shared: bool, tokens: int) -> None:
    spec = SPECS["groups"]
    hidden, width, both = 36, 20, 40
    p = pair(target, GQA, spec)
    router = p.linear(normal(1, spec.num_experts, hidden, scale=0.5), role="router")
    bias = p.tensors(normal(2, spec.num_experts, scale=0.1))
    shape = (spec.num_experts, 2 * width, hidden)
    experts = packed(p, normal(3, *shape, scale=0.2), normal(4, spec.num_experts, hidden, width, scale=0.2), False)
    gate_up = p.linear(normal(5, 2 * both, hidden, scale=0.2)) if shared else (None, None)
    down = p.linear(normal(6, hidden, both, scale=0.2)) if shared else (None, None)
    weights = [MoeWeights(*side) for side in zip(router, bias, experts, gate_up, down, strict=True)]  # type: ignore[arg-type]
    p.check("moe", p.tensors(normal(7, tokens, hidden)), tuple(weights), spec)


def test_ids_come_back_from_the_device_as_they_went(target: Target) -> None:
    ids = np.array([[0, 2**24 + 1], [159, 7]], np.int32)  # not all of them have a float32 of their own
    ops = target.open()
    back = ops.download(ops.upload(ids))
    assert back.dtype == np.int32
    np.testing.assert_array_equal(back, ids)


def test_experts_take_ids_from_the_host(target: Target) -> None:
    p = pair(target, GQA, MoeSpec(8, 3, "sigmoid", True, 1.7))
    w = packed(p, normal(1, 8, 36, 36, scale=0.2), normal(2, 8, 36, 18, scale=0.2), True)
    ids = np.array([[7, 0, 3], [2, 1, 6]], np.int32)
    p.check("experts", p.tensors(normal(4, 2, 36)), p.tensors(normal(5, 2, 3)), p.tensors(ids), w)
