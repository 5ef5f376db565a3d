"""AscendOps: the op vocabulary with torch_npu's fused operators; what they refuse is plain PyTorch on the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import torch
import torch_npu
from torch.utils.weak import WeakTensorKeyDictionary

from gallium.backends.ascend import attention, experts, heads, linear
from gallium.backends.ascend.cache import AscendPages, Fused, antiquant, fused_for, most_offset
from gallium.backends.ascend.exchange import Exchange, communicator_name
from gallium.backends.ascend.graphs import NpuGraphedStep
from gallium.backends.ascend.plan import AscendPlan
from gallium.backends.ascend.reasons import activations, op_reasons
from gallium.backends.ascend.soc import Soc
from gallium.backends.torch import cache as caches
from gallium.backends.torch import ranks
from gallium.backends.torch.collectives import Collectives
from gallium.backends.torch.ops import TorchOps
from gallium.ops.handles import (
    AttentionSpec,
    Experts,
    KvCache,
    KvGrid,
    Linear,
    ModelFacts,
    MoeSpec,
    Precision,
    Role,
    RopeSpec,
    Step,
    Weight,
)
from gallium.ops.interface import OpReport

Array: TypeAlias = Any
"""A torch.Tensor on the device; the seam's Tensor has fewer methods than torch's own type tells."""

SHORT_ROW = 32  # bytes
PREFILL_ROWS = 256  # from here on a product and its sum over ranks are one kernel: op-plugin's page, not for decoding


class AscendOps(TorchOps):
    """One model's ops on one chip. What the chip has is asked once, here; what fits a cache, when the cache is made."""

    name = "ascend"
    block_size = 128

    def __init__(
        self, model: ModelFacts, precision: Precision, device: torch.device, collectives: Collectives, chip: Soc
    ) -> None:
        self.activations = activations(chip, precision)
        super().__init__(model, self.activations, device, collectives)
        self.precision = precision
        self.noise_dtype = torch.float32  # the chip's vector unit has no float64
        self.chip = chip
        if chip.has("NPUGraph") and not (collectives.placement.ep > 1 and collectives.placement.dp > 1):
            self.step_graphs = NpuGraphedStep
        torch_npu.npu.config.allow_internal_format = chip.has("nz_weights")
        self.fuses_decoding = False  # whether one kernel attends in a decode step over the caches made last
        self._setup = linear.Setup(chip, device, precision, self.dtype)
        self._gains: Any = WeakTensorKeyDictionary()
        self._mask = attention.triangle(device) if chip.has("npu_fused_infer_attention_score") else None
        self._has_swiglu = chip.has("npu_swiglu")
        self._has_swiglu_in_integers = chip.has("npu_dequant_swiglu_quant")
        self._has_add_rms_norm = chip.has("npu_add_rms_norm")
        self._has_short_norms = chip.has("short_rms_norm")
        self._has_interleaved = chip.has("interleaved_rotary_mul")
        self._has_mrope = chip.has("npu_mrope")
        self._has_gating = chip.has("npu_moe_gating_top_k")
        self._communicator = self._find_communicator()
        place = collectives.placement
        shares = model.moe is not None and place.ep > 1 and place.dp > 1
        self._exchange = Exchange(collectives, model, chip, self.dtype) if shares else None

    def _find_communicator(self) -> str:
        """The tensor-parallel group's name for kernels that talk to it themselves; empty where there are none."""
        group = self.collectives.tensor_group
        if (
            group is None
            or not self.chip.has("npu_mm_all_reduce_base")
            or self.collectives.placement.tp not in (2, 4, 8)
        ):
            return ""
        return communicator_name(group, torch.distributed.get_rank(group), self.device)

    def plan(self, step: Step) -> AscendPlan:
        """The step's arrays on the device, lengths on the host too."""
        if self._exchange is not None:
            self._exchange.agree(len(step.token_ids))
        return AscendPlan(step, self.device)

    def fixed_plan(self, step: Step, live: int) -> AscendPlan:
        """A plan for a graph."""
        return AscendPlan(step, self.device, fixed=True, live=live)

    # -- packing --------------------------------------------------------------------
    def pack_linear(self, parts: Sequence[Weight], bias: Sequence[Weight] = (), role: Role = "linear") -> Linear:
        """A Matrix that knows its kernel, see `linear.py`."""
        matrix = linear.pack(parts, bias, role, self._setup)
        self._weight_bytes += matrix.nbytes
        return Linear(parts[0].shape[1], sum(part.shape[0] for part in parts), matrix)

    def pack_heads(self, weight: Sequence[Weight]) -> Linear:
        """`[heads, in, out]` for the kernel that reads heads as they lie, if it takes them."""
        if heads.refusal(weight, self._setup):
            return super().pack_heads(weight)
        matrix = heads.pack(weight, self._setup)
        self._count(matrix.weight)
        return Linear(weight[0].shape[1], weight[0].shape[0], matrix)

    def pack_experts(
        self,
        gate_up: Sequence[Sequence[Weight]],
        down: Sequence[Weight],
        roles: tuple[Role, Role] = ("linear", "linear"),
    ) -> Experts:
        """Grouped matrices, see `experts.py`."""
        pair = experts.pack(gate_up, down, roles, self._setup)
        self._weight_bytes += pair.nbytes
        return Experts(len(down), down[0].shape[0], down[0].shape[1], pair)

    def make_kv_cache(
        self, spec: AttentionSpec, num_blocks: int, block_size: int, grid: KvGrid | None = None
    ) -> KvCache:
        """Pages of zeros, and which fused operators take them."""
        pages = caches.make_pages(spec, num_blocks, block_size, self.dtype, self.device, grid)
        held = pages.grid
        fused = fused_for(self.chip, self.dtype, spec, block_size, None if held is None else most_offset(held))
        self.fuses_decoding = not (fused.decode and fused.latent)
        codes = None if held is None else antiquant(held)
        pages = AscendPages(pages.k, pages.v, pages.index, held, fused=fused, antiquant=codes)
        return KvCache(num_blocks, block_size, pages)

    # -- rows -------------------------------------------------------------------------
    def embed(self, plan: Any, table: Linear) -> Array:
        """`table[token_ids]`."""
        return super().embed(plan, replace(table, data=table.data.weight))

    def linear(self, x: Array, w: Linear) -> Array:
        """The matrix's own kernel."""
        found: Array = w.data(x)
        return found

    def head_linear(self, x: Array, w: Linear) -> Array:
        """npu_transpose_batchmatmul."""
        return w.data(x) if isinstance(w.data, heads.HeadMatrix) else super().head_linear(x, w)

    def rms_norm(self, x: Array, gain: Array, eps: float) -> Array:
        """npu_rms_norm."""
        if not self._has_short_norms and x.shape[-1] * x.element_size() < SHORT_ROW:
            return super().rms_norm(x, gain, eps)
        found: Array = torch_npu.npu_rms_norm(x, self._gain(gain, x.dtype), eps)[0]
        return found

    def add_rms_norm(self, x: Array, residual: Array | None, gain: Array, eps: float) -> tuple[Array, Array]:
        """npu_add_rms_norm."""
        if residual is None or not self._has_add_rms_norm or not x.numel():
            return super().add_rms_norm(x, residual, gain, eps)
        normed, _, total = torch_npu.npu_add_rms_norm(residual, x, self._gain(gain, x.dtype), eps)
        return normed, total

    def _gain(self, gain: Array, dtype: torch.dtype) -> Array:
        """A gain in the type of what it scales, converted once: npu_add_rms_norm takes no other."""
        if gain.dtype == dtype:
            return gain
        found: Array | None = self._gains.get(gain)
        if found is None or found.dtype != dtype:
            found = self._gains[gain] = gain.to(dtype)
        return found

    def rope(self, x: Array, plan: Any, spec: RopeSpec) -> Array:
        """npu_rotary_mul. Neighbours turn within the whole head, the rest by no angle; halves need the turned part."""
        if not x.numel():
            return x
        if spec.interleaved and not self._has_interleaved:
            return super().rope(x, plan, spec)
        whole = spec.interleaved or spec.dim == x.shape[-1]
        part = x if whole else x[..., : spec.dim]
        cos, sin = plan.turns(spec, part.shape[-1], x.dtype)[:, None, :, None]
        mode = "interleave" if spec.interleaved else "half"
        turned: Array = torch_npu.npu_rotary_mul(part[None], cos, sin, mode)[0]
        return turned if whole else torch.cat((turned, x[..., spec.dim :]), dim=-1)

    def swiglu(self, gate_up: Array) -> Array:
        """npu_swiglu."""
        if not self._has_swiglu or not gate_up.numel():
            return super().swiglu(gate_up)
        found: Array = torch_npu.npu_swiglu(gate_up, dim=-1)
        return found

    def row_linear(self, x: Array, w: Linear) -> Array:
        """A product and its sum over the ranks; for many rows in one kernel, which sends what is done already."""
        matrix = w.data
        fits = self._communicator and len(x) >= PREFILL_ROWS and isinstance(matrix, linear.FloatMatrix)
        if not fits or self.dtype == torch.float32:
            return super().row_linear(x, w)
        found: Array = torch_npu.npu_mm_all_reduce_base(
            x.to(self.dtype), matrix.weight.t(), self._communicator, bias=matrix.bias
        )
        return found

    def gated_mlp(self, x: Array, gate_up: Linear, down: Linear) -> Array:
        """In integers from end to end where both are: npu_dequant_swiglu_quant stands between the products."""
        if not (self._has_swiglu_in_integers and linear.fuses(gate_up.data, down.data)):
            return super().gated_mlp(x, gate_up, down)
        return self.all_reduce(linear.fused_mlp(x, gate_up.data, down.data))

    # -- experts ------------------------------------------------------------------------
    def route(self, logits: Array, bias: Array, spec: MoeSpec) -> tuple[Array, Array]:
        """npu_moe_gating_top_k."""
        if not self._has_gating or experts.gating_refusal(spec) or not len(logits):
            return super().route(logits, bias, spec)
        return experts.route(logits, bias, spec)

    def experts(self, x: Array, weights: Array, ids: Array, w: Experts) -> Array:
        """npu_moe_init_routing_v2, npu_grouped_matmul twice, npu_moe_finalize_routing; or those that exchange."""
        placement, held = self.collectives.placement, w.num_experts
        x = x.to(self.dtype)
        if self._exchange is None:
            return experts.run(x, weights, ids, w.data, placement.ep_rank * held, held, held * placement.ep)
        if self._exchange.fits:
            return self._exchange.run(x, weights, ids, w.data)

        def products(rows: Array, local: Array) -> Array:
            return experts.alone(rows, local, w.data, held)

        return ranks.exchanged_experts(x, weights, ids, held, self.collectives, products)

    def moe(self, x: Array, w: Any, spec: MoeSpec) -> Array:
        """The shared expert in integers from end to end, as `gated_mlp`."""
        up, down = w.shared_gate_up, w.shared_down
        if up is None or not (self._has_swiglu_in_integers and linear.fuses(up.data, down.data)):
            return super().moe(x, w, spec)
        weights, ids = self.route(self.linear(x, w.router), w.router_bias, spec)
        shared = linear.fused_mlp(x, up.data, down.data)
        return self.all_reduce(self.add(self.experts(x, weights, ids, w.experts), shared))

    # -- attention ------------------------------------------------------------------------
    def kv_write(self, k: Array, v: Array, cache: KvCache, plan: Any) -> None:
        """npu_scatter_pa_kv_cache."""
        pages: AscendPages = cache.data
        if pages.fused.write or not len(k):
            super().kv_write(k, v, cache, plan)
            return
        parts = [(x if x.dim() == 3 else x[:, None]).contiguous() for x in caches.stored(k, v, pages)]
        stores = [x if x.dim() == 4 else x[:, :, None] for x in (pages.k, pages.v)]
        slots = plan.slots(cache.block_size)
        torch_npu.npu_scatter_pa_kv_cache(*parts, *stores, slots, cache_mode="Norm")

    def attend(self, q: Array, cache: KvCache, plan: Any, spec: AttentionSpec) -> Array:
        """npu_fused_infer_attention_score: one query per sequence, or any mixture."""
        pages: AscendPages = cache.data
        fused, codes, queries = pages.fused, pages.antiquant, q.to(self.dtype).contiguous()
        if len(q) and not fused.decode and plan.one_each:
            return attention.decode(queries, pages, plan, spec)
        if fused.packed or not len(q) or self._mask is None or (plan.one_each and codes is not None):
            return super().attend(q, cache, plan, spec)
        if codes is None:
            return attention.packed(queries, pages.k, pages.v, plan, spec, self._mask)
        return attention.packed_codes(queries, pages, codes, plan, spec, self._mask)

    def attend_latent(
        self,
        q: Array,
        q_rope: Array,
        cache: KvCache,
        plan: Any,
        spec: AttentionSpec,
        selected: Array | None,
    ) -> Array:
        """npu_fused_infer_attention_score with rotated parts; npu_sparse_flash_attention over selected positions."""
        pages: AscendPages = cache.data
        fused: Fused = pages.fused
        composed = bool(fused.latent if selected is None else fused.chosen)
        if composed or not len(q) or self._mask is None:
            return super().attend_latent(q, q_rope, cache, plan, spec, selected)
        parts = (q.to(self.dtype).contiguous(), q_rope.to(self.dtype).contiguous(), pages.k, pages.v)
        if selected is None:
            return attention.latent(*parts, plan, spec, self._mask)
        return attention.latent_over(*parts, plan, spec, selected)

    def index_topk(self, q: Array, weights: Array, cache: KvCache, plan: Any, k: int) -> Array:
        """npu_lightning_indexer."""
        pages: AscendPages = cache.data
        if pages.fused.indexer or not len(q) or q.shape[1] > attention.MOST_INDEX_HEADS:
            return super().index_topk(q, weights, cache, plan, k)
        queries, factors = (x.to(self.dtype).contiguous() for x in (q, weights))
        return attention.choose(queries, factors, pages.index, plan, k)

    def gqa(self, x: Array, w: Any, cache: KvCache, plan: Any, spec: AttentionSpec, eps: float) -> Array:
        """Queries and keys turn in one kernel, which also cuts them out of the projection."""
        if not self._has_mrope or not len(x):
            return super().gqa(x, w, cache, plan, spec, eps)
        n, d = len(x), spec.head_dim
        parts = (spec.num_heads * d, spec.num_kv_heads * d, spec.num_kv_heads * spec.v_head_dim)
        q, k, v = self.linear(x, w.qkv).split(parts, dim=1)
        if w.q_gain is not None:
            q = self.rms_norm(q.unflatten(1, (-1, d)), w.q_gain, eps).flatten(1)
            k = self.rms_norm(k.unflatten(1, (-1, d)), w.k_gain, eps).flatten(1)
        q, k = torch_npu.npu_mrope(
            plan.numbers, q, k, plan.angles(spec.rope, q.dtype), d, mrope_section=[0, 0, 0],
            rotary_mode="interleave" if spec.rope.interleaved else "half",
        )  # fmt: skip
        self.kv_write(k.view(n, -1, d), v.reshape(n, -1, spec.v_head_dim), cache, plan)
        return self.row_linear(self.attend(q.view(n, -1, d), cache, plan, spec).reshape(n, -1), w.out)

    # -- visibility -------------------------------------------------------------------------
    def explain(self) -> list[OpReport]:
        """Which of torch_npu's functions serves each op, and where it is called."""
        reasons = op_reasons(self.chip, self.model, self.precision)
        return [
            OpReport(row.op, "composed" if reasons[row.op].startswith("composed") else "kernel", row.where)
            for row in super().explain()
        ]
