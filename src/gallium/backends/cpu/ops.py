"""CpuOps: the whole op vocabulary on native kernels over NumPy float32 arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import numpy as np

from gallium.backends.cpu import library
from gallium.backends.cpu.cache import CacheData, block_bytes, usual_precision
from gallium.backends.cpu.kernels_attention import AttentionKernels
from gallium.backends.cpu.kernels_linear import LinearKernels
from gallium.backends.cpu.kernels_rows import RowKernels
from gallium.backends.cpu.kernels_sampling import SamplingKernels
from gallium.backends.cpu.plan import CpuPlan
from gallium.backends.cpu.programs import ProgrammedStep
from gallium.backends.cpu.recording import Recorder
from gallium.backends.cpu.stored import LAYOUT, export
from gallium.ops.handles import (
    AttentionSpec,
    Experts,
    FloatArray,
    IntArray,
    KvCache,
    KvGrid,
    KvPrecision,
    Linear,
    MoeSpec,
    Precision,
    Role,
    RopeSpec,
    SamplerInputs,
    Step,
    Weight,
)
from gallium.ops.interface import Ops
from gallium.ops.machine import Stored
from gallium.ops.packed import Exported

Array: TypeAlias = Any
"""float32 (ids: int32) NumPy arrays; the seam's Tensor has fewer methods than NumPy's own type tells."""


class CpuOps(Ops):
    """One model's ops. Tensors are float32 arrays, a plan is a CpuPlan; the level is the library's at call time."""

    name = "cpu"
    layout = LAYOUT

    def __init__(self, precision: Precision, kv_precision: KvPrecision | None = None) -> None:
        loaded = library.load()
        self.precision = precision
        self._grids = kv_precision is None  # whoever asks for a precision gets it, whatever was calibrated
        self.kv_precision: KvPrecision = kv_precision or usual_precision(precision)
        self._rows = RowKernels(loaded)
        self._attention = AttentionKernels(loaded)
        self._sampling = SamplingKernels(loaded)
        self._linear = LinearKernels(loaded, precision)

    @property
    def level(self) -> str:
        """The instruction-set level in use."""
        return library.level()

    @property
    def threads(self) -> int:
        """Threads that kernels use."""
        return library.threads()

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights packed so far: what a decode step reads, mixtures of experts aside."""
        return self._linear.packed_bytes

    @property
    def activation_bytes(self) -> int:
        """Activations are float32 in every precision."""
        return 4

    def stored(self, weight: Linear | Experts) -> Stored:
        """What was packed, scales included; of experts the precision of gate and up."""
        return self._linear.stored(weight)

    def export(self, handle: Linear | Experts) -> Exported:
        """What a packed file keeps of a handle (ops/packed.py)."""
        return export(handle)

    # -- memory -------------------------------------------------------------------
    def upload(self, array: FloatArray | IntArray) -> Array:
        """A contiguous copy in float32, or in int32."""
        return np.array(array, np.int32 if np.issubdtype(array.dtype, np.integer) else np.float32, order="C")

    def download(self, x: Any) -> Any:
        """The array itself: it is on the host."""
        return x

    def plan(self, step: Step) -> CpuPlan:
        """Checked arrays with known addresses; slots and rope tables follow on demand."""
        return CpuPlan(step)

    def compile_step(
        self, forward: Callable[[Any], Array], decode_sizes: tuple[int, ...] = ()
    ) -> Callable[[Step], Array]:
        """Steps of up to the largest of these numbers of sequences as recorded programs; eager without any."""
        if not decode_sizes:
            return super().compile_step(forward, decode_sizes)
        return ProgrammedStep(self, forward, max(decode_sizes))

    @contextmanager
    def recording(self, recorder: Recorder) -> Iterator[None]:
        """Meanwhile all native calls run and are written down, and their results lie in the recorder's arena."""
        kernels = self._rows, self._attention, self._linear
        self._rows, self._attention, self._linear = (recorder.watched(one) for one in kernels)
        try:
            yield
        finally:
            self._rows, self._attention, self._linear = kernels

    # -- packing ------------------------------------------------------------------
    def pack_linear(self, parts: Sequence[Weight], bias: Sequence[Weight] = (), role: Role = "linear") -> Linear:
        """Panels of 16 output rows in the model's precision; a router stays float32."""
        return self._linear.pack_linear(parts, bias, role)

    def pack_heads(self, weight: Sequence[Weight]) -> Linear:
        """One packed matrix per head."""
        return self._linear.pack_heads(weight)

    def pack_experts(
        self,
        gate_up: Sequence[Sequence[Weight]],
        down: Sequence[Weight],
        roles: tuple[Role, Role] = ("linear", "linear"),
    ) -> Experts:
        """All experts of one layer."""
        return self._linear.pack_experts(gate_up, down, roles)

    def make_kv_cache(
        self, spec: AttentionSpec, num_blocks: int, block_size: int, grid: KvGrid | None = None
    ) -> KvCache:
        """A cache of zeros whose pages the system provides when they are first written."""
        kept = grid if self._grids else None
        return KvCache(num_blocks, block_size, CacheData(spec, num_blocks, block_size, self.kv_precision, kept))

    def kv_block_bytes(self, spec: AttentionSpec, block_size: int, grid: KvGrid | None = None) -> int:
        """Bytes of one block of one layer."""
        return block_bytes(spec, block_size, self.kv_precision)

    # -- linear ---------------------------------------------------------------------
    def embed(self, plan: CpuPlan, table: Linear) -> Array:
        """`table[token_ids]`."""
        return self._linear.embed(plan.token_ids, table)

    def linear(self, x: Array, w: Linear) -> Array:
        """`x @ W.T + bias`."""
        return self._linear.linear(x, w)

    def head_linear(self, x: Array, w: Linear) -> Array:
        """Per head `x[:, h] @ W[h].T`."""
        return self._linear.head_linear(x, w)

    def experts(self, x: Array, weights: Array, ids: Array, w: Experts) -> Array:
        """Weighted sum of the chosen experts."""
        return self._linear.experts(x, weights, ids, w)

    # -- rows -----------------------------------------------------------------------
    def add(self, x: Array, y: Array) -> Array:
        """`x + y`."""
        return self._rows.add(x, y)

    def rms_norm(self, x: Array, gain: Array, eps: float) -> Array:
        """Over the last axis."""
        return self._rows.rms_norm(x, gain, eps)

    def rope(self, x: Array, plan: CpuPlan, spec: RopeSpec) -> Array:
        """Rotate the first `spec.dim` of `[tokens, heads, width]`."""
        return self._rows.rope(x, plan, spec)

    def swiglu(self, gate_up: Array) -> Array:
        """`gate * sigmoid(gate) * up`."""
        return self._rows.swiglu(gate_up)

    def route(self, logits: Array, bias: Array, spec: MoeSpec) -> tuple[Array, Array]:
        """(weights, ids) of the chosen experts."""
        return self._rows.route(logits, bias, spec)

    def take_rows(self, x: Array, plan: CpuPlan) -> Array:
        """`x[logit_rows]`; x itself when that is all of it."""
        return x if plan.all_rows else x[plan.logit_rows]

    def sample(self, logits: Array, how: SamplerInputs) -> Array:
        """One token id per row."""
        return self._sampling.sample(logits, how)

    # -- attention ------------------------------------------------------------------
    def kv_write(self, k: Array, v: Array, cache: KvCache, plan: CpuPlan) -> None:
        """Keys and values (mla: latents and rope keys) into their slots."""
        self._attention.kv_write(k, v, cache, plan)

    def index_write(self, keys: Array, cache: KvCache, plan: CpuPlan) -> None:
        """Index keys into their slots."""
        self._attention.index_write(keys, cache, plan)

    def attend(self, q: Array, cache: KvCache, plan: CpuPlan, spec: AttentionSpec) -> Array:
        """Causal paged attention."""
        return self._attention.attend(q, cache, plan, spec)

    def attend_latent(
        self,
        q: Array,
        q_rope: Array,
        cache: KvCache,
        plan: CpuPlan,
        spec: AttentionSpec,
        selected: Array | None,
    ) -> Array:
        """Attention over latents."""
        return self._attention.attend_latent(q, q_rope, cache, plan, spec, selected)

    def index_topk(self, q: Array, weights: Array, cache: KvCache, plan: CpuPlan, k: int) -> Array:
        """The positions each query may see."""
        return self._attention.index_topk(q, weights, cache, plan, k)

    # -- fused blocks -----------------------------------------------------------------
    def add_rms_norm(self, x: Array, residual: Array | None, gain: Array, eps: float) -> tuple[Array, Array]:
        """One pass over x and residual."""
        if residual is None:
            return self._rows.rms_norm(x, gain, eps), x
        return self._rows.add_rms_norm(x, residual, gain, eps)

    def gated_mlp(self, x: Array, gate_up: Linear, down: Linear) -> Array:
        """Both products and SwiGLU in one call."""
        return self._linear.gated_mlp(x, gate_up, down)

    def moe(self, x: Array, w: Any, spec: MoeSpec) -> Array:
        """The router, then routed and shared experts in one call."""
        weights, ids = self.route(self.linear(x, w.router), w.router_bias, spec)
        shared = None if w.shared_gate_up is None else (w.shared_gate_up, w.shared_down)
        return self._linear.experts(x, weights, ids, w.experts, shared)

    def gqa(self, x: Array, w: Any, cache: KvCache, plan: CpuPlan, spec: AttentionSpec, eps: float) -> Array:
        """Head norms, rope and the cache write in one pass over the projection's output, in place.

        A cache with a grid takes one op after the other.
        """
        if cache.data.grid is not None:
            return super().gqa(x, w, cache, plan, spec, eps)
        qkv = self._linear.linear(x, w.qkv)
        gains = None if w.q_gain is None else (w.q_gain, w.k_gain)
        self._attention.prepare(qkv, gains, cache, plan, spec, eps)
        queries = qkv[:, : spec.num_heads * spec.head_dim]
        out = self._attention.attend(queries, cache, plan, spec)
        attended: Array = out.reshape(len(x), spec.num_heads * spec.v_head_dim)
        return self.row_linear(attended, w.out)
