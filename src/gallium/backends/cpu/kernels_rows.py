"""Calls of the row-wise kernels: norms, rope, SwiGLU, addition, routing.

A kernel takes one packed struct: ctypes needs 0.25 µs for it, and 1.4 µs for eight separate arguments. The formats
below mirror the structs in native/include/gallium/.
"""

from __future__ import annotations

import ctypes
from struct import Struct
from typing import Any

import numpy as np

from gallium.backends.cpu.arrays import Empty, address, contiguous, require, rows
from gallium.backends.cpu.plan import CpuPlan
from gallium.ops.handles import FloatArray, IntArray, MoeSpec, RopeSpec

_NORM = Struct("@5Q4qd").pack
_ADD = Struct("@3Qq").pack
_SWIGLU = Struct("@2Q3q").pack
_ROPE = Struct("@3Q6q").pack
_ROUTE = Struct("@4Q8qd").pack
MAX_EXPERTS = 4096  # kMaxExperts in native/src/route.cpp


def silent(function: Any) -> Any:
    """A kernel that returns nothing."""
    function.restype = None
    return function


class RowKernels:
    """The row-wise kernels of the loaded library."""

    __slots__ = ("_add", "_empty", "_norm", "_rope", "_route", "_swiglu")

    def __init__(self, library: ctypes.CDLL) -> None:
        self._empty: Empty = np.empty
        self._norm = silent(library.ga_rms_norm)
        self._add = silent(library.ga_add)
        self._swiglu = silent(library.ga_swiglu)
        self._rope = silent(library.ga_rope)
        self._route = silent(library.ga_route)

    def rms_norm(self, x: FloatArray, gain: FloatArray, eps: float) -> FloatArray:
        """Over the last axis of `[tokens, ..., width]`."""
        x, stride = rows(x)
        shape = x.shape
        width = shape[-1]
        require(width == gain.size, f"rms_norm: the gain has {gain.size} elements, the rows {width}.")
        y = self._empty(shape, np.float32)
        inner = 1 if len(shape) == 2 else y[0].size // width if shape[0] else 1
        self._norm(_NORM(address(x), 0, address(gain), 0, address(y), shape[0], inner, width, stride, eps))
        return y

    def add_rms_norm(
        self, x: FloatArray, residual: FloatArray, gain: FloatArray, eps: float
    ) -> tuple[FloatArray, FloatArray]:
        """(norm(residual + x), residual + x) of `[tokens, width]`."""
        x, stride = rows(x)
        residual = contiguous(residual)
        count, width = x.shape
        require(
            residual.shape == x.shape and width == gain.size,
            f"add_rms_norm: shapes {x.shape}, {residual.shape} and {gain.shape} do not fit.",
        )
        y, total = self._empty((count, width), np.float32), self._empty((count, width), np.float32)
        self._norm(
            _NORM(
                address(x), address(residual), address(gain), address(total), address(y), count, 1, width, stride, eps
            )
        )
        return y, total

    def add(self, x: FloatArray, y: FloatArray) -> FloatArray:
        """`x + y` of equal shapes."""
        require(x.shape == y.shape, f"add: shapes {x.shape} and {y.shape} differ.")
        x, y = contiguous(x), contiguous(y)
        z = self._empty(x.shape, np.float32)
        self._add(_ADD(address(x), address(y), address(z), x.size))
        return z

    def swiglu(self, gate_up: FloatArray) -> FloatArray:
        """`[tokens, 2 * width]` -> `[tokens, width]`."""
        gate_up, stride = rows(gate_up)
        count, both = gate_up.shape
        require(both % 2 == 0, f"swiglu: {both} columns cannot be halved.")
        y = self._empty((count, both // 2), np.float32)
        self._swiglu(_SWIGLU(address(gate_up), address(y), count, both // 2, stride))
        return y

    def rope(self, x: FloatArray, plan: CpuPlan, spec: RopeSpec) -> FloatArray:
        """`[tokens, heads, width]`, the first `spec.dim` rotated."""
        x, stride = rows(x)
        count, heads, width = x.shape
        require(count == plan.tokens and spec.dim <= width, f"rope: {x.shape} does not fit the step or dim {spec.dim}.")
        y = self._empty((count, heads, width), np.float32)
        table = plan.rope_table(spec)
        self._rope(
            _ROPE(address(x), address(y), address(table), count, heads, width, stride, spec.dim, spec.interleaved)
        )
        return y

    def route(self, logits: FloatArray, bias: FloatArray, spec: MoeSpec) -> tuple[FloatArray, IntArray]:
        """`[tokens, experts]` -> (weights, ids), both `[tokens, top_k]`, best first."""
        logits, stride = rows(logits)
        count, experts = logits.shape
        require(
            experts == spec.num_experts == bias.size and experts <= MAX_EXPERTS and spec.top_k <= experts,
            f"route: {experts} logits and {bias.size} biases for {spec.num_experts} experts (at most {MAX_EXPERTS}).",
        )
        require(experts % spec.num_groups == 0, f"route: {experts} experts do not make {spec.num_groups} equal groups.")
        weights, ids = self._empty((count, spec.top_k), np.float32), self._empty((count, spec.top_k), np.int32)
        self._route(
            _ROUTE(
                address(logits), address(bias), address(weights), address(ids), count, experts, spec.top_k,
                spec.num_groups, spec.top_groups, spec.scoring == "softmax", spec.renormalize, stride,
                spec.routed_scale,
            )
        )  # fmt: skip
        return weights, ids
