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
from gallium.ops.handles import AttentionSpec, ModelFacts, RopeSpec, Step

Floats = NDArray[np.float32]
HALF = 2.0**-11  # relative error of rounding to float16
BLOCKS = arrays(np.float32, (3, 64), elements=st.floats(-1e4, 1e4, width=32) | st.sampled_from([0.0, 1.0, 1e-3, -0.02]))


def coded(name: str, values: Floats) -> StoredTensor:
    return StoredTensor("w", values.shape, name, ENCODERS[name](values))


@settings(deadline=None)
@given(BLOCKS)
def test_int8_is_within_half_a_step(values: Floats) -> None:
    error = np.abs(coded("Q8_0", values).float32() - values).reshape(-1, 32)
    largest = np.abs(values).reshape(-1, 32).max(axis=1, keepdims=True)
    step = largest / 127
    assert (error <= step * (0.5 + 127 * HALF) + 127 * 2.0**-24).all()


@settings(deadline=None)
@given(BLOCKS)
def test_int4_is_within_half_a_step_on_average(values: Floats) -> None:
    error = np.square(coded("Q4_1", values).float32().astype(np.float64) - values).reshape(-1, 32).mean(axis=1)
    blocks = values.reshape(-1, 32).astype(np.float64)
    step = (blocks.max(axis=1) - blocks.min(axis=1)) / 15
    rounding = HALF * (np.abs(blocks).max(axis=1) + 15 * step) + 16 * 2.0**-24  # of scale and min
    assert (np.sqrt(error) <= step / 2 + rounding).all()


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


@pytest.mark.parametrize("values", matrices(), ids=["ordinary", "corners"])
def test_int4_is_bit_for_bit_what_the_cpu_backend_packs(values: Floats) -> None:
    attention = AttentionSpec("gqa", 2, 1, 16, 16, 0.25, RopeSpec(16, 10000.0, True))
    ops = choose("cpu", installed()).open(ModelFacts("glm", 1, 96, 64, attention), "int4", 1)
    count = len(values)
    ids = np.arange(count, dtype=np.int32)
    plan = ops.plan(
        Step(ids, ids, np.array([0, count], np.int32), np.array([count], np.int32), np.full((1, 8), -1, np.int32), ids)
    )
    plain = StoredTensor("w", values.shape, "F32", values.reshape(-1).view(np.uint8))
    rows = [ops.download(ops.embed(plan, ops.pack_linear([w], [], "linear"))) for w in (plain, coded("Q4_1", values))]
    np.testing.assert_array_equal(rows[0], rows[1])
    np.testing.assert_array_equal(rows[1], FORMATS["Q4_1"].values(ENCODERS["Q4_1"](values)).reshape(values.shape))
