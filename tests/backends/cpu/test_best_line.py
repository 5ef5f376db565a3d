"""The search for an int4 group's line: never worse than the plain range, one result everywhere, damage visible."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from tests.backends.cpu.test_packing import rows_of
from tests.models.memory_checkpoint import weight

from gallium.backends.cpu import library
from gallium.backends.cpu.ops import CpuOps
from gallium.ops.handles import FloatArray

ELEMENTS = (
    st.floats(-6e4, 6e4, width=32) | st.floats(-0.125, 0.125, width=32) | st.sampled_from([0.0, 1.0, 1e-3, -0.02])
)
GROUPS = st.integers(1, 32).flatmap(lambda n: arrays(np.float32, (4, n), elements=ELEMENTS))


def packed(values: FloatArray) -> FloatArray:
    """What an int4 matrix holds of these rows."""
    ops = CpuOps("int4")
    return rows_of(ops, ops.pack_linear([weight(values)]), list(range(len(values))))


def plain(values: FloatArray) -> FloatArray:
    """The range from least to greatest value in 15 steps, for groups of up to 32 values."""
    low, high = values.min(1, keepdims=True), values.max(1, keepdims=True)
    d = np.minimum((high - low) / np.float32(15), np.float32(65504)).astype(np.float16).astype(np.float32)
    m = low.astype(np.float16).astype(np.float32)
    q = np.clip(np.rint(np.divide(values - m, d, out=np.zeros_like(values), where=d != 0)), 0, 15)
    return d * q + m


def squared(off: FloatArray) -> FloatArray:
    """Summed over each row."""
    total: FloatArray = np.square(off.astype(np.float64)).sum(1)
    return total


@settings(deadline=None)
@given(GROUPS)
def test_the_line_found_is_never_worse_than_the_plain_range(values: FloatArray) -> None:
    ours, theirs = squared(packed(values) - values), squared(plain(values) - values)
    rounding = 1e-5 * theirs + 1e-13 * squared(values)  # of errors that are summed in float32
    assert (ours <= theirs + rounding).all()


def test_ordinary_weights_lose_a_fifth_of_their_error_by_the_search() -> None:
    values = np.random.default_rng(0).standard_normal((2000, 32)).astype(np.float32)
    assert squared(packed(values) - values).sum() < 0.79 * squared(plain(values) - values).sum()


@pytest.mark.parametrize("columns", [1, 7, 31, 32, 45])
@pytest.mark.parametrize("value", [0.0, 0.02, -3.0, 1e-9, 5e4])
def test_equal_values_come_back_as_float16_has_them(columns: int, value: float) -> None:
    values = np.full((3, columns), value, np.float32)
    np.testing.assert_array_equal(packed(values), values.astype(np.float16).astype(np.float32))


@pytest.mark.parametrize("scale", [1e-45, 1e-38, 1e-20, 1e-8, 1e3])
def test_no_size_is_mistaken_for_damage(scale: float) -> None:
    values = (np.random.default_rng(1).uniform(-1, 1, (5, 40)) * scale).astype(np.float32)
    off = np.abs(packed(values) - values)
    assert (off <= 2 * np.abs(values).max() / 15 + 2.0**-24).all()


def test_what_float16_cannot_hold_is_clipped_not_made_nan() -> None:
    values = np.linspace(-1e30, 1e30, 32, dtype=np.float32)[None]
    assert np.isfinite(packed(values)).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 3, 31, 32, 36])
def test_damage_is_seen_wherever_it_stands(bad: float, place: int) -> None:
    values = np.random.default_rng(2).standard_normal((2, 37)).astype(np.float32)
    values[1, place] = bad
    got = packed(values)
    assert np.isfinite(got[0]).all()
    group = slice(0, 32) if place < 32 else slice(32, 37)
    assert np.isnan(got[1, group]).all()


def test_threads_and_level_do_not_change_a_bit(level: str, threads: None) -> None:
    values = np.random.default_rng(3).standard_normal((333, 100)).astype(np.float32)
    found = []
    for count in (1, 2, 5):
        library.set_threads(count)
        ops = CpuOps("int4")
        found.append(b"".join(a.tobytes() for a in ops.export(ops.pack_linear([weight(values)])).arrays.values()))
    assert found[0] == found[1] == found[2]
    ops = CpuOps("int4")
    library.set_level("generic")
    assert found[0] == b"".join(a.tobytes() for a in ops.export(ops.pack_linear([weight(values)])).arrays.values())
