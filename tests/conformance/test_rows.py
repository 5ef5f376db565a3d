"""Ops that work row by row, and the blocks made of them."""

from __future__ import annotations

import numpy as np
import pytest
from tests.conformance.cases import (
    LAST_BIT,
    block_tables,
    fitting_inputs,
    fitting_weights,
    normal,
    pair,
    plain_step,
    step_of,
    whole,
)
from tests.conformance.targets import Target
from tests.models.memory_checkpoint import weight

from gallium.ops.handles import Precision, RopeSpec

TOKENS = [0, 1, 2, 3, 17]
SIZES = [(5, 7), (16, 32), (33, 97), (130, 64), (48, 288)]  # (out, in)


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize(("rows", "width"), SIZES)
def test_linear(target: Target, tokens: int, rows: int, width: int) -> None:
    p = pair(target)
    w = p.linear(normal(1, rows, width), normal(2, rows))
    p.check("linear", p.tensors(normal(3, tokens, width)), w)
    p.check("row_linear", p.tensors(normal(4, tokens, width)), w)


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize(("rows", "width"), [(1, 1), (1, 32), (3, 2), *SIZES, (17, 130)])
def test_linear_is_exact_where_nothing_is_lost(target: Target, tokens: int, rows: int, width: int) -> None:
    p = pair(target)
    if width == 1 and target.precision in ("int8", "int4"):
        weights, x = np.full((rows, 1), 127, np.float32), np.full((tokens, 1), 127, np.float32)
    else:
        weights, x = fitting_weights(target.precision, rows, width), fitting_inputs(target.precision, tokens, width)
    p.same("linear", p.tensors(x), p.linear(weights))
    p.same("linear", p.tensors(x), p.linear(weights, whole(9, -5, 5, rows)))


def test_linear_keeps_its_rows_in_the_order_of_the_parts(target: Target) -> None:
    ours, wanted = target.open(), target.reference
    sizes, width = (5, 19, 1), 32
    weights = [fitting_weights(target.precision, n, width) for n in sizes]
    biases = [normal(n, n) for n in sizes]
    x = fitting_inputs(target.precision, 4, width)
    got = [
        ops.download(
            ops.linear(ops.upload(x), ops.pack_linear([weight(a) for a in weights], [weight(b) for b in biases]))
        )
        for ops in (ours, wanted)
    ]
    slack = LAST_BIT.get(pair(target).activations, 1e-5)  # in 16 bits: of the result, and of the bias that it has in it
    np.testing.assert_allclose(got[0], got[1], rtol=slack, atol=slack)


def test_linear_facts(target: Target) -> None:
    w, _ = pair(target).linear(normal(1, 37, 50))
    assert (w.in_features, w.out_features) == (50, 37)


def test_a_router_stays_in_float32(target: Target) -> None:
    p = pair(target)
    p.same("linear", p.tensors(normal(1, 9, 70)), p.linear(normal(2, 12, 70), role="router"))


def test_zero_rows_and_zero_inputs(target: Target) -> None:
    p = pair(target)
    weights = fitting_weights(target.precision, 20, 40)
    weights[3] = 0
    x = fitting_inputs(target.precision, 3, 40)
    x[1] = 0
    p.same("linear", p.tensors(x), p.linear(weights))


@pytest.mark.parametrize("role", ["embedding", "head"])
def test_embed(target: Target, role: str) -> None:
    p = pair(target)
    table = p.linear(normal(1, 11, 50), role=role)  # type: ignore[arg-type]
    for tokens in TOKENS:
        p.check("embed", p.plans(plain_step(tokens)), table)


def test_a_tied_head_is_read_both_ways(target: Target) -> None:
    p = pair(target)
    precision: Precision = "int8" if target.precision == "int4" else target.precision
    table = p.linear(fitting_weights(precision, 43, 64), role="head")
    p.same("embed", p.plans(plain_step(13)), table)
    p.same("linear", p.tensors(fitting_inputs(target.precision, 5, 64)), table)


@pytest.mark.parametrize("tokens", TOKENS)
def test_head_linear(target: Target, tokens: int) -> None:
    p = pair(target)
    p.check("head_linear", p.tensors(normal(1, tokens, 3, 24)), p.heads(normal(2, 3, 18, 24)))
    exact = np.stack([fitting_weights(target.precision, 18, 24 + h)[:, :24] for h in range(3)])
    if target.precision in ("float32", "bfloat16"):
        p.same("head_linear", p.tensors(whole(3, -15, 15, tokens, 3, 24)), p.heads(exact))


@pytest.mark.parametrize("shape", [(0, 8), (1, 1), (1, 33), (5, 64), (3, 2, 12)])
def test_add_and_rms_norm(target: Target, shape: tuple[int, ...]) -> None:
    p = pair(target)
    x, y, gain = normal(1, *shape), normal(2, *shape), normal(3, shape[-1])
    p.check("add", p.tensors(x), p.tensors(y))
    for eps in (1e-5, 1.5625e-7):
        p.check("rms_norm", p.tensors(x * 3), p.tensors(gain), eps)


def test_rms_norm_of_zeros_and_of_large_and_small_rows(target: Target) -> None:
    p = pair(target)
    x = normal(1, 4, 40)
    x[0], x[1], x[2] = 0, x[1] * 1e4, x[2] * 1e-4
    p.check("rms_norm", p.tensors(x), p.tensors(normal(2, 40)), 1e-5)


@pytest.mark.parametrize("tokens", TOKENS)
def test_add_rms_norm(target: Target, tokens: int) -> None:
    p = pair(target)
    x, residual, gain = (p.tensors(normal(seed, *shape)) for seed, shape in enumerate([(tokens, 40)] * 2 + [(40,)]))
    p.check("add_rms_norm", x, residual, gain, 1e-5)
    x = p.tensors(normal(7, tokens, 40))
    p.check("add_rms_norm", x, None, gain, 1e-5)


@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize(("dim", "width"), [(2, 2), (8, 16), (12, 12), (6, 20), (64, 128)])
def test_rope(target: Target, interleaved: bool, dim: int, width: int) -> None:
    p = pair(target)
    for base in (1e4, 5e6):
        spec = RopeSpec(dim, base, interleaved)
        for tokens in TOKENS:
            step = p.plans(plain_step(tokens, first=3))
            p.check("rope", p.tensors(normal(tokens, tokens, 3, width)), step, spec)


def test_rope_far_out_and_over_several_sequences(target: Target) -> None:
    p = pair(target)
    tables, _ = block_tables([131072, 5, 40], 4096)
    step = p.plans(step_of([(131070, 2), (0, 5), (39, 1)], tables))
    for interleaved in (True, False):
        p.check("rope", p.tensors(normal(1, 8, 2, 64)), step, RopeSpec(64, 1e4, interleaved))


def test_rope_of_two_specs_in_one_plan(target: Target) -> None:
    p = pair(target)
    step = p.plans(plain_step(6))
    for spec in (RopeSpec(8, 1e4, True), RopeSpec(16, 1e6, False), RopeSpec(8, 1e6, True)):
        p.check("rope", p.tensors(normal(1, 6, 2, 16)), step, spec)


@pytest.mark.parametrize("shape", [(0, 8), (1, 2), (3, 34), (4, 128)])
def test_swiglu(target: Target, shape: tuple[int, int]) -> None:
    p = pair(target)
    p.check("swiglu", p.tensors(normal(1, *shape, scale=3)))


def test_swiglu_saturates_quietly(target: Target) -> None:
    p = pair(target)
    p.check("swiglu", p.tensors(np.array([[-200, -90, 0, 90, 200, 1, 1, 1, 1, 1]], np.float32)))


@pytest.mark.parametrize("rows", [[], [0], [4], [1, 3], [4, 0, 0]])
def test_take_rows(target: Target, rows: list[int]) -> None:
    p = pair(target)
    tables, _ = block_tables([5], 4)
    p.check("take_rows", p.tensors(normal(1, 5, 9)), p.plans(step_of([(0, 5)], tables, rows)))


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize(("hidden", "width"), [(36, 50), (64, 96)])
def test_gated_mlp(target: Target, tokens: int, hidden: int, width: int) -> None:
    p = pair(target)
    gate_up, down = p.linear(normal(1, 2 * width, hidden, scale=0.2)), p.linear(normal(2, hidden, width, scale=0.2))
    p.check("gated_mlp", p.tensors(normal(3, tokens, hidden)), gate_up, down)


def test_gated_mlp_with_biases(target: Target) -> None:
    p = pair(target)
    gate_up, down = p.linear(normal(1, 80, 33), normal(2, 80)), p.linear(normal(3, 33, 40), normal(4, 33))
    p.check("gated_mlp", p.tensors(normal(5, 6, 33)), gate_up, down)


def test_all_reduce_on_one_device(target: Target) -> None:
    p = pair(target)
    p.check("all_reduce", p.tensors(normal(1, 3, 5)))


def test_slices_and_reshapes_are_views_that_ops_accept(target: Target) -> None:
    """A model slices q, k and v out of one projection: rows are then not contiguous."""
    p = pair(target)
    x = normal(1, 4, 60)
    whole_x = p.tensors(x)
    part = tuple(t[:, 12:36].reshape(4, 2, 12) for t in whole_x)
    p.check("rms_norm", part, p.tensors(normal(2, 12)), 1e-5)
    p.check("rope", part, p.plans(plain_step(4)), RopeSpec(6, 1e4, True))
    p.check("rms_norm", tuple(t[:, :24] for t in whole_x), p.tensors(normal(3, 24)), 1e-5)
    p.check("linear", tuple(t[:, 24:56] for t in whole_x), p.linear(normal(4, 9, 32)))
