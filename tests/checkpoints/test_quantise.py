"""Encoders against their bounds, against damaged values, and against what the CPU backend makes of the same values."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from gallium.checkpoints.formats import FORMATS
from gallium.checkpoints.quantise import ENCODERS
from gallium.checkpoints.tensor import StoredTensor
from gallium.ops.backend import choose, installed
from gallium.ops.handles import AttentionSpec, ModelFacts, Precision, RopeSpec, Step

Floats = NDArray[np.float32]
HALF = 2.0**-11  # relative error of rounding to float16
BLOCKS = arrays(np.float32, (3, 64), elements=st.floats(-1e4, 1e4, width=32) | st.sampled_from([0.0, 1.0, 1e-3, -0.02]))


def coded(name: str, values: Floats) -> StoredTensor:
    return StoredTensor("w", values.shape, name, ENCODERS[name](values))


def mean_squares(name: str, values: Floats) -> NDArray[np.float64]:
    """Of the errors of each block."""
    found: NDArray[np.float64] = np.square(coded(name, values).float32().astype(np.float64) - values)
    return found.reshape(-1, 32).mean(axis=1)


@settings(deadline=None)
@given(BLOCKS)
def test_int8_is_within_half_a_step_on_average(values: Floats) -> None:
    step = np.abs(values.astype(np.float64)).reshape(-1, 32).max(axis=1) / 127
    assert (np.sqrt(mean_squares("Q8_0", values)) <= step * (0.5 + 127 * HALF) + 127 * 2.0**-24).all()


@settings(deadline=None)
@given(BLOCKS)
def test_int4_is_within_half_a_step_on_average(values: Floats) -> None:
    blocks = values.reshape(-1, 32).astype(np.float64)
    step = (blocks.max(axis=1) - blocks.min(axis=1)) / 15
    rounding = HALF * (np.abs(blocks).max(axis=1) + 15 * step) + 16 * 2.0**-24  # of scale and min
    assert (np.sqrt(mean_squares("Q4_1", values)) <= step / 2 + rounding).all()


@settings(deadline=None)
@given(BLOCKS)
def test_int8_is_never_worse_than_the_largest_magnitude_at_127(values: Floats) -> None:
    blocks = values.reshape(-1, 32)
    scale = (np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127)).astype(np.float16).astype(np.float32)
    quants = np.rint(np.divide(blocks, scale, out=np.zeros_like(blocks), where=scale != 0)).clip(-127, 127)
    plain = np.square((scale * quants).astype(np.float64) - blocks).mean(axis=1)
    assert (mean_squares("Q8_0", values) <= plain * (1 + 1e-5)).all()


@pytest.mark.parametrize(("name", "wanted"), [("Q8_0", 0.80), ("Q4_1", 0.85)])
def test_a_search_lowers_the_squared_error_of_weights(name: str, wanted: float) -> None:
    values = np.random.default_rng(3).standard_normal((256, 1024)).astype(np.float32)
    steps = (
        np.abs(values).reshape(-1, 32).max(axis=1) / 127 if name == "Q8_0" else np.ptp(values.reshape(-1, 32), 1) / 15
    )
    assert mean_squares(name, values).mean() < wanted * np.square(steps.astype(np.float64)).mean() / 12


@pytest.mark.parametrize("name", ["Q8_0", "Q4_1"])
def test_equal_values_survive(name: str) -> None:
    values = np.repeat(np.array([[0.0], [0.5], [-3.0], [127.0]], np.float32), 64, axis=1)
    np.testing.assert_allclose(coded(name, values).float32(), values, rtol=HALF)


@pytest.mark.parametrize("name", ["F32", "BF16", "Q8_0", "Q4_1"])
def test_a_packed_stack_is_coded_as_its_matrices_are(name: str) -> None:
    stack = np.random.default_rng(0).standard_normal((3, 4, 64)).astype(np.float32)
    whole = coded(name, stack)
    for i in range(3):
        assert whole.index(i).raw().tobytes() == ENCODERS[name](stack[i]).tobytes()


def matrices() -> list[Floats]:
    """Ordinary weights, and blocks that lead the encoder into its corners."""
    rng = np.random.default_rng(7)
    ordinary = rng.standard_normal((64, 96)).astype(np.float32) * np.float32(0.02)
    corners = np.zeros((16, 96), np.float32)
    corners[1] = 0.02  # one value
    corners[2] = np.linspace(-1, 1, 96)  # a line
    corners[3, ::32] = 5.0  # outliers
    corners[4] = rng.standard_normal(96) * 1e-8  # below float16's smallest scale
    corners[5] = rng.integers(0, 2, 96) * 0.01  # two values
    corners[6] = 1 + rng.standard_normal(96) * 1e-6  # far from zero, close together
    corners[7] = rng.standard_cauchy(96)
    corners[8:] = rng.standard_normal((8, 96)) * np.float32(10.0) ** rng.integers(-6, 4, (8, 1))
    return [ordinary, corners]


@pytest.mark.parametrize(("precision", "name"), [("int8", "Q8_0"), ("int4", "Q4_1")])
@pytest.mark.parametrize("values", matrices(), ids=["ordinary", "corners"])
def test_it_is_bit_for_bit_what_the_cpu_backend_packs(values: Floats, precision: Precision, name: str) -> None:
    attention = AttentionSpec("gqa", 2, 1, 16, 16, 0.25, RopeSpec(16, 10000.0, True))
    ops = choose("cpu", installed()).open(ModelFacts("glm", 1, 96, 64, attention), precision, 1)
    count = len(values)
    ids = np.arange(count, dtype=np.int32)
    plan = ops.plan(
        Step(ids, ids, np.array([0, count], np.int32), np.array([count], np.int32), np.full((1, 8), -1, np.int32), ids)
    )
    plain = StoredTensor("w", values.shape, "F32", values.reshape(-1).view(np.uint8))
    rows = [ops.download(ops.embed(plan, ops.pack_linear([w], [], "linear"))) for w in (plain, coded(name, values))]
    np.testing.assert_array_equal(rows[0], rows[1])
    np.testing.assert_array_equal(rows[1], FORMATS[name].values(ENCODERS[name](values)).reshape(values.shape))
