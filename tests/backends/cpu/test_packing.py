"""Stored rows into packed matrices: every coding, exact where it can be, and the precision that each matrix gets."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.models.memory_checkpoint import ArrayWeight, weight

from gallium.backends.cpu import backend, library
from gallium.backends.cpu.arrays import address
from gallium.backends.cpu.kernels_linear import STORAGES, precision_for
from gallium.backends.cpu.matrices import KINDS
from gallium.backends.cpu.ops import CpuOps
from gallium.checkpoints.formats import FORMATS
from gallium.errors import BackendError
from gallium.ops.handles import FloatArray, Precision, Step

ROWS, COLS = 37, 512


@dataclass(frozen=True)
class Stored:
    """A Weight of random blocks in one coding."""

    storage: str
    data: NDArray[np.uint8]
    name: str = "w"
    shape: tuple[int, ...] = (ROWS, COLS)
    quantisation: None = None

    def raw(self) -> NDArray[np.uint8]:
        return self.data

    def float32(self, start: int = 0, stop: int | None = None) -> FloatArray:
        return FORMATS[self.storage].values(self.data).reshape(self.shape)[start:stop]


def stored(storage: str) -> Stored:
    """Random bytes, with scales that are ordinary numbers."""
    form = FORMATS[storage]
    rng = np.random.default_rng(len(storage))
    if form.block == 1:
        values = rng.standard_normal((ROWS, COLS)).astype(np.float32)
        bits = values.view(np.uint32)
        data = {"F32": values, "F16": values.astype(np.float16), "BF16": (bits >> 16).astype(np.uint16)}[storage]
        return Stored(storage, np.ascontiguousarray(data).reshape(-1).view(np.uint8))
    blocks = rng.integers(0, 256, (ROWS * COLS // form.block, form.size), dtype=np.uint8)
    for at in {"Q6_K": (208,), "Q8_0": (0,), "Q4_0": (0,)}.get(storage, (0, 2)):
        scales = rng.uniform(0.01, 0.1, (len(blocks), 1)).astype(np.float16)
        blocks[:, at : at + 2] = scales.view(np.uint8).reshape(len(blocks), 2)
    return Stored(storage, blocks.reshape(-1))


def rows_of(ops: CpuOps, linear: object, ids: list[int]) -> FloatArray:
    """What the packed matrix holds, through `embed`."""
    count = len(ids)
    tokens = np.array(ids, np.int32)
    step = Step(tokens, np.arange(count, dtype=np.int32), np.array([0, count], np.int32), np.array([count], np.int32),
                np.zeros((1, count), np.int32), np.zeros(0, np.int32))  # fmt: skip
    table: FloatArray = ops.embed(ops.plan(step), linear)  # type: ignore[arg-type]
    return table


@pytest.mark.parametrize("storage", STORAGES)
def test_every_coding_is_decoded_as_the_readers_decode_it(storage: str) -> None:
    one = stored(storage)
    ops = CpuOps("float32")
    np.testing.assert_array_equal(rows_of(ops, ops.pack_linear([one]), list(range(ROWS))), one.float32())


def test_the_codings_are_those_of_the_readers() -> None:
    assert set(STORAGES) == set(FORMATS)


@pytest.mark.parametrize(("storage", "precision"), [("Q4_0", "int4"), ("Q4_1", "int4"), ("Q8_0", "int8")])
def test_files_in_the_precision_s_own_coding_are_packed_without_loss(storage: str, precision: Precision) -> None:
    one = stored(storage)
    ops = CpuOps(precision)
    got = rows_of(ops, ops.pack_linear([one]), list(range(ROWS)))
    np.testing.assert_allclose(got, one.float32(), rtol=0, atol=1e-6 * np.abs(one.float32()).max())


def test_a_q4_k_file_loses_only_the_last_bits_of_its_scales() -> None:
    one = stored("Q4_K")
    ops = CpuOps("int4")
    got, exact = rows_of(ops, ops.pack_linear([one]), list(range(ROWS))), one.float32()
    np.testing.assert_allclose(got, exact, rtol=0, atol=2.0**-10 * np.abs(exact).max())


@pytest.mark.parametrize("columns", [1, 5, 31, 32, 33, 100])
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8", "int4"])
def test_values_come_back_within_the_precision_s_step(precision: Precision, columns: int) -> None:
    values = np.random.default_rng(columns).standard_normal((21, columns)).astype(np.float32)
    ops = CpuOps(precision)
    got = rows_of(ops, ops.pack_linear([weight(values)]), list(range(21)))
    if precision == "float32":
        np.testing.assert_array_equal(got, values)
    elif precision == "bfloat16":
        np.testing.assert_allclose(got, values, rtol=2.0**-8)
    elif precision == "int8":
        for start in range(0, columns, 32):
            part, back = values[:, start : start + 32], got[:, start : start + 32]
            half_step = np.abs(part).max(axis=1, keepdims=True) / 254
            assert (np.abs(back - part) <= half_step * 1.1).all()  # the scale is rounded to float16
    else:
        for start in range(0, columns, 32):
            part, back = values[:, start : start + 32], got[:, start : start + 32]
            span = part.max(axis=1, keepdims=True) - part.min(axis=1, keepdims=True)
            # the line of least squares may leave an end a full step away, never on average
            assert (np.abs(back - part) <= span / 15 + 1e-3).all()
            assert np.sqrt(((back - part) ** 2).mean()) <= 1.05 * np.sqrt(((span / 15) ** 2 / 12).mean()) + 1e-3


def test_which_precision_a_matrix_gets() -> None:
    assert precision_for("int4", "linear") == "int4"
    assert {precision_for("int4", role) for role in ("head", "embedding", "sensitive")} == {"int8"}
    assert precision_for("int8", "sensitive") == "int8"
    assert precision_for("bfloat16", "head") == "bfloat16"
    for precision in KINDS:
        assert precision_for(precision, "router") == "float32"


def test_a_coding_that_the_kernels_do_not_know_takes_the_detour() -> None:
    """A plug-in's Weight may name a storage of its own; its decoded rows are packed."""
    values = np.random.default_rng(0).standard_normal((33, 40)).astype(np.float32)
    ops = CpuOps("float32")
    packed = ops.pack_linear([ArrayWeight("w", values, "MXFP4")])
    np.testing.assert_array_equal(rows_of(ops, packed, [0, 32]), values[[0, 32]])


@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_integers_do_not_overflow(level: str, sign: int) -> None:
    """Weights of -128 or 15 and activations of 127, which no sum of pairs in 16 bits may saturate."""
    x = np.full((7, 64), sign, np.float32)
    block = np.concatenate([np.array([1.0], np.float16).view(np.uint8), np.full(32, -128, np.int8).view(np.uint8)])
    eight = CpuOps("int8")
    y = eight.linear(x, eight.pack_linear([Stored("Q8_0", np.tile(block, 17 * 2), shape=(17, 64))]))
    np.testing.assert_allclose(y, np.full((7, 17), sign * -128.0 * 64), rtol=1e-6)
    line = np.concatenate([np.array([1.0, 0.0], np.float16).view(np.uint8), np.full(16, 255, np.uint8)])
    four = CpuOps("int4")
    y = four.linear(x, four.pack_linear([Stored("Q4_1", np.tile(line, 17 * 2), shape=(17, 64))]))
    np.testing.assert_allclose(y, np.full((7, 17), sign * 15.0 * 64), rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8", "int4"])
def test_a_damaged_weight_is_seen_in_the_result(precision: Precision, bad: float) -> None:
    values = np.ones((17, 64), np.float32)
    values[16, 40] = bad
    ops = CpuOps(precision)
    y = ops.linear(np.ones((1, 64), np.float32), ops.pack_linear([weight(values)]))
    assert np.isfinite(y[0, :16]).all()
    assert not np.isfinite(y[0, 16])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8", "int4"])
def test_a_damaged_input_is_seen_in_its_own_row_only(level: str, precision: Precision, bad: float) -> None:
    x = np.ones((3, 64), np.float32)
    x[1, 40] = bad
    ops = CpuOps(precision)
    y = ops.linear(x, ops.pack_linear([weight(np.ones((17, 64)))]))
    assert not np.isfinite(y[1]).any()
    assert np.isfinite(y[[0, 2]]).all()


def test_parts_that_do_not_fit_are_refused() -> None:
    ops = CpuOps("float32")
    with pytest.raises(BackendError, match="one width"):
        ops.pack_linear([weight(np.zeros((2, 3))), weight(np.zeros((2, 4)))])
    with pytest.raises(BackendError, match="bias must have 2"):
        ops.pack_linear([weight(np.zeros((2, 3)))], [weight(np.zeros(3))])
    with pytest.raises(BackendError, match="matrices"):
        ops.pack_linear([weight(np.zeros(3))])
    with pytest.raises(BackendError, match="expert 1"):
        ops.pack_experts([[weight(np.zeros((4, 3)))], [weight(np.zeros((6, 3)))]], [weight(np.zeros((3, 2)))] * 2)


def test_weight_bytes_count_what_is_packed() -> None:
    ops = CpuOps("int8")
    assert ops.weight_bytes == 0
    ops.pack_linear([weight(np.zeros((64, 128)))])
    assert ops.weight_bytes == 64 * 128 * 34 // 32  # 32 bytes and a float16 scale per group


def test_the_decoder_alone_agrees_too() -> None:
    """ga_decode is what tools use; it must not drift from packing."""
    one = stored("Q5_K")
    out = np.empty((ROWS, COLS), np.float32)
    from struct import pack

    library.load().ga_decode(pack("@2Q3q", address(one.data), address(out), ROWS, COLS, STORAGES["Q5_K"]))
    np.testing.assert_array_equal(out, one.float32())


def test_the_backend_is_found_by_its_entry_point() -> None:
    from gallium.ops.backend import choose, installed

    assert choose("auto", installed()) is backend
