"""Products with packed matrices: a row's bits depend on the row alone, on every level and in every precision."""

from __future__ import annotations

import numpy as np
import pytest
from tests.models.memory_checkpoint import weight

from gallium.backends.cpu import library
from gallium.backends.cpu.ops import CpuOps
from gallium.errors import BackendError
from gallium.ops.handles import FloatArray, Precision

PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16", "int8", "int4")


def normal(seed: int, *shape: int) -> FloatArray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.fixture(params=PRECISIONS)
def precision(request: pytest.FixtureRequest) -> Precision:
    found: Precision = request.param
    return found


@pytest.mark.parametrize(("rows", "cols"), [(48, 96), (200, 330), (17, 33)])
def test_a_row_alone_and_in_company(level: str, precision: Precision, rows: int, cols: int) -> None:
    ops = CpuOps(precision)
    w = ops.pack_linear([weight(normal(1, rows, cols))], [weight(normal(2, rows))])
    x = normal(3, 70, cols)
    together = ops.linear(x, w)
    for count in (1, 2, 3, 5, 6, 7, 8, 9, 15, 16, 17, 31, 32, 33):
        np.testing.assert_array_equal(ops.linear(x[:count], w), together[:count])
    np.testing.assert_array_equal(ops.linear(x[41:42], w), together[41:42])
    np.testing.assert_array_equal(ops.linear(x[::-1].copy(), w), together[::-1])


def test_experts_alone_and_in_company(level: str, precision: Precision) -> None:
    ops = CpuOps(precision)
    experts = ops.pack_experts(
        [[weight(normal(10 + e, 80, 48) * 0.2)] for e in range(6)],
        [weight(normal(20 + e, 48, 40) * 0.2) for e in range(6)],
    )
    rng = np.random.default_rng(5)
    ids = np.stack([rng.permutation(6)[:3] for _ in range(40)]).astype(np.int32)
    x, weights = normal(4, 40, 48), rng.random((40, 3)).astype(np.float32)
    together = ops.experts(x, weights, ids, experts)
    for t in range(0, 40, 3):
        row = slice(t, t + 1)
        np.testing.assert_array_equal(ops.experts(x[row], weights[row], ids[row], experts), together[row])


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_threads_do_not_change_a_bit(threads: None, precision: Precision, count: int) -> None:
    ops = CpuOps(precision)
    w = ops.pack_linear([weight(normal(1, 300, 128))])
    x = normal(2, 37, 128)
    library.set_threads(1)
    one = ops.linear(x, w)
    library.set_threads(count)
    for _ in range(20):
        np.testing.assert_array_equal(ops.linear(x, w), one)


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_integer_products_are_the_same_on_all_levels(kind: Precision) -> None:
    """The integer sums are exact; only the last float operations may round differently."""
    before, results = library.level(), []
    ops = CpuOps(kind)
    w = ops.pack_linear([weight(normal(1, 90, 200))])
    x = normal(2, 19, 200)
    for name in library.available_levels():
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
    with pytest.raises(BackendError, match="out of range"):
        ops.experts(normal(3, 1, 16), one, np.array([[1]], np.int32), experts)
