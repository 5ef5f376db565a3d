"""Block formats: every decoder against the `gguf` package, every encoder against its own bound."""

from __future__ import annotations

import gguf
import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from gallium.checkpoints.formats import FORMATS
from gallium.checkpoints.quantise import ENCODERS
from gallium.checkpoints.tensor import StoredTensor
from gallium.errors import CheckpointError, UnsupportedFormat

BLOCKED = [name for name, form in FORMATS.items() if form.block > 1]
HALVES = {"Q8_0": (0,), "Q4_0": (0,), "Q4_1": (0, 2), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}


def random_blocks(name: str, count: int, seed: int = 0) -> NDArray[np.uint8]:
    """Blocks of random quants whose float16 scales are ordinary numbers."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (count, FORMATS[name].size), dtype=np.uint8)
    for at in HALVES[name]:
        blocks[:, at : at + 2] = rng.standard_normal((count, 1)).astype("<f2").view(np.uint8)
    return blocks


@pytest.mark.parametrize("name", BLOCKED)
def test_decodes_as_the_gguf_package(name: str) -> None:
    blocks = random_blocks(name, 300)
    kind = gguf.GGMLQuantizationType[name]
    assert (FORMATS[name].block, FORMATS[name].size) == gguf.GGML_QUANT_SIZES[kind]
    np.testing.assert_array_equal(FORMATS[name].values(blocks.reshape(-1)), gguf.dequantize(blocks, kind).reshape(-1))


@pytest.mark.parametrize("name", BLOCKED)
def test_any_bytes_decode_without_a_warning(name: str) -> None:
    raw = np.random.default_rng(1).integers(0, 256, 200 * FORMATS[name].size, dtype=np.uint8)
    assert FORMATS[name].values(raw).shape == (200 * FORMATS[name].block,)


def test_plain_floats_decode_exactly() -> None:
    values = np.random.default_rng(2).standard_normal(1000).astype(np.float32)
    for name, dtype in (("F32", np.float32), ("F16", np.float16), ("BF16", ml_dtypes.bfloat16)):
        stored = values.astype(dtype)
        np.testing.assert_array_equal(FORMATS[name].values(stored.view(np.uint8)), stored.astype(np.float32))


@pytest.mark.parametrize("name", FORMATS)
def test_rows_of_a_matrix_are_the_rows_of_the_whole(name: str) -> None:
    form, shape = FORMATS[name], (7, 512)
    data = np.random.default_rng(3).integers(0, 60, form.num_bytes(7 * 512), dtype=np.uint8)
    tensor = StoredTensor("w", shape, name, data)
    whole = tensor.float32()
    assert whole.shape == shape and whole.dtype == np.float32
    for start, stop in ((0, 7), (2, 5), (6, 7), (3, 3), (5, 100)):
        np.testing.assert_array_equal(tensor.float32(start, stop), whole[start:stop])
        np.testing.assert_array_equal(tensor.rows(start, stop).float32(), whole[start:stop])
    assert np.shares_memory(tensor.rows(2, 5).raw(), data)


def test_bfloat16_rounds_as_ml_dtypes() -> None:
    rng = np.random.default_rng(4)
    values = rng.integers(0, 2**32, 100_000, dtype=np.uint32).view(np.float32)
    values = np.concatenate([values[~np.isnan(values)], np.array([0.0, -0.0, np.inf, -np.inf, 1e-45], np.float32)])
    with np.errstate(over="ignore"):
        expected = values.astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(ENCODERS["BF16"](values), expected.view(np.uint8))
    assert np.isnan(FORMATS["BF16"].values(ENCODERS["BF16"](np.array([np.nan, -np.nan], np.float32)))).all()


@pytest.mark.parametrize("name", ["Q8_0", "Q4_1"])
@pytest.mark.parametrize("seed", range(3))
def test_encoders_are_no_worse_than_the_gguf_package(name: str, seed: int) -> None:
    values = np.random.default_rng(seed).standard_normal((64, 320)).astype(np.float32) * np.float32(0.02)
    kind = gguf.GGMLQuantizationType[name]
    mine = FORMATS[name].values(ENCODERS[name](values)).reshape(values.shape)
    theirs = gguf.dequantize(gguf.quantize(values, kind), kind)
    assert np.square(mine - values).sum() <= np.square(theirs - values).sum()


@pytest.mark.parametrize("name", ["Q8_0", "Q4_1"])
def test_encoding_what_was_decoded_changes_nothing(name: str) -> None:
    blocks = random_blocks(name, 200)
    blocks[:, FORMATS[name].size - 16] = 0x81 if name == "Q8_0" else 0xF0  # every block uses its whole range
    if name == "Q8_0":  # -128 is a byte that no encoder writes
        blocks[:, 2:][blocks[:, 2:] == 0x80] = 0x81
    once = FORMATS[name].values(blocks.reshape(-1))
    again = FORMATS[name].values(ENCODERS[name](once))
    np.testing.assert_allclose(again, once, atol=2e-3 * np.abs(once).max())


@pytest.mark.parametrize("name", ["Q8_0", "Q4_1"])
@pytest.mark.parametrize("value", [0.0, 0.25, -3.0, 1e-8, 1e6])
def test_blocks_of_equal_values(name: str, value: float) -> None:
    decoded = FORMATS[name].values(ENCODERS[name](np.full(64, value, np.float32)))
    limit = np.float32(min(value, 65504.0 * (127 if name == "Q8_0" else 1)))
    np.testing.assert_allclose(decoded, limit, rtol=5e-3, atol=1e-7)


def test_a_vector_and_a_scalar() -> None:
    values = np.arange(5, dtype=np.float32)
    vector = StoredTensor("v", (5,), "F32", values.view(np.uint8))
    np.testing.assert_array_equal(vector.float32(1, 3), values[1:3])
    np.testing.assert_array_equal(vector.rows(1, 3).float32(), values[1:3])
    scalar = StoredTensor("s", (), "F32", values[3:4].view(np.uint8))
    assert scalar.float32().shape == () and scalar.float32() == 3.0


def test_a_vector_of_blocks_is_sliced_by_element_but_not_cut_within_a_block() -> None:
    data = random_blocks("Q8_0", 3).reshape(-1)
    vector = StoredTensor("v", (96,), "Q8_0", data)
    np.testing.assert_array_equal(vector.float32(5, 50), FORMATS["Q8_0"].values(data)[5:50])
    assert vector.rows(32, 64).shape == (32,)
    with pytest.raises(UnsupportedFormat, match="blocks are longer"):
        vector.rows(5, 50)


def test_decoded_values_are_memory_of_their_own() -> None:
    data = np.arange(4, dtype=np.float32)
    data.flags.writeable = False
    values = StoredTensor("v", (4,), "F32", data.view(np.uint8)).float32()
    values[0] = 7.0
    assert data[0] == 0.0


def test_an_integer_tensor_is_refused_only_when_it_is_read() -> None:
    tensor = StoredTensor("ids", (3,), "I64", np.zeros(24, np.uint8))
    assert len(tensor.raw()) == 24
    with pytest.raises(UnsupportedFormat, match="'ids' is stored as I64"):
        tensor.float32()


@pytest.mark.parametrize("index", [-1, 2])
def test_an_index_that_is_not_there(index: int) -> None:
    tensor = StoredTensor("experts", (2, 1, 4), "F32", np.zeros(32, np.uint8))
    with pytest.raises(CheckpointError, match=f"no matrix {index}"):
        tensor.index(index)
