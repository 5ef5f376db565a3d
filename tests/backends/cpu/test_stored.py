"""Packed matrices that go out to a file's arrays and come back: the same bytes, taken over and not copied."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from zlib import crc32

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.backends.cpu.integer_weights import random_weight
from tests.models.memory_checkpoint import weight

from gallium.backends.cpu.arrays import aligned_zeros
from gallium.backends.cpu.matrices import KINDS
from gallium.backends.cpu.ops import CpuOps
from gallium.backends.cpu.stored import LAYOUT
from gallium.checkpoints.formats import FORMATS
from gallium.checkpoints.tensor import StoredTensor
from gallium.errors import BackendError
from gallium.ops.handles import Experts, FloatArray, Linear, Precision, Weight
from gallium.ops.packed import STORAGE, PackedHandle

PANELS: dict[str, dict[Precision, int]] = {
    "cpu-panels-1": {"float32": 0x1F271FA9, "bfloat16": 0x3DF857CA, "int8": 0x55AB6CBF, "int4": 0xFE9133A8},
}
"""CRC-32 of one matrix's panels in each layout that there has been."""


CODINGS: dict[Precision, str] = {"float32": "F32", "bfloat16": "BF16", "int8": "Q8_0", "int4": "Q4_1"}
"""Those that are packed without any arithmetic."""


@dataclass(frozen=True)
class StoredPart:
    """A part of a handle, as a packed checkpoint offers it."""

    name: str
    shape: tuple[int, ...]
    handle: PackedHandle
    storage: str = STORAGE
    quantisation: None = None

    def raw(self) -> NDArray[np.uint8]:
        raise AssertionError("a stored part has no bytes")

    def float32(self, start: int = 0, stop: int | None = None) -> FloatArray:
        raise AssertionError("a stored part has no numbers")

    def rows(self, start: int, stop: int) -> StoredPart:
        raise AssertionError("a stored part has no rows")


def normal(seed: int, *shape: int) -> FloatArray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def aligned(array: NDArray[Any]) -> NDArray[Any]:
    copy = aligned_zeros(array.size, array.dtype)
    copy[:] = array.reshape(-1)
    return copy


def stored(ops: CpuOps, handle: Linear | Experts, parts: Sequence[Weight]) -> list[StoredPart]:
    """The handle through copies of its arrays, as parts that bring it back."""
    facts, arrays = ops.export(handle)
    copies: Mapping[str, NDArray[Any]] = {name: aligned(array) for name, array in arrays.items()}
    names = tuple(part.name for part in parts)
    packed = PackedHandle(ops.layout, ops.precision, names, facts, copies, "the-model")
    return [StoredPart(part.name, part.shape, packed) for part in parts]


@pytest.mark.parametrize("precision", KINDS)
def test_a_projection_comes_back_as_it_was(precision: Precision) -> None:
    ops, x, bias = CpuOps(precision), normal(0, 5, 70), weight(normal(1, 40))
    parts = [weight(normal(2, 24, 70), "q"), weight(normal(3, 16, 70), "k")]
    before = ops.pack_linear(parts, [bias])
    after = ops.pack_linear(stored(ops, before, parts), [bias])
    np.testing.assert_array_equal(ops.linear(x, after), ops.linear(x, before))
    assert ops.stored(after) == ops.stored(before)
    assert ops.weight_bytes == 2 * ops.stored(before).num_bytes


@pytest.mark.parametrize(("bits", "groups", "static"), [(8, 1, None), (4, 2, None), (8, 1, (0.02, 7))])
def test_a_checkpoint_s_own_integers_come_back(bits: int, groups: int, static: tuple[float, int] | None) -> None:
    ops, x = CpuOps("int8" if bits == 8 else "int4"), normal(0, 5, 128)
    part = random_weight(1, 40, 128, bits, groups, static)
    before = ops.pack_linear([part])
    after = ops.pack_linear(stored(ops, before, [part]))
    np.testing.assert_array_equal(ops.linear(x, after), ops.linear(x, before))


def test_heads_and_experts_come_back() -> None:
    ops = CpuOps("int4")
    heads = [weight(normal(i, 8, 32), f"h{i}") for i in range(3)]
    packed = ops.pack_heads(heads)
    x = normal(9, 4, 3, 32)
    np.testing.assert_array_equal(
        ops.head_linear(x, ops.pack_heads(stored(ops, packed, heads))), ops.head_linear(x, packed)
    )
    gate_up = [[weight(normal(i, 16, 32), f"g{i}"), weight(normal(i + 5, 16, 32), f"u{i}")] for i in range(4)]
    down = [weight(normal(i + 9, 32, 16), f"d{i}") for i in range(4)]
    experts = ops.pack_experts(gate_up, down)
    parts = stored(ops, experts, [*(part for pair in gate_up for part in pair), *down])
    again = ops.pack_experts([parts[2 * i : 2 * i + 2] for i in range(4)], parts[8:])
    ids, weights = np.array([[0, 3], [2, 1]], np.int32), normal(3, 2, 2)
    h = normal(4, 2, 32)
    np.testing.assert_array_equal(ops.experts(h, weights, ids, again), ops.experts(h, weights, ids, experts))


def test_what_does_not_fit_is_refused() -> None:
    ops = CpuOps("int8")
    parts = [weight(normal(2, 24, 64), "q"), weight(normal(3, 16, 64), "k")]
    q, k = stored(ops, ops.pack_linear(parts), parts)

    def refused(match: str, *given: Weight, by: CpuOps = ops) -> None:
        with pytest.raises(BackendError, match=match):
            by.pack_linear(list(given))

    refused("not what was packed together", k, q)
    refused("not what was packed together", q)
    refused("packed in int8 and cannot run in int4: leave out --precision", q, k, by=CpuOps("int4"))
    other = replace(q.handle, layout="cpu-panels-0")
    refused("layout 'cpu-panels-0'.*pack the-model again", *(replace(part, handle=other) for part in (q, k)))
    taller = replace(q, shape=(40, 64))
    refused("is damaged.*where .1, 56, 64. is needed", taller, k)
    short = replace(q.handle, arrays={"panels.0": q.handle.arrays["panels.0"][:-64]})
    refused("damaged: another size", *(replace(part, handle=short) for part in (q, k)))
    crooked = replace(q.handle, arrays={"panels.0": aligned(np.zeros(4096, np.uint8))[8:]})
    refused("cache line", *(replace(part, handle=crooked) for part in (q, k)))
    empty = replace(q.handle, arrays={})
    refused("'panels.0' is missing", *(replace(part, handle=empty) for part in (q, k)))


@pytest.mark.parametrize("precision", KINDS)
def test_a_change_of_the_layout_changes_its_name(precision: Precision) -> None:
    """Whoever changes what the bytes mean gives LAYOUT a new name, and enters it above with these sums."""
    ops, form = CpuOps(precision), FORMATS[CODINGS[precision]]
    data = (np.arange(form.num_bytes(33 * 96)) * 151 % 61).astype(np.uint8)
    _, arrays = ops.export(ops.pack_linear([StoredTensor("w", (33, 96), form.name, data)]))
    assert crc32(arrays["panels.0"].data) == PANELS[LAYOUT][precision], f"0x{crc32(arrays['panels.0'].data):08X}"
