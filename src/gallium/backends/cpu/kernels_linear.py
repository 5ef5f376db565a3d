"""Packing of weights and calls of the matrix kernels. Struct formats mirror native/include/gallium/linear.h."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from struct import Struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gallium.backends.cpu.arrays import Empty, address, check_memory, contiguous, require, rows
from gallium.backends.cpu.integers import INTEGER_STORAGES, integer_scheme
from gallium.backends.cpu.matrices import KINDS, PRECISIONS, Packed
from gallium.backends.cpu.stored import take_over
from gallium.errors import BackendError
from gallium.ops.handles import Experts, FloatArray, IntArray, Linear, Precision, Role, Weight
from gallium.ops.machine import Stored
from gallium.ops.packed import PackedHandle, stored_handle

_PACK = Struct("@Q3q").pack  # ga_pack_args up to its matrix
_LINEAR = Struct("@3Q6q").pack
_MLP = Struct("@2Q").pack  # ga_mlp_args up to its matrices
_MLP_SIZES = Struct("@2q").pack  # and after them
_EMBED = Struct("@2Qq").pack  # ga_embed_args up to its matrix
_EXPERTS = Struct("@8Q4q").pack

STORAGES = {
    name: code for code, name in enumerate(("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q5_K", "Q6_K"))
}
"""The codings that are packed without a detour, by their number in linear.h."""
INT8_AT_LEAST = frozenset({"head", "embedding", "sensitive"})
"""Roles that an int4 model keeps in int8: their errors reach the output, or their maker found them not fit for four."""
CHUNK_VALUES = 1 << 22  # decoded at a time from a coding that the kernels do not know


def precision_for(precision: Precision, role: Role) -> Precision:
    """How one matrix is packed."""
    if role == "router":
        return "float32"
    if role == "float":
        return "bfloat16" if precision in ("int8", "int4") else precision
    return "int8" if precision == "int4" and role in INT8_AT_LEAST else precision


class LinearKernels:
    """The matrix kernels of the loaded library, packing for one model's precision."""

    __slots__ = ("_embed", "_empty", "_experts", "_library", "_linear", "_mlp", "_pack", "_precision", "packed_bytes")

    def __init__(self, library: ctypes.CDLL, precision: Precision) -> None:
        self._library = library
        self._empty: Empty = np.empty
        library.ga_matrix_bytes.restype = ctypes.c_int64
        library.ga_matrix_bytes.argtypes = [ctypes.c_int64] * 3
        self._pack = library.ga_pack
        self._linear = library.ga_linear
        self._mlp = library.ga_gated_mlp
        self._embed = library.ga_embed
        self._experts = library.ga_experts
        self._precision = precision
        self.packed_bytes = 0

    # -- packing ------------------------------------------------------------------
    def pack_linear(self, parts: Sequence[Weight], bias: Sequence[Weight], role: Role) -> Linear:
        """The rows of `parts`, in order, as one matrix. Raises BackendError on parts that do not fit together."""
        height, width = self._shape(parts)
        biases = np.concatenate([b.float32() for b in bias]) if bias else None
        require(biases is None or biases.shape == (height,), f"a bias must have {height} elements, one per row.")
        stored = stored_handle(parts)
        if stored is not None:
            return Linear(width, height, self._take_over(stored, 0, (1, height, width), biases), biases)
        packed = self._make(1, height, width, role, biases, parts)
        self._fill(packed, 0, parts)
        return Linear(width, height, packed, biases)

    def pack_heads(self, weight: Sequence[Weight]) -> Linear:
        """One matrix `[out, in]` per head; a checkpoint's own integers are decoded."""
        height, width = self._shape(weight[:1])
        require(all(w.shape == (height, width) for w in weight), "all heads must have one shape.")
        stored = stored_handle(weight)
        if stored is not None:
            return Linear(width, height, self._take_over(stored, 0, (len(weight), height, width)))
        packed = self._make(len(weight), height, width, "linear", None)
        for index, one in enumerate(weight):
            self._fill(packed, index, [one])
        return Linear(width, height, packed)

    def pack_experts(
        self, gate_up: Sequence[Sequence[Weight]], down: Sequence[Weight], roles: tuple[Role, Role]
    ) -> Experts:
        """gate_up `[2 * width, hidden]` and down `[hidden, width]` per expert.

        A checkpoint's own integers must be for dynamic activations: all experts quantise a token in the same way.
        """
        hidden, width = self._shape(down[:1])
        every = [part for parts in gate_up for part in parts]
        stored = stored_handle([*every, *down])
        if stored is not None:
            sizes = ((len(down), 2 * width, hidden), (len(down), hidden, width))
            return Experts(len(down), hidden, width, tuple(self._take_over(stored, i, s) for i, s in enumerate(sizes)))
        first = self._make(len(down), 2 * width, hidden, roles[0], None, every)
        second = self._make(len(down), hidden, width, roles[1], None, down)
        if any(packed.integers is not None and packed.integers.static for packed in (first, second)):
            raise BackendError(
                f"{down[0].name}: experts with static activations (W8A8) are not computed, only dynamic ones "
                "(W8A8_DYNAMIC, W4A8_DYNAMIC): use --precision bfloat16."
            )
        require(len(gate_up) == len(down), "as many gate_up as down projections are needed.")
        for index, (parts, last) in enumerate(zip(gate_up, down, strict=True)):
            require(self._shape(parts) == (2 * width, hidden), f"gate and up of expert {index} do not fit its down.")
            require(last.shape == (hidden, width), f"expert {index} has another shape than expert 0.")
            self._fill(first, index, parts)
            self._fill(second, index, [last])
        return Experts(len(down), hidden, width, (first, second))

    @staticmethod
    def _shape(parts: Sequence[Weight]) -> tuple[int, int]:
        require(bool(parts) and all(len(p.shape) == 2 for p in parts), "a projection is made of matrices.")
        width = parts[0].shape[1]
        require(all(p.shape[1] == width for p in parts), "the parts of a projection must have one width.")
        return sum(p.shape[0] for p in parts), width

    def _make(
        self,
        count: int,
        height: int,
        width: int,
        role: Role,
        bias: FloatArray | None,
        integers: Sequence[Weight] = (),
    ) -> Packed:
        """Empty matrices; `integers` are the weights that will fill them, if their own integers may be taken over."""
        precision = precision_for(self._precision, role)
        how = integer_scheme(integers, precision, role)
        packed = Packed(self._library, count, height, width, KINDS[precision], bias, how)
        self.packed_bytes += packed.nbytes
        return packed

    def _take_over(
        self, stored: PackedHandle, index: int, sizes: tuple[int, int, int], bias: FloatArray | None = None
    ) -> Packed:
        packed = take_over(self._library, self._precision, stored, index, sizes, bias)
        self.packed_bytes += packed.nbytes
        return packed

    def _fill(self, packed: Packed, index: int, parts: Sequence[Weight]) -> None:
        at = 0
        for part in parts:
            if packed.integers is not None:
                packed.integers.fill(index, at, part)
                source, storage = contiguous(part.raw()), INTEGER_STORAGES[part.storage]
                self._pack_rows(packed, index, source, storage, part.shape[0], at)
            elif part.storage in STORAGES:
                self._pack_rows(packed, index, contiguous(part.raw()), STORAGES[part.storage], part.shape[0], at)
            else:
                step = max(1, CHUNK_VALUES // max(1, part.shape[1]))
                for start in range(0, part.shape[0], step):
                    chunk = np.ascontiguousarray(part.float32(start, start + step), np.float32)
                    self._pack_rows(packed, index, chunk, STORAGES["F32"], len(chunk), at + start)
            at += part.shape[0]

    def _pack_rows(self, packed: Packed, index: int, source: NDArray[Any], storage: int, count: int, at: int) -> None:
        if count:
            check_memory(
                self._pack(_PACK(address(source), count, at, storage) + packed.struct(index)), "packing weights"
            )

    @staticmethod
    def stored(weight: Linear | Experts) -> Stored:
        """The bytes of a handle, and the precision of its first matrix."""
        packed: tuple[Packed, ...] = weight.data if isinstance(weight, Experts) else (weight.data,)
        return Stored(sum(one.nbytes for one in packed), PRECISIONS[packed[0].kind])

    # -- products -----------------------------------------------------------------
    def linear(self, x: FloatArray, w: Linear) -> FloatArray:
        """`x @ W.T + bias` of `[tokens, in]`."""
        packed: Packed = w.data
        x, stride = rows(x)
        if x.ndim != 2 or x.shape[1] != packed.cols:
            raise BackendError(f"linear: an input of shape {x.shape} for a projection from {packed.cols}.")
        y = self._empty((len(x), packed.rows), np.float32)
        status = self._linear(
            _LINEAR(address(x), address(y), packed.struct_address, len(x), 1, stride, packed.rows, 0, 0)
        )
        if status:
            check_memory(status, "linear")
        return y

    def gated_mlp(self, x: FloatArray, gate_up: Linear, down: Linear) -> FloatArray:
        """`down(swiglu(gate_up(x)))` of `[tokens, hidden]` in one call."""
        first: Packed = gate_up.data
        second: Packed = down.data
        x, stride = rows(x)
        require(
            x.shape[1] == first.cols and first.rows == 2 * second.cols,
            f"gated_mlp: an input of shape {x.shape} for {first.cols} -> {first.rows} and {second.cols}.",
        )
        y = self._empty((len(x), second.rows), np.float32)
        status = self._mlp(_MLP(address(x), address(y)) + first.struct() + second.struct() + _MLP_SIZES(len(x), stride))
        check_memory(status, "gated_mlp")
        return y

    def head_linear(self, x: FloatArray, w: Linear) -> FloatArray:
        """`[tokens, heads, in]` -> `[tokens, heads, out]`."""
        packed: Packed = w.data
        x, stride = rows(x)
        require(
            x.shape[1:] == (packed.count, packed.cols),
            f"head_linear: an input of shape {x.shape} for {packed.count} heads from {packed.cols}.",
        )
        y = self._empty((len(x), packed.count, packed.rows), np.float32)
        status = self._linear(
            _LINEAR(
                address(x), address(y), packed.struct_address, len(x), packed.count, stride,
                packed.count * packed.rows, packed.cols, packed.rows,
            )
        )  # fmt: skip
        check_memory(status, "head_linear")
        return y

    def embed(self, ids: IntArray, table: Linear) -> FloatArray:
        """`table[ids]`. Raises BackendError for an id outside the table."""
        packed: Packed = table.data
        y = self._empty((len(ids), packed.cols), np.float32)
        status = self._embed(_EMBED(address(ids), address(y), len(ids)) + packed.struct())
        require(not status, f"embed: a token id is outside the vocabulary of {packed.rows}.")
        return y

    def experts(
        self, x: FloatArray, weights: FloatArray, ids: IntArray, w: Experts, shared: tuple[Linear, Linear] | None = None
    ) -> FloatArray:
        """Weighted sum of the chosen experts, in the order of `ids` `[tokens, top_k]`.

        Plus the `shared` expert, (gate_up, down), if there is one.
        """
        gate_up, down = w.data
        x, stride = rows(x)
        weights, ids = contiguous(weights), contiguous(np.asarray(ids, np.int32))
        require(
            x.shape[1] == w.hidden and weights.shape == ids.shape and len(ids) == len(x),
            f"experts: shapes {x.shape}, {weights.shape} and {ids.shape} do not fit.",
        )
        apart = (0, 0) if shared is None else self._shared(w.hidden, *shared)
        y = self._empty((len(x), w.hidden), np.float32)
        status = self._experts(
            _EXPERTS(
                address(x), address(weights), address(ids), address(y), gate_up.struct_address, down.struct_address,
                *apart, len(x), ids.shape[1], w.num_experts, stride,
            )
        )  # fmt: skip
        require(status != 2, f"experts: an id is outside the {w.num_experts} experts.")
        check_memory(status, "experts")
        return y

    @staticmethod
    def _shared(hidden: int, gate_up: Linear, down: Linear) -> tuple[int, int]:
        """The addresses of the shared expert's matrices."""
        first: Packed = gate_up.data
        second: Packed = down.data
        require(
            first.cols == second.rows == hidden and first.rows == 2 * second.cols,
            f"experts: a shared expert {first.cols} -> {first.rows}, {second.cols} -> {second.rows} for {hidden}.",
        )
        return first.struct_address, second.struct_address
