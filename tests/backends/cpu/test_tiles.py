"""Products on AMX's tiles: beyond one chunk of columns and of rows; int8 and int4 as the bfloat16 that they become."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from tests.backends.cpu.test_packing import Stored, rows_of, stored
from tests.models.memory_checkpoint import weight

from gallium.backends.cpu import library
from gallium.backends.cpu.ops import CpuOps
from gallium.checkpoints.formats import FORMATS
from gallium.ops.handles import FloatArray, Precision

TILES = [name for name in library.available_levels() if name.startswith("amx")]

pytestmark = pytest.mark.skipif(not TILES, reason="needs AMX, AVX-512, or the build of `make test-levels`")


@pytest.fixture(autouse=True)
def with_tiles(level: str) -> None:
    if level not in TILES:
        pytest.skip("has no tiles")


def normal(seed: int, *shape: int) -> FloatArray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("precision", ["bfloat16", "int8", "int4"])
def test_in_chunks_of_columns_and_rows(precision: Precision) -> None:
    """Weights are what the packed matrix holds, rounded to bfloat16, and activations are rounded to bfloat16."""
    ops = CpuOps(precision)
    w = ops.pack_linear([weight(normal(1, 150, 1120))], [weight(normal(2, 150))])
    x = normal(3, 530, 1120)
    together = ops.linear(x, w)
    exact = x.astype(np.float64) @ rows_of(ops, w, list(range(150))).T + normal(2, 150)
    assert np.sqrt(((together - exact) ** 2).mean() / 1120) < 0.003  # two factors, each off by 2^-9 / sqrt(3) at most
    for begin, count in ((0, 1), (500, 17), (512, 18), (490, 40), (529, 1)):
        np.testing.assert_array_equal(ops.linear(x[begin : begin + count], w), together[begin : begin + count])


def test_an_mlp_of_more_rows_than_a_task_takes_at_once() -> None:
    ops = CpuOps("int4")
    gate_up, down = ops.pack_linear([weight(normal(1, 2 * 200, 64))]), ops.pack_linear([weight(normal(2, 64, 200))])
    x = normal(3, 530, 64)
    apart = ops.linear(ops.swiglu(ops.linear(x, gate_up)), down)
    np.testing.assert_array_equal(ops.gated_mlp(x, gate_up, down), apart)


CODINGS: dict[Precision, tuple[str, ...]] = {"int8": ("F32", "Q8_0"), "int4": ("F32", "Q4_0", "Q4_1", "Q4_K")}


@pytest.mark.parametrize(("precision", "storage"), [(p, s) for p, found in CODINGS.items() for s in found])
def test_int8_and_int4_are_multiplied_as_the_bfloat16_of_their_values(precision: Precision, storage: str) -> None:
    """Bit for bit, for few rows and for many, with the scales of any file that is not damaged."""
    ops, floats = CpuOps(precision), CpuOps("bfloat16")
    given = with_scales_of_all_sizes(storage)
    w = ops.pack_linear([given])
    as_bfloat16 = floats.pack_linear([weight(rows_of(ops, w, list(range(given.shape[0]))))])
    x = normal(3, 70, given.shape[1])
    for rows in (1, 32, 70):
        np.testing.assert_array_equal(ops.linear(x[:rows], w), floats.linear(x[:rows], as_bfloat16))


def with_scales_of_all_sizes(storage: str) -> Stored:
    """Random blocks whose scales are any finite float16, subnormal ones included."""
    given = stored(storage)
    form = FORMATS[storage]
    if form.block == 1:
        return given
    blocks = given.data.reshape(-1, form.size).copy()
    rng = np.random.default_rng(5)
    for at in (0,) if storage in ("Q8_0", "Q4_0") else (0, 2):
        halves = rng.integers(0, 1 << 16, len(blocks)).astype(np.uint16)
        halves[(halves & 0x7FFF) >= 0x6000] &= 0x8FFF  # m of Q4_0 is -8 d, and float16 too
        blocks[:, at : at + 2] = halves.view(np.uint8).reshape(-1, 2)
    return dataclasses.replace(given, data=blocks.reshape(-1))


@pytest.mark.parametrize("rows", [1, 40])
@pytest.mark.parametrize(
    ("precision", "storage", "at"), [("int8", "Q8_0", 0), ("int4", "Q4_1", 0), ("int4", "Q4_1", 2)]
)
def test_a_damaged_scale_is_seen(precision: Precision, storage: str, at: int, rows: int) -> None:
    for half in (0x7C00, 0xFC00, 0x7E00, 0x7FFF, 0xFFFF):  # infinities; NaN with little and with all in it
        given = stored(storage)
        blocks = given.data.reshape(given.shape[0], -1, FORMATS[storage].size).copy()
        blocks[20, 3, at : at + 2] = np.array([half], np.uint16).view(np.uint8)
        ops = CpuOps(precision)
        y = ops.linear(
            normal(3, rows, given.shape[1]), ops.pack_linear([dataclasses.replace(given, data=blocks.reshape(-1))])
        )
        assert not np.isfinite(y[:, 20]).any()
        assert np.isfinite(np.delete(y, 20, axis=1)).all()
