"""Products on AMX's tiles, beyond one chunk of columns and of rows."""

from __future__ import annotations

import numpy as np
import pytest
from tests.models.memory_checkpoint import weight

from gallium.backends.cpu import library
from gallium.backends.cpu.ops import CpuOps
from gallium.ops.handles import FloatArray

TILES = [name for name in library.available_levels() if name.startswith("amx")]


def normal(seed: int, *shape: int) -> FloatArray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.skipif(not TILES, reason="needs AMX, AVX-512, or the build of `make test-levels`")
def test_bfloat16_in_chunks_of_columns_and_rows(level: str) -> None:
    if level not in TILES:
        pytest.skip("has no tiles")
    ops = CpuOps("bfloat16")
    w = ops.pack_linear([weight(normal(1, 150, 1120))], [weight(normal(2, 150))])
    x = normal(3, 530, 1120)
    together = ops.linear(x, w)
    exact = x.astype(np.float64) @ normal(1, 150, 1120).T + normal(2, 150)
    assert np.sqrt(((together - exact) ** 2).mean() / 1120) < 0.003  # two factors, each off by 2^-9 / sqrt(3) at most
    for begin, count in ((0, 1), (500, 17), (512, 18), (529, 1)):
        np.testing.assert_array_equal(ops.linear(x[begin : begin + count], w), together[begin : begin + count])
