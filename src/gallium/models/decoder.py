"""The decoder: one loop for every model, over the hardware seam. No device is known here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gallium.models.spec import ModelSpec
from gallium.ops.handles import Experts, KvCache, KvGrid, Linear, Tensor
from gallium.ops.interface import Ops, Plan


@dataclass(frozen=True, slots=True)
class GqaWeights:
    """Grouped-query attention: q, k and v are one projection, their rows in this order."""

    qkv: Linear
    out: Linear
    q_gain: Tensor | None = None  # [head_dim]; both or none
    k_gain: Tensor | None = None
    kv_grid: KvGrid | None = None  # calibrated for an 8-bit cache of this layer


@dataclass(frozen=True, slots=True)
class MlpWeights:
    """A dense gated MLP: the gate's rows, then the up projection's."""

    gate_up: Linear
    down: Linear


@dataclass(frozen=True, slots=True)
class MoeWeights:
    """Routed experts with an optional shared one."""

    router: Linear
    router_bias: Tensor  # [experts]: chooses, does not weigh
    experts: Experts
    shared_gate_up: Linear | None
    shared_down: Linear | None


@dataclass(frozen=True, slots=True)
class Layer:
    """One decoder layer. The sandwich norms (glm4) act on a block's output before it joins the residual."""

    norm_in: Tensor
    attention: GqaWeights
    norm_post: Tensor
    mlp: MlpWeights | MoeWeights
    norm_attention_out: Tensor | None = None
    norm_mlp_out: Tensor | None = None


class Model:
    """A loaded model: packed weights and the loop that runs them on the ops they were packed for."""

    def __init__(
        self,
        spec: ModelSpec,
        ops: Ops,
        embedding: Linear,
        layers: Sequence[Layer],
        norm: Tensor,
        head: Linear,
    ) -> None:
        self.spec = spec
        self.ops = ops
        self.embedding = embedding
        self.layers = tuple(layers)
        self.norm = norm
        self.head = head

    def make_caches(self, num_blocks: int, block_size: int) -> list[KvCache]:
        """One empty paged cache per layer."""
        make, spec = self.ops.make_kv_cache, self.spec.attention
        return [make(spec, num_blocks, block_size, layer.attention.kv_grid) for layer in self.layers]

    def kv_block_bytes(self, block_size: int) -> int:
        """Bytes that one block takes in the caches of all layers together."""
        size, spec = self.ops.kv_block_bytes, self.spec.attention
        return sum(size(spec, block_size, layer.attention.kv_grid) for layer in self.layers)

    def forward(self, plan: Plan, caches: Sequence[KvCache]) -> Tensor:
        """Run one planned step and extend the caches by it -> logits `[logit rows, vocab]`."""
        ops, spec, eps = self.ops, self.spec, self.spec.eps
        attend = getattr(ops, spec.attention.kind)  # gqa | mla | mla_sparse, a fact of the model
        h, residual = ops.embed(plan, self.embedding), None
        for layer, cache in zip(self.layers, caches, strict=True):
            h, residual = ops.add_rms_norm(h, residual, layer.norm_in, eps)
            h = attend(h, layer.attention, cache, plan, spec.attention, eps)
            if layer.norm_attention_out is not None:
                h = ops.rms_norm(h, layer.norm_attention_out, eps)
            h, residual = ops.add_rms_norm(h, residual, layer.norm_post, eps)
            h = self._mlp(h, layer.mlp)
            if layer.norm_mlp_out is not None:
                h = ops.rms_norm(h, layer.norm_mlp_out, eps)
        h, _ = ops.add_rms_norm(h, residual, self.norm, eps)
        return ops.logits(ops.take_rows(h, plan), self.head)

    def _mlp(self, h: Tensor, mlp: MlpWeights | MoeWeights) -> Tensor:
        if isinstance(mlp, MlpWeights):
            return self.ops.gated_mlp(h, mlp.gate_up, mlp.down)
        assert self.spec.moe is not None  # the catalog builds MoE layers only for models that have one
        return self.ops.moe(h, mlp, self.spec.moe)
