"""A checkpoint's own integers: the results are the definition's, bit for bit, on every level."""

from __future__ import annotations

import numpy as np
import pytest
from tests.backends.cpu.integer_weights import IntegerWeight, product, random_weight
from tests.models.memory_checkpoint import weight

from gallium.backends.cpu.arrays import address
from gallium.backends.cpu.ops import CpuOps
from gallium.errors import BackendError
from gallium.ops.handles import FloatArray, Precision, Step

SHAPES = [(48, 96), (17, 33), (200, 330), (16, 32), (5, 2048)]
STATIC = (0.02, 7)


def normal(seed: int, *shape: int) -> FloatArray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def precision_of(w: IntegerWeight) -> Precision:
    return "int8" if w.quantisation.bits == 8 else "int4"


@pytest.mark.parametrize("tokens", [1, 2, 9, 33, 70])
@pytest.mark.parametrize(("rows", "cols"), SHAPES)
@pytest.mark.parametrize(("bits", "static"), [(8, None), (4, None), (8, STATIC), (8, (0.005, -128)), (8, (0.5, 0))])
def test_products(level: str, bits: int, static: tuple[float, int] | None, rows: int, cols: int, tokens: int) -> None:
    w = random_weight(rows + cols, rows, cols, bits, static=static)
    ops, x, bias = CpuOps(precision_of(w)), normal(1, tokens, cols), normal(2, rows)
    np.testing.assert_array_equal(ops.linear(x, ops.pack_linear([w])), product(x, [w]))
    np.testing.assert_array_equal(ops.linear(x, ops.pack_linear([w], [weight(bias)])), product(x, [w], bias))


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(("cols", "groups"), [(64, 2), (256, 2), (256, 8), (768, 3)])
def test_several_groups_of_columns(level: str, bits: int, cols: int, groups: int) -> None:
    w = random_weight(3, 40, cols, bits, groups)
    ops, x = CpuOps(precision_of(w)), normal(1, 37, cols)
    np.testing.assert_array_equal(ops.linear(x, ops.pack_linear([w])), product(x, [w]))


def test_the_largest_sums_that_there_are(level: str) -> None:
    """Every product 128 * 128 or 127 * 127, in as many columns as are taken."""
    for code, value in ((-128, -1.0), (127, 1.0)):
        codes = np.full((16, 1 << 16), code, np.int8)
        w = random_weight(1, 16, 1 << 16, static=(1 / 256, 0))
        w = IntegerWeight("w", codes, w.quantisation)
        ops, x = CpuOps("int8"), np.full((1, 1 << 16), value, np.float32)
        np.testing.assert_array_equal(ops.linear(x, ops.pack_linear([w])), product(x, [w]))


def test_halves_go_to_even_and_what_is_too_large_stays_within(level: str) -> None:
    w = IntegerWeight("w", np.eye(32, dtype=np.int8), random_weight(1, 32, 32, static=(1.0, 0)).quantisation)
    w.quantisation.output_scale[:] = 1.0  # type: ignore[index]
    w.quantisation.correction[:] = 0  # type: ignore[index]
    x = np.zeros((1, 32), np.float32)
    x[0, :9] = [0.5, 1.5, 2.5, -0.5, -1.5, 300.0, -300.0, 1e30, -1e30]
    got = CpuOps("int8").linear(x, CpuOps("int8").pack_linear([w]))
    assert got[0, :9].tolist() == [0, 2, 2, 0, -2, 127, -128, 127, -128]


def test_parts_are_stacked(level: str) -> None:
    parts = [random_weight(seed, rows, 96) for seed, rows in ((1, 20), (2, 7), (3, 33))]
    ops, x = CpuOps("int8"), normal(4, 5, 96)
    np.testing.assert_array_equal(ops.linear(x, ops.pack_linear(parts)), product(x, parts))


def test_a_row_alone_and_in_company(level: str) -> None:
    for bits, groups in ((8, 1), (4, 1), (4, 3)):
        w = random_weight(9, 50, 96, bits, groups)
        ops, x = CpuOps(precision_of(w)), normal(3, 70, 96)
        packed = ops.pack_linear([w])
        together = ops.linear(x, packed)
        for count in (1, 2, 3, 31, 32, 33, 65):
            np.testing.assert_array_equal(ops.linear(x[:count], packed), together[:count])
        np.testing.assert_array_equal(ops.linear(x[::-1].copy(), packed), together[::-1])


@pytest.mark.parametrize("bits", [8, 4])
def test_gated_mlp(level: str, bits: int) -> None:
    gate, up, down = random_weight(1, 80, 48, bits), random_weight(2, 80, 48, bits), random_weight(3, 48, 80, bits)
    ops, x = CpuOps(precision_of(gate)), normal(4, 9, 48)
    inner = ops.swiglu(ops.linear(x, ops.pack_linear([gate, up])))
    got = ops.gated_mlp(x, ops.pack_linear([gate, up]), ops.pack_linear([down]))
    np.testing.assert_array_equal(got, product(inner, [down]))


@pytest.mark.parametrize("bits", [8, 4])
def test_experts(level: str, bits: int) -> None:
    gate_up = [[random_weight(10 + e, 40, 64, bits), random_weight(20 + e, 40, 64, bits)] for e in range(5)]
    down = [random_weight(30 + e, 64, 40, bits) for e in range(5)]
    ops, x = CpuOps(precision_of(down[0])), normal(4, 12, 64)
    rng = np.random.default_rng(5)
    ids = np.stack([rng.permutation(5)[:2] for _ in range(12)]).astype(np.int32)
    weights = rng.random((12, 2)).astype(np.float32)
    wanted = np.zeros_like(x)
    for t in range(12):
        for weight_of, e in zip(weights[t], ids[t], strict=True):
            inner = ops.swiglu(product(x[t : t + 1], gate_up[e]))
            wanted[t] += weight_of * product(inner, [down[e]])[0]
    np.testing.assert_array_equal(ops.experts(x, weights, ids, ops.pack_experts(gate_up, down)), wanted)


def test_zero_and_damaged_rows(level: str) -> None:
    w = random_weight(1, 20, 64)
    ops = CpuOps("int8")
    x = np.zeros((3, 64), np.float32)
    x[1, 5], x[2, 7] = np.nan, np.inf
    got = ops.linear(x, ops.pack_linear([w]))
    assert not got[0].any() and np.isnan(got[1]).all() and not np.isfinite(got[2]).any()
    fixed = random_weight(2, 20, 64, static=STATIC)
    assert np.isnan(ops.linear(x, ops.pack_linear([fixed]))[1]).all()


@pytest.mark.parametrize(("bits", "groups"), [(8, 1), (4, 1), (4, 4)])
def test_rows_are_read_as_they_decode(bits: int, groups: int) -> None:
    w = random_weight(1, 50, 128, bits, groups)
    ops = CpuOps(precision_of(w))
    ids = np.array([0, 49, 17], np.int32)
    plan = ops.plan(step(ids))
    np.testing.assert_array_equal(ops.embed(plan, ops.pack_linear([w], role="linear")), w.float32()[ids])


def step(ids: np.ndarray) -> Step:  # type: ignore[type-arg]
    n = len(ids)
    numbers = np.arange(n, dtype=np.int32)
    return Step(ids, numbers, np.array([0, n], np.int32), np.array([n], np.int32), numbers[None, :1], numbers)


def test_another_precision_decodes() -> None:
    w = random_weight(1, 32, 64)
    x = normal(2, 3, 64)
    for precision, bound in (("float32", 1e-5), ("bfloat16", 0.02), ("int4", 0.3)):
        ops = CpuOps(precision)  # type: ignore[arg-type]
        packed = ops.pack_linear([w])
        assert packed.data.integers is None
        wanted = x @ w.float32().T
        assert np.abs(ops.linear(x, packed) - wanted).max() < bound * np.abs(wanted).max()


def test_roles_that_stay_finer() -> None:
    """In an int4 model the integers of an 8-bit matrix are computed when its maker kept it finer, not when asked."""
    w = random_weight(1, 32, 64)
    assert CpuOps("int4").pack_linear([w], role="sensitive").data.integers is not None
    assert CpuOps("int4").pack_linear([w]).data.integers is None
    assert CpuOps("int4").pack_linear([weight(normal(1, 32, 64))], role="float").data.kind == 1
    assert CpuOps("float32").pack_linear([weight(normal(1, 32, 64))], role="float").data.kind == 0


def test_parts_that_do_not_agree_are_refused() -> None:
    with pytest.raises(BackendError, match="w1, w2 are one projection"):
        CpuOps("int8").pack_linear([random_weight(1, 16, 64), random_weight(2, 16, 64, static=STATIC)])
    with pytest.raises(BackendError, match="w1, w2 are one projection"):
        CpuOps("int8").pack_linear([random_weight(1, 16, 64), random_weight(2, 16, 64, groups=2)])


def test_groups_that_the_kernels_do_not_know_are_refused() -> None:
    with pytest.raises(BackendError, match="64 columns in 4 groups"):
        CpuOps("int4").pack_linear([random_weight(1, 16, 64, 4, 4)])


def test_static_experts_are_refused() -> None:
    with pytest.raises(BackendError, match="experts with static activations"):
        CpuOps("int8").pack_experts([[random_weight(1, 64, 32, static=STATIC)]], [random_weight(2, 32, 32)])


def test_memory_of_scales_is_counted_and_aligned() -> None:
    ops = CpuOps("int8")
    packed = ops.pack_linear([random_weight(1, 40, 64)]).data
    assert ops.weight_bytes == packed.memory.nbytes + 48 * 4
    assert address(packed.memory) % 64 == 0
