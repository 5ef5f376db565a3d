"""TorchOps: the op vocabulary in plain, device-neutral PyTorch, and the class that a vendor's fused ops derive from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, cast

import numpy as np
import torch

from gallium.backends.torch import attention, packing, ranks, routing, rows, sampling
from gallium.backends.torch import cache as caches
from gallium.backends.torch.collectives import Collectives
from gallium.backends.torch.device import free_memory
from gallium.backends.torch.graphs import GraphedStep, can_capture
from gallium.backends.torch.plan import TorchPlan
from gallium.ops.handles import (
    AttentionSpec,
    Experts,
    FloatArray,
    IntArray,
    KvCache,
    KvGrid,
    KvPrecision,
    Linear,
    ModelFacts,
    MoeSpec,
    Precision,
    Role,
    RopeSpec,
    SamplerInputs,
    Step,
    Weight,
)
from gallium.ops.interface import Ops

DTYPES: dict[Precision, torch.dtype] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}

Array: TypeAlias = Any
"""A torch.Tensor on the device; the seam's Tensor has fewer methods than torch's own type tells."""


class TorchOps(Ops):
    """One model's ops on one device.

    Activations have `dtype`, those of the router float32. An op takes float32 tensors from `upload` as well and
    converts them. `Linear.data` is the weight `[out, in]`, `Experts.data` the pair `(gate_up [experts, 2 * width,
    hidden], down [experts, hidden, width])`, `KvCache.data` a `Pages`, a plan a `TorchPlan`.
    """

    name = "torch"

    def __init__(self, model: ModelFacts, precision: Precision, device: torch.device, collectives: Collectives) -> None:
        self.model = model
        self.precision = precision
        self.device = device
        self.collectives = collectives
        self.dtype = DTYPES[precision]
        self.kv_precision = cast("KvPrecision", precision)  # of the floats, which DTYPES has
        self.noise_dtype = torch.float32 if device.type == "mps" else torch.float64  # Metal has no float64
        self.step_graphs: type[GraphedStep] | None = GraphedStep if self._can_capture() else None
        self._weight_bytes = 0

    def _can_capture(self) -> bool:
        """Not where experts are exchanged between groups: how many rows go where is read on the host."""
        placement = self.collectives.placement
        return can_capture(self.device) and not (placement.ep > 1 and placement.dp > 1)

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights packed so far."""
        return self._weight_bytes

    @property
    def activation_bytes(self) -> int:
        """Of the model's type."""
        return self.dtype.itemsize

    def wait(self) -> None:
        """For the device, where it is not the CPU."""
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)

    # -- memory -------------------------------------------------------------------
    def upload(self, array: FloatArray | IntArray) -> Array:
        """A copy on the device in float32, or in int32."""
        whole = np.issubdtype(array.dtype, np.integer)
        return torch.tensor(np.asarray(array, np.int32 if whole else np.float32), device=self.device)

    def download(self, x: Array) -> Array:
        """A float32 (ids: int32) array on the host; waits for it."""
        wanted = torch.float32 if x.is_floating_point() else torch.int32
        return x.to(device="cpu", dtype=wanted).numpy()

    def like(self, x: Array, other: Array) -> Array:
        """x in the other's dtype."""
        return x.to(other.dtype)

    def plan(self, step: Step) -> TorchPlan:
        """The step's arrays on the device; slots, rope tables and windows follow on demand."""
        return TorchPlan(step, self.device)

    def fixed_plan(self, step: Step, live: int) -> TorchPlan:
        """A plan for a graph: its shapes are those of the step's arrays; sequences from `live` on are padding."""
        return TorchPlan(step, self.device, fixed=True, live=live)

    def compile_step(
        self, forward: Callable[[TorchPlan], Array], decode_sizes: tuple[int, ...] = ()
    ) -> Callable[[Step], Array]:
        """Decode steps of these sizes as graphs, where the device can capture them; eager otherwise."""
        if self.model.moe is not None:
            decode_sizes = tuple(size for size in decode_sizes if size <= routing.NO_SYNC_TOKENS)
        if self.step_graphs is None or not decode_sizes:
            return super().compile_step(forward, decode_sizes)
        return self.step_graphs(self, forward, decode_sizes)

    def free_bytes(self) -> int | None:
        """What the device has left; None for the CPU, and where PyTorch cannot tell."""
        return free_memory(self.device)

    # -- packing ------------------------------------------------------------------
    def pack_linear(self, parts: Sequence[Weight], bias: Sequence[Weight] = (), role: Role = "linear") -> Linear:
        """`[out, in]` in the model's dtype; a router stays float32."""
        dtype = torch.float32 if role == "router" else self.dtype
        data = self._count(packing.stacked(parts, dtype, self.device))
        offset = self._count(packing.stacked(bias, dtype, self.device)) if bias else None
        return Linear(data.shape[1], data.shape[0], data, offset)

    def pack_heads(self, weight: Sequence[Weight]) -> Linear:
        """`[heads, out, in]`."""
        data = self._count(packing.stacked_each([[head] for head in weight], self.dtype, self.device))
        return Linear(data.shape[2], data.shape[1], data)

    def pack_experts(
        self,
        gate_up: Sequence[Sequence[Weight]],
        down: Sequence[Weight],
        roles: tuple[Role, Role] = ("linear", "linear"),
    ) -> Experts:
        """`[experts, 2 * width, hidden]` and `[experts, hidden, width]`."""
        first = self._count(packing.stacked_each(gate_up, self.dtype, self.device))
        second = self._count(packing.stacked_each([[w] for w in down], self.dtype, self.device))
        return Experts(second.shape[0], second.shape[1], second.shape[2], (first, second))

    def _count(self, weight: torch.Tensor) -> torch.Tensor:
        self._weight_bytes += weight.nbytes
        return weight

    def make_kv_cache(
        self, spec: AttentionSpec, num_blocks: int, block_size: int, grid: KvGrid | None = None
    ) -> KvCache:
        """Zeros in the model's dtype, with two pages more than asked for (see `plan.FIRST_PAGE`)."""
        pages = caches.make_pages(spec, num_blocks, block_size, self.dtype, self.device, grid)
        return KvCache(num_blocks, block_size, pages)

    def kv_block_bytes(self, spec: AttentionSpec, block_size: int, grid: KvGrid | None = None) -> int:
        """Bytes of one block of one layer."""
        return caches.block_bytes(spec, block_size, self.dtype, grid)

    # -- rows -----------------------------------------------------------------------
    def embed(self, plan: TorchPlan, table: Linear) -> Array:
        """`table[token_ids]`, from the ranks that hold the rows."""
        return ranks.embed(plan.token_ids, table, self.collectives)

    def linear(self, x: Array, w: Linear) -> Array:
        """`x @ W.T + bias`."""
        return rows.linear(x, w)

    def head_linear(self, x: Array, w: Linear) -> Array:
        """Per head `x[:, h] @ W[h].T`."""
        return rows.head_linear(x, w)

    def add(self, x: Array, y: Array) -> Array:
        """`x + y`."""
        return x + y

    def rms_norm(self, x: Array, gain: Array, eps: float) -> Array:
        """Over the last axis."""
        return rows.rms_norm(x, gain, eps)

    def rope(self, x: Array, plan: TorchPlan, spec: RopeSpec) -> Array:
        """Rotate the first `spec.dim` of `[tokens, heads, width]`."""
        return rows.rope(x, plan.rope_table(spec), spec)

    def swiglu(self, gate_up: Array) -> Array:
        """`gate * sigmoid(gate) * up`."""
        return rows.swiglu(gate_up)

    def take_rows(self, x: Array, plan: TorchPlan) -> Array:
        """`x[logit_rows]`; x itself when that is all of it."""
        return x if plan.all_rows else x.index_select(0, plan.logit_rows)

    def sample(self, logits: Array, how: SamplerInputs) -> Array:
        """One token id per row."""
        return sampling.sample(logits, how, self.noise_dtype)

    # -- experts --------------------------------------------------------------------
    def route(self, logits: Array, bias: Array, spec: MoeSpec) -> tuple[Array, Array]:
        """(weights, ids) of the chosen experts."""
        return routing.route(logits, bias, spec)

    def experts(self, x: Array, weights: Array, ids: Array, w: Experts) -> Array:
        """Weighted sum of the chosen experts, or this rank's summand of it."""
        return ranks.experts(x, weights, ids, w, self.collectives)

    # -- attention --------------------------------------------------------------------
    def kv_write(self, k: Array, v: Array, cache: KvCache, plan: TorchPlan) -> None:
        """Keys and values (mla: latents and rope keys) into their slots."""
        caches.kv_write(k, v, cache, plan)

    def index_write(self, keys: Array, cache: KvCache, plan: TorchPlan) -> None:
        """Index keys into their slots."""
        caches.index_write(keys, cache, plan)

    def attend(self, q: Array, cache: KvCache, plan: TorchPlan, spec: AttentionSpec) -> Array:
        """Causal paged attention."""
        return attention.attend(q, cache, plan, spec)

    def attend_latent(
        self,
        q: Array,
        q_rope: Array,
        cache: KvCache,
        plan: TorchPlan,
        spec: AttentionSpec,
        selected: Array | None,
    ) -> Array:
        """Attention over latents."""
        return attention.attend_latent(q, q_rope, cache, plan, spec, selected)

    def index_topk(self, q: Array, weights: Array, cache: KvCache, plan: TorchPlan, k: int) -> Array:
        """The positions each query may see."""
        return attention.index_topk(q, weights, cache, plan, k)

    # -- ranks ------------------------------------------------------------------------
    def all_reduce(self, x: Array) -> Array:
        """Sum over the tensor-parallel group."""
        return self.collectives.all_reduce(x)

    def all_gather(self, x: Array) -> Array:
        """The parts of the tensor-parallel group, side by side."""
        return self.collectives.all_gather(x)
