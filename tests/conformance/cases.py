"""Inputs for the conformance suite: arrays, ragged steps with scattered blocks, and a pair of ops to compare."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from tests.conformance.targets import GQA, Target
from tests.models.memory_checkpoint import weight

from gallium.ops.handles import AttentionSpec, FloatArray, IntArray, KvCache, Linear, MoeSpec, Precision, Role, Step
from gallium.ops.interface import Ops, Plan
from gallium.ops.tolerances import difference

LAST_BIT: dict[Precision, float] = {"float16": 2.0**-10, "bfloat16": 2.0**-7}
EXACT: dict[Precision, int] = {"float32": 15, "float16": 15, "bfloat16": 15, "int8": 127, "int4": 127}


def normal(seed: int, *shape: int, scale: float = 1.0) -> FloatArray:
    """Reproducible normal numbers."""
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def whole(seed: int, low: int, high: int, *shape: int) -> FloatArray:
    """Whole numbers of [low, high]; the last axis begins with both ends, so that a quantiser's scale is 1."""
    out = np.random.default_rng(seed).integers(low, high + 1, shape).astype(np.float32)
    if shape[-1] > 1:
        out[..., 0], out[..., 1] = low, high
    return out


def spanning(array: FloatArray, low: int, high: int) -> FloatArray:
    """The same with both ends in every group of 32 columns: a quantiser's scale is then 1 in groups of any length."""
    array[..., 0::32] = high
    array[..., 1::32] = low
    return array


def fitting_weights(precision: Precision, rows: int, width: int) -> FloatArray:
    """Weights that the precision stores without loss: whole numbers that span its range in every row or group."""
    low, high = (-8, 7) if precision == "int4" else (-EXACT[precision], EXACT[precision])
    return spanning(whole(rows * 1000 + width, low, high, rows, width), low, high)


def fitting_inputs(precision: Precision, tokens: int, width: int) -> FloatArray:
    """Activations that the precision's kernels read without loss."""
    top = EXACT[precision]
    return spanning(whole(tokens * 1000 + width + 1, -top, top, tokens, width), -top, top)


@dataclass
class Pair:
    """The ops under test beside the reference, with the same weights and caches on both sides."""

    ours: Ops
    wanted: Ops
    precision: Precision

    @property
    def activations(self) -> Precision:
        """What the backend keeps activations in: of a quantised model that is not the precision itself."""
        found: Precision = getattr(self.ours, "activations", self.precision)
        return found

    def linear(self, array: FloatArray, bias: FloatArray | None = None, role: Role = "linear") -> tuple[Linear, Linear]:
        biases = [] if bias is None else [weight(bias)]
        a, b = (ops.pack_linear([weight(array)], biases, role) for ops in (self.ours, self.wanted))
        return a, b

    def heads(self, array: FloatArray) -> tuple[Linear, Linear]:
        """From `[heads, out, in]`."""
        a, b = (ops.pack_heads([weight(head) for head in array]) for ops in (self.ours, self.wanted))
        return a, b

    def caches(self, spec: AttentionSpec, num_blocks: int, block_size: int) -> tuple[KvCache, KvCache]:
        a, b = (ops.make_kv_cache(spec, num_blocks, block_size) for ops in (self.ours, self.wanted))
        return a, b

    def plans(self, step: Step) -> tuple[Plan, Plan]:
        return self.ours.plan(step), self.wanted.plan(step)

    def tensors(self, array: FloatArray | IntArray) -> tuple[Any, Any]:
        return self.ours.upload(array), self.wanted.upload(array)

    def kept(self, array: FloatArray) -> tuple[Any, Any]:
        """As `tensors`, of numbers that the precision's 16 bits hold: a backend may keep its activations in them."""
        kind = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}.get(self.activations, np.float32)
        return self.tensors(array.astype(kind).astype(np.float32))

    def check(self, op: str, *args: Any) -> tuple[Any, Any]:
        """Run one op on both sides and compare. An argument that is a tuple of two is (ours, the reference's)."""
        sides = [[a[side] if isinstance(a, tuple) else a for a in args] for side in (0, 1)]
        got, expected = getattr(self.ours, op)(*sides[0]), getattr(self.wanted, op)(*sides[1])
        if isinstance(expected, tuple):
            for a, b in zip(got, expected, strict=True):
                self.near(op, a, b)
        elif expected is not None:
            self.near(op, got, expected)
        return got, expected

    def near(self, op: str, got: Any, expected: Any) -> None:
        fault = difference(op, self.precision, self.ours.download(got), self.wanted.download(expected))
        assert fault is None, f"{op}: {fault}"

    def same(self, op: str, *args: Any) -> None:
        """As `check`, but the results must be equal up to the last bits of float32.

        In half precision a backend may keep its activations in 16 bits: then up to their last bit.
        """
        if self.activations in LAST_BIT:
            got, expected = self.check(op, *args)
            got, expected = self.ours.download(got), self.wanted.download(expected)
            np.testing.assert_allclose(got, expected, rtol=LAST_BIT[self.activations], atol=1e-6)
            return
        precision, self.precision = self.precision, "float32"
        try:
            self.check(op, *args)
        finally:
            self.precision = precision


def pair(target: Target, attention: AttentionSpec = GQA, moe: MoeSpec | None = None) -> Pair:
    """The target's ops beside the reference."""
    return Pair(target.open(attention, moe), target.reference, target.precision)


def block_tables(lengths: Sequence[int], block_size: int, order: str = "shuffled") -> tuple[NDArray[np.int32], int]:
    """Block tables for sequences of these total lengths, with unused blocks between -> (tables, number of blocks)."""
    need = [-(-n // block_size) for n in lengths]
    num_blocks = 2 * sum(need) + 3
    ids = np.arange(num_blocks)
    if order == "reversed":
        ids = ids[::-1]
    elif order == "shuffled":
        ids = np.random.default_rng(sum(lengths)).permutation(num_blocks)
    tables = np.full((len(lengths), max(need, default=0) + 1), -1, np.int32)
    at = 0
    for row, count in enumerate(need):
        tables[row, :count] = ids[at : at + count]
        at += count
    return tables, num_blocks


def step_of(chunks: Sequence[tuple[int, int]], tables: NDArray[np.int32], rows: Sequence[int] | None = None) -> Step:
    """A step in which sequence i adds `count` tokens from position `first` on; chunks are (first, count)."""
    counts = [count for _, count in chunks]
    total = sum(counts)
    positions = [np.arange(first, first + count) for first, count in chunks]
    return Step(
        token_ids=(np.arange(total, dtype=np.int32) * 7) % 11,
        positions=np.concatenate([np.zeros(0), *positions]).astype(np.int32),
        query_start=np.cumsum([0, *counts], dtype=np.int32),
        context_lens=np.array([first + count for first, count in chunks], np.int32),
        block_tables=tables[: len(chunks)],
        logit_rows=np.array(range(total) if rows is None else rows, np.int32),
    )


def plain_step(tokens: int, first: int = 0) -> Step:
    """One sequence of so many tokens; no sequence at all for none."""
    tables, _ = block_tables([first + tokens], 16)
    return step_of([(first, tokens)] if tokens else [], tables)
