"""The formats that benchmarks/quantisation.py compares are those that they are called."""

from __future__ import annotations

import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants
from tests.backends.cpu.test_packing import rows_of
from tests.models.memory_checkpoint import weight

from benchmarks import quantisation
from gallium.backends.cpu.ops import CpuOps
from gallium.ops.handles import Precision

VALUES = np.random.default_rng(1).standard_normal((40, 128)).astype(np.float32)


@pytest.mark.parametrize(("precision", "name"), [("int4", "int4 d q + m per 32"), ("int8", "int8 per 32")])
def test_int4_and_int8_are_what_is_packed(precision: Precision, name: str) -> None:
    rounding, _ = quantisation.WEIGHTS[name]
    ops = CpuOps(precision)
    packed = rows_of(ops, ops.pack_linear([weight(VALUES)]), list(range(40)))
    np.testing.assert_array_equal(rounding(VALUES), packed)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("int4 d (q - 8) per 32 = Q4_0", GGMLQuantizationType.Q4_0), ("Q8_0", GGMLQuantizationType.Q8_0)],
)
def test_formats_of_gguf_are_those_of_gguf(name: str, kind: GGMLQuantizationType) -> None:
    rounding, bits = quantisation.WEIGHTS[name]
    blocks = quants.quantize(VALUES, kind)
    assert blocks.nbytes * 8 / VALUES.size == bits
    assert np.isclose(rounding(VALUES), quants.dequantize(blocks, kind), atol=1e-6).mean() > 0.999


def test_activations_stay_within_half_a_step() -> None:
    for name, size in (("int8 per 32", 32), ("int8 per 128", 128)):
        blocks = VALUES.reshape(-1, size)
        off = np.abs(quantisation.ACTIVATIONS[name](VALUES).reshape(-1, size) - blocks)
        assert (off <= np.abs(blocks).max(1, keepdims=True) / 254 * 1.0001).all()
    assert (np.abs(quantisation.bfloat16(VALUES) - VALUES) <= np.abs(VALUES) / 256).all()
