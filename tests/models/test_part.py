"""Parts of weights: the same numbers as in the whole, kept in their coding where that can be, with their scales."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gallium.checkpoints.formats import FORMATS
from gallium.checkpoints.tensor import StoredTensor
from gallium.errors import UnsupportedFormat
from gallium.models.part import Part
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
def test_a_part_holds_the_numbers_of_the_whole(storage: str, data: st.DataObject) -> None:
    block = FORMATS[storage].block
    rows, columns = 5, max(block, 8) * 3
    whole = stored(storage, rows, columns)
    first, last = sorted(data.draw(st.tuples(st.integers(0, rows), st.integers(0, rows))))
    left, right = sorted(data.draw(st.tuples(st.integers(0, columns), st.integers(0, columns))))
    for cut in (None, range(left, right)):
        part = Part(whole, range(first, last), cut)
        expected = whole.float32()[first:last, slice(None) if cut is None else slice(left, right)]
        assert part.shape == expected.shape
        np.testing.assert_array_equal(part.float32(), expected)
        np.testing.assert_array_equal(part.float32(1, 3), expected[1:3])
        np.testing.assert_array_equal(FORMATS[part.storage].values(part.raw()), expected.reshape(-1))
        kept = cut is None or (left % block == 0 and right % block == 0)
        assert part.storage == (storage if kept else "F32") or left == right


@pytest.mark.parametrize("storage", FORMATS)
def test_rows_are_a_view_of_the_file_and_columns_a_copy_of_themselves(storage: str) -> None:
    form = FORMATS[storage]
    whole = stored(storage, 6, 2 * max(form.block, 8))
    rows = Part(whole, range(2, 4)).raw()
    assert np.shares_memory(rows, whole.data) and rows.nbytes == whole.data.nbytes // 3
    half = whole.shape[1] // 2
    columns = Part(whole, range(6), range(half, 2 * half)).raw()
    assert not np.shares_memory(columns, whole.data) and columns.nbytes == whole.data.nbytes // 2


def test_elements_of_a_vector() -> None:
    bias = StoredTensor(
        "b", (8,), "BF16", (np.arange(8, dtype=np.float32).view(np.uint32) >> 16).astype("<u2").view(np.uint8)
    )
    part = Part(bias, range(2, 6))
    assert part.name == "b[2:6]" and part.shape == (4,) and part.storage == "BF16"
    np.testing.assert_array_equal(part.float32(1), [3, 4, 5])
    np.testing.assert_array_equal(part.raw(), bias.data[4:12])


def test_a_coding_that_nobody_knows_is_refused() -> None:
    whole = StoredTensor("w", (4, 4), "I64", np.zeros(128, np.uint8))
    with pytest.raises(UnsupportedFormat, match="'w' is stored as I64"):
        Part(whole, range(4), range(2)).raw()


# -- integers with scales -----------------------------------------------------------


@dataclass(frozen=True)
class Integers:
    """A quantised Weight."""

    codes: NDArray[np.int8]
    quantisation: Quantisation
    name: str = "w"
    storage: str = "I8"

    @property
    def shape(self) -> tuple[int, ...]:
        return self.codes.shape

    def raw(self) -> NDArray[np.uint8]:
        return self.codes.view(np.uint8).reshape(-1)

    def float32(self, start: int = 0, stop: int | None = None) -> FloatArray:
        scale = np.repeat(self.quantisation.scale, self.shape[1] // self.quantisation.scale.shape[1], axis=1)
        return (self.codes.astype(np.float32) * scale)[start:stop]


def integers(rows: int, columns: int, groups: int) -> Integers:
    rng = np.random.default_rng(rows + columns + groups)
    scale = rng.uniform(0.5, 2, (rows, groups)).astype(np.float32)
    codes = rng.integers(-128, 128, (rows, columns)).astype(np.int8)
    correction = rng.integers(-99, 99, rows).astype(np.int32)
    return Integers(codes, Quantisation(8, scale, "static", 0.1, 3, 0.1 * scale[:, 0], correction))


def decode(part: Part) -> FloatArray:
    """What a backend makes of the bytes and the scales."""
    how = part.quantisation
    assert how is not None
    codes = part.raw().view(np.int8).reshape(part.shape).astype(np.float32)
    return codes * np.repeat(how.scale, part.shape[1] // how.scale.shape[1], axis=1)


@given(st.sampled_from([1, 2, 4, 8]), st.data())
def test_scales_go_with_their_rows_and_groups(groups: int, data: st.DataObject) -> None:
    whole = integers(6, 16, groups)
    first, last = data.draw(st.sampled_from([(0, 6), (1, 4), (3, 6)]))
    left, right = data.draw(st.sampled_from([(0, 16), (0, 8), (8, 12), (4, 6), (3, 16)]))
    part = Part(whole, range(first, last), range(left, right))
    expected = whole.float32()[first:last, left:right]
    np.testing.assert_array_equal(decode(part), expected)
    np.testing.assert_array_equal(part.float32(), expected)
    rows = Part(whole, range(first, last))
    np.testing.assert_array_equal(decode(rows), whole.float32()[first:last])
    for name in ("output_scale", "correction"):
        expected = getattr(whole.quantisation, name)[first:last]
        np.testing.assert_array_equal(getattr(rows.quantisation, name), expected)
        np.testing.assert_array_equal(getattr(part.quantisation, name), expected)
    assert part.storage == rows.storage == "I8"


def test_of_parts_that_are_added_up_one_carries_the_correction() -> None:
    whole = integers(6, 16, 1)
    how = whole.quantisation
    x = np.random.default_rng(0).integers(-128, 128, 16)
    expected = whole.codes.astype(np.int64) @ x + how.correction
    total = np.zeros(6, np.int64)
    for rank in range(4):
        part = Part(whole, range(6), range(4 * rank, 4 * rank + 4), corrects=rank == 0)
        total += part.raw().view(np.int8).reshape(part.shape).astype(np.int64) @ x[4 * rank : 4 * rank + 4]
        assert part.quantisation is not None and part.quantisation.correction is not None
        total += part.quantisation.correction
    np.testing.assert_array_equal(total, expected)
