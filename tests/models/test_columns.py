"""Columns of weights: the same numbers as in the whole, kept in their coding where that can be, with their scales."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.models.integer_checkpoint import Integers

from gallium.checkpoints.formats import FORMATS
from gallium.checkpoints.tensor import StoredTensor
from gallium.errors import UnsupportedFormat
from gallium.models.columns import Columns
from gallium.ops.handles import FloatArray, Quantisation


def stored(storage: str, rows: int, columns: int, seed: int = 0) -> StoredTensor:
    """Random finite numbers in any coding."""
    form, rng = FORMATS[storage], np.random.default_rng(seed)
    data = rng.integers(0, 256, form.num_bytes(rows * columns), np.uint8)
    tensor = StoredTensor("w", (rows, columns), storage, data)
    if form.block == 1:
        exact = rng.integers(-99, 99, rows * columns).astype(np.float32)
        coded = {"F32": exact, "F16": exact.astype(np.float16), "BF16": (exact.view(np.uint32) >> 16).astype(np.uint16)}
        tensor = StoredTensor("w", (rows, columns), storage, coded[storage].view(np.uint8))
    return tensor


@settings(deadline=None, max_examples=150)
@given(st.sampled_from(list(FORMATS)), st.data())
def test_columns_hold_the_numbers_of_the_whole(storage: str, data: st.DataObject) -> None:
    block = FORMATS[storage].block
    width = max(block, 8) * 3
    whole = stored(storage, 5, width)
    left, right = sorted(data.draw(st.tuples(st.integers(0, width), st.integers(0, width))))
    first, last = sorted(data.draw(st.tuples(st.integers(0, 5), st.integers(0, 5))))
    cut, expected = Columns(whole, range(left, right)), whole.float32()[:, left:right]
    assert cut.shape == expected.shape
    np.testing.assert_array_equal(cut.float32(), expected)
    np.testing.assert_array_equal(cut.float32(1, 3), expected[1:3])
    np.testing.assert_array_equal(cut.rows(first, last).float32(), expected[first:last])
    np.testing.assert_array_equal(FORMATS[cut.storage].values(cut.raw()), expected.reshape(-1))
    assert cut.storage == (storage if left % block == 0 and right % block == 0 else "F32")


@pytest.mark.parametrize("storage", FORMATS)
def test_only_the_bytes_of_the_columns_are_copied(storage: str) -> None:
    whole = stored(storage, 6, 2 * max(FORMATS[storage].block, 8))
    half = whole.shape[1] // 2
    parts = [Columns(whole, range(0, half)).raw(), Columns(whole, range(half, 2 * half)).raw()]
    assert [part.nbytes for part in parts] == [whole.data.nbytes // 2] * 2
    table = np.concatenate([part.reshape(6, -1) for part in parts], axis=1)
    np.testing.assert_array_equal(table.reshape(-1), whole.data)


def test_a_coding_that_nobody_knows_is_refused() -> None:
    whole = StoredTensor("w", (4, 4), "I64", np.zeros(128, np.uint8))
    with pytest.raises(UnsupportedFormat, match="'w' is stored as I64"):
        Columns(whole, range(2)).raw()


# -- integers with scales -----------------------------------------------------------


def drawn(rows: int, columns: int, groups: int) -> Integers:
    rng = np.random.default_rng(rows + columns + groups)
    scale = rng.uniform(0.5, 2, (rows, groups)).astype(np.float32)
    codes = rng.integers(-128, 128, (rows, columns)).astype(np.int8)
    correction = rng.integers(-99, 99, rows).astype(np.int32)
    return Integers(codes, Quantisation(8, scale, "static", 0.1, 3, 0.1 * scale[:, 0], correction))


def decode(part: Columns) -> FloatArray:
    """What a backend makes of the bytes and the scales."""
    how = part.quantisation
    assert how is not None
    codes = part.raw().view(np.int8).reshape(part.shape).astype(np.float32)
    return codes * np.repeat(how.scale, part.shape[1] // how.scale.shape[1], axis=1)


@given(st.sampled_from([1, 2, 4, 8]), st.sampled_from([(0, 16), (0, 8), (8, 12), (4, 6), (3, 16)]))
def test_scales_go_with_their_groups(groups: int, cut: tuple[int, int]) -> None:
    whole = drawn(6, 16, groups)
    part = Columns(whole, range(*cut))
    expected = whole.float32()[:, slice(*cut)]
    np.testing.assert_array_equal(decode(part), expected)
    np.testing.assert_array_equal(part.float32(), expected)
    np.testing.assert_array_equal(decode(part.rows(1, 4)), expected[1:4])
    np.testing.assert_array_equal(part.float32(1, 4), expected[1:4])
    assert part.storage == "I8" and part.quantisation is not None and groups >= 1
    for name in ("output_scale", "correction"):
        np.testing.assert_array_equal(getattr(part.quantisation, name), getattr(whole.quantisation, name))


def test_of_columns_that_are_added_up_one_carries_the_correction() -> None:
    whole = drawn(6, 16, 1)
    how = whole.quantisation
    x = np.random.default_rng(0).integers(-128, 128, 16)
    expected = whole.codes.astype(np.int64) @ x + how.correction
    total = np.zeros(6, np.int64)
    for rank in range(4):
        part = Columns(whole, range(4 * rank, 4 * rank + 4), corrects=rank == 0)
        total += part.raw().view(np.int8).reshape(part.shape).astype(np.int64) @ x[4 * rank : 4 * rank + 4]
        assert part.quantisation is not None and part.quantisation.correction is not None
        total += part.quantisation.correction
    np.testing.assert_array_equal(total, expected)
