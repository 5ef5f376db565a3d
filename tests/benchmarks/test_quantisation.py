"""The formats that benchmarks/quantisation.py compares are those that they are called."""

from __future__ import annotations

import numpy as np
from gguf import GGMLQuantizationType, quants
from tests.backends.cpu.test_packing import rows_of
from tests.models.memory_checkpoint import weight

from benchmarks import quantisation
from gallium.backends.cpu.ops import CpuOps

VALUES = np.random.default_rng(1).standard_normal((40, 128)).astype(np.float32)


def test_int4_and_int8_are_what_is_packed() -> None:
    for precision, name, least in (("int4", "int4 d q + m per 32", 0.98), ("int8", "int8 per 32 = Q8_0", 0.999)):
        rounding, _ = quantisation.WEIGHTS[name]
        ops = CpuOps(precision)  # type: ignore[arg-type]
        packed = rows_of(ops, ops.pack_linear([weight(VALUES)]), list(range(40)))
        same = np.isclose(rounding(VALUES), packed, atol=1e-6)
        assert same.mean() > least, precision  # sums in another order may round, and choose among equals, another way


def test_q4_0_is_that_of_gguf() -> None:
    rounding, bits = quantisation.WEIGHTS["int4 d (q - 8) per 32 = Q4_0"]
    blocks = quants.quantize(VALUES, GGMLQuantizationType.Q4_0)
    assert blocks.nbytes * 8 / VALUES.size == bits
    assert np.isclose(rounding(VALUES), quants.dequantize(blocks, GGMLQuantizationType.Q4_0), atol=1e-6).mean() > 0.999


def test_activations_stay_within_half_a_step() -> None:
    for name, size in (("int8 per 32", 32), ("int8 per 128", 128)):
        blocks = VALUES.reshape(-1, size)
        off = np.abs(quantisation.ACTIVATIONS[name](VALUES).reshape(-1, size) - blocks)
        assert (off <= np.abs(blocks).max(1, keepdims=True) / 254 * 1.0001).all()
    assert (np.abs(quantisation.bfloat16(VALUES) - VALUES) <= np.abs(VALUES) / 256).all()
