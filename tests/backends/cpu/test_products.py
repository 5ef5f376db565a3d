"""Products with packed matrices: a row's bits depend on the row alone, on every level and in every precision."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from tests.models.memory_checkpoint import weight

from gallium.backends.cpu import library
from gallium.backends.cpu.ops import CpuOps
from gallium.errors import BackendError
from gallium.models.decoder import MoeWeights
from gallium.ops.handles import FloatArray, Linear, MoeSpec, Precision

PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16", "int8", "int4")


def normal(seed: int, *shape: int) -> FloatArray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.fixture(params=PRECISIONS)
def precision(request: pytest.FixtureRequest) -> Precision:
    found: Precision = request.param
    return found


SIZES = (*range(1, 18), 31, 32, 33, 63, 64)
Op = Callable[[slice], FloatArray]


def linear(ops: CpuOps, rows: int, cols: int) -> Op:
    w, x = ops.pack_linear([weight(normal(1, rows, cols))], [weight(normal(2, rows))]), normal(3, 64, cols)
    return lambda part: ops.linear(x[part], w)


def heads(ops: CpuOps, rows: int, cols: int) -> Op:
    w, x = ops.pack_heads([weight(normal(h, rows, cols)) for h in range(3)]), normal(3, 64, 3, cols)
    return lambda part: ops.head_linear(x[part], w)


def mlp_weights(ops: CpuOps, width: int, hidden: int, seed: int) -> tuple[Linear, Linear]:
    gate_up = ops.pack_linear([weight(normal(seed, 2 * width, hidden) * 0.2)], [weight(normal(seed + 1, 2 * width))])
    return gate_up, ops.pack_linear([weight(normal(seed + 2, hidden, width) * 0.2)])


def gated_mlp(ops: CpuOps, width: int, hidden: int) -> Op:
    w, x = mlp_weights(ops, width, hidden, 1), normal(4, 64, hidden)
    return lambda part: ops.gated_mlp(x[part], *w)


def mixture(ops: CpuOps, width: int, hidden: int) -> Op:
    """Six routed experts, one of which everybody meets, and a shared one of another width."""
    experts = ops.pack_experts(
        [[weight(normal(10 + e, 2 * width, hidden) * 0.2)] for e in range(6)],
        [weight(normal(20 + e, hidden, width) * 0.2) for e in range(6)],
    )
    router = ops.pack_linear([weight(normal(7, 6, hidden))], role="router")
    bias = np.array([0, 0, 9, 0, 0, -9], np.float32)
    w = MoeWeights(router, bias, experts, *mlp_weights(ops, width + 8, hidden, 40))
    x, spec = normal(5, 64, hidden), MoeSpec(6, 3, "sigmoid", True, 1.5)
    return lambda part: ops.moe(x[part], w, spec)


OPS = {
    "linear": (linear, [(48, 96), (200, 330), (17, 33)]),
    "head_linear": (heads, [(40, 48)]),
    "gated_mlp": (gated_mlp, [(96, 64), (150, 97), (24, 40)]),
    "moe": (mixture, [(64, 48), (40, 33)]),
}
CASES = [(op, *shape) for op, (_, shapes) in OPS.items() for shape in shapes]


@pytest.mark.parametrize(("op", "rows", "cols"), CASES)
def test_a_row_alone_and_in_company(level: str, precision: Precision, op: str, rows: int, cols: int) -> None:
    """Any number of rows from 1 to 64, at both ends of the batch: so any way to cut it."""
    run = OPS[op][0](CpuOps(precision), rows, cols)
    together = run(slice(64))
    assert np.isfinite(together).all()
    for count in SIZES:
        np.testing.assert_array_equal(run(slice(count)), together[:count])
        np.testing.assert_array_equal(run(slice(64 - count, 64)), together[64 - count :])
    np.testing.assert_array_equal(run(slice(None, None, -1)), together[::-1])


@pytest.mark.parametrize("op", OPS)
def test_threads_do_not_change_a_bit(threads: None, precision: Precision, op: str) -> None:
    run = OPS[op][0](CpuOps(precision), 300, 128)
    library.set_threads(1)
    one = run(slice(37))
    for count in (2, 3, 7):
        library.set_threads(count)
        for _ in range(5):
            np.testing.assert_array_equal(run(slice(37)), one)


@pytest.mark.parametrize(("width", "hidden"), [(96, 64), (150, 97), (24, 40), (16, 32)])
def test_fused_blocks_have_the_bits_of_their_parts(level: str, precision: Precision, width: int, hidden: int) -> None:
    ops = CpuOps(precision)
    gate_up, down = mlp_weights(ops, width, hidden, 1)
    for tokens in (1, 5, 64, 131):
        x = normal(4, tokens, hidden)
        apart = ops.linear(ops.swiglu(ops.linear(x, gate_up)), down)
        np.testing.assert_array_equal(ops.gated_mlp(x, gate_up, down), apart)


def test_a_shared_expert_has_the_bits_of_an_mlp_beside_the_others(level: str, precision: Precision) -> None:
    ops = CpuOps(precision)
    shared = mlp_weights(ops, 40, 48, 1)
    experts = ops.pack_experts(
        [[weight(normal(10 + e, 48, 48) * 0.2)] for e in range(4)],
        [weight(normal(20 + e, 48, 24) * 0.2) for e in range(4)],
    )
    rng = np.random.default_rng(5)
    for tokens in (1, 2, 33):
        ids = np.stack([rng.permutation(4)[:2] for _ in range(tokens)]).astype(np.int32)
        x, weights = normal(4, tokens, 48), rng.random((tokens, 2)).astype(np.float32)
        apart = ops.add(ops.experts(x, weights, ids, experts), ops.gated_mlp(x, *shared))
        np.testing.assert_array_equal(ops._linear.experts(x, weights, ids, experts, shared), apart)


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_integer_products_are_the_same_on_all_levels_without_tiles(kind: Precision) -> None:
    """The integer sums are exact; only the last float operations may round differently. AMX: see test_tiles.py."""
    before, results = library.level(), []
    ops = CpuOps(kind)
    w = ops.pack_linear([weight(normal(1, 90, 200))])
    x = normal(2, 19, 200)
    for name in library.available_levels():
        if not name.startswith("amx"):
            library.set_level(name)
            results.append(ops.linear(x, w))
    library.set_level(before)
    for other in results[1:]:
        np.testing.assert_allclose(other, results[0], rtol=1e-5, atol=1e-5)


def test_inputs_that_do_not_fit_are_refused() -> None:
    ops = CpuOps("float32")
    w = ops.pack_linear([weight(normal(1, 8, 16))])
    with pytest.raises(BackendError, match="from 16"):
        ops.linear(normal(2, 3, 15), w)
    with pytest.raises(BackendError, match="float32, not float64"):
        ops.linear(np.zeros((2, 16)), w)
    experts = ops.pack_experts([[weight(normal(1, 8, 16))]], [weight(normal(2, 16, 4))])
    one = np.ones((1, 1), np.float32)
    with pytest.raises(BackendError, match="outside the 1 experts"):
        ops.experts(normal(3, 1, 16), one, np.array([[1]], np.int32), experts)
