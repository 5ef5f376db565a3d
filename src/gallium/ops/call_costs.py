"""The cost of one call of the seam: from its arguments to the formulas of `costs.py`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from gallium.ops import costs
from gallium.ops.costs import Cost, Sizes
from gallium.ops.handles import AttentionSpec, Experts, Linear, MoeSpec, Precision, RopeSpec, Step, Tensor
from gallium.ops.interface import Ops
from gallium.ops.machine import KnowsActivationBytes, KnowsStored, Stored


class CallCosts:
    """Knows how one backend keeps weights, activations and cache of one model in one process."""

    def __init__(self, ops: Ops, attention: AttentionSpec, precision: Precision, block_size: int) -> None:
        self._ops = ops
        self._precision = precision
        self._known = ops.stored if isinstance(ops, KnowsStored) else None
        self._attended: tuple[Step, AttentionSpec, Cost] | None = None  # the last, which all layers of a step share
        assumed = 4 if precision == "float32" else 2
        value = ops.activation_bytes if isinstance(ops, KnowsActivationBytes) else assumed
        cached = costs.kv_values(attention) + attention.index_dim
        self.sizes = Sizes(value, ops.kv_block_bytes(attention, block_size) / (block_size * cached))

    def of(self, op: str, args: Sequence[Any], step: Step) -> Cost:
        """What a call of `op` with `args` costs in a forward pass of `step`; nothing if it is not known to cost.

        Counts the experts that tokens have met from their ids, which waits for them on a device of its own.
        """
        count = getattr(self, f"_{op}", None)
        found: Cost = Cost() if count is None else count(step, *args)
        return found

    def stored(self, weight: Linear | Experts) -> Stored:
        """What a packed weight takes: as the backend knows, else by the bits of the model's precision."""
        if self._known is not None:
            return self._known(weight)
        if isinstance(weight, Experts):
            return costs.stored(3 * weight.num_experts * weight.hidden * weight.width, self._precision)
        return costs.stored(weight.in_features * weight.out_features, self._precision)

    # -- core ops -------------------------------------------------------------------

    def _embed(self, step: Step, plan: Any, table: Linear) -> Cost:
        return costs.embed(len(step.token_ids), table, self.stored(table), self.sizes)

    def _linear(self, step: Step, x: Tensor, w: Linear) -> Cost:
        return costs.linear(x.shape[0], w, self.stored(w), self.sizes)

    def _head_linear(self, step: Step, x: Tensor, w: Linear) -> Cost:
        packed, heads = self.stored(w), x.shape[1]
        if self._known is None:
            packed = Stored(packed.num_bytes * heads, packed.precision)
        return costs.linear(x.shape[0], w, packed, self.sizes, heads)

    def _add(self, step: Step, x: Tensor, y: Tensor) -> Cost:
        return costs.add(_values(x), self.sizes)

    def _rms_norm(self, step: Step, x: Tensor, gain: Tensor, eps: float) -> Cost:
        return costs.rms_norm(_values(x), self.sizes)

    def _rope(self, step: Step, x: Tensor, plan: Any, spec: RopeSpec) -> Cost:
        values = _values(x)
        return costs.rope(values, values * spec.dim // max(1, x.shape[-1]), self.sizes)

    def _swiglu(self, step: Step, gate_up: Tensor) -> Cost:
        return costs.swiglu(_values(gate_up) // 2, self.sizes)

    def _route(self, step: Step, logits: Tensor, bias: Tensor, spec: MoeSpec) -> Cost:
        return costs.route(logits.shape[0], spec.num_experts, spec.top_k, self.sizes)

    def _experts(self, step: Step, x: Tensor, weights: Tensor, ids: Tensor, w: Experts) -> Cost:
        met = len(np.unique(self._ops.download(ids)))
        return costs.experts(x.shape[0], ids.shape[1], met, w, self.stored(w), self.sizes)

    def _kv_write(self, step: Step, k: Tensor, v: Tensor, cache: Any, plan: Any) -> Cost:
        tokens = max(1, k.shape[0])
        return costs.kv_write(k.shape[0], (_values(k) + _values(v)) // tokens, self.sizes)

    def _index_write(self, step: Step, keys: Tensor, cache: Any, plan: Any) -> Cost:
        return costs.kv_write(keys.shape[0], keys.shape[-1], self.sizes)

    def _attend(self, step: Step, q: Tensor, cache: Any, plan: Any, spec: AttentionSpec) -> Cost:
        if self._attended is None or self._attended[0] is not step or self._attended[1] is not spec:
            self._attended = step, spec, costs.attend(step, spec, self.sizes)
        return self._attended[2]

    def _attend_latent(
        self, step: Step, q: Tensor, q_rope: Tensor, cache: Any, plan: Any, spec: AttentionSpec, selected: Any
    ) -> Cost:
        return costs.attend_latent(step, spec, None if selected is None else selected.shape[1], self.sizes)

    def _index_topk(self, step: Step, q: Tensor, weights: Tensor, cache: Any, plan: Any, k: int) -> Cost:
        return costs.index_topk(step, q.shape[1], q.shape[2], k, self.sizes)

    def _take_rows(self, step: Step, x: Tensor, plan: Any) -> Cost:
        return costs.take_rows(len(step.logit_rows) * x.shape[1], self.sizes)

    def _sample(self, step: Step, logits: Tensor, how: Any) -> Cost:
        return costs.sample(logits.shape[0], logits.shape[1], self.sizes)

    # -- blocks, where a backend fuses them ---------------------------------------------

    def _add_rms_norm(self, step: Step, x: Tensor, residual: Tensor | None, gain: Tensor, eps: float) -> Cost:
        return (costs.rms_norm if residual is None else costs.add_rms_norm)(_values(x), self.sizes)

    def _row_linear(self, step: Step, x: Tensor, w: Linear) -> Cost:
        return self._linear(step, x, w)

    def _logits(self, step: Step, x: Tensor, head: Linear) -> Cost:
        return self._linear(step, x, head)

    def _gated_mlp(self, step: Step, x: Tensor, gate_up: Linear, down: Linear) -> Cost:
        tokens = x.shape[0]
        parts = (
            self._linear(step, x, gate_up),
            costs.swiglu(tokens * down.in_features, self.sizes),
            self._linear(step, x, down),
        )
        return costs.fused(parts, tokens * (gate_up.in_features + down.out_features), self.sizes)

    def _moe(self, step: Step, x: Tensor, w: Any, spec: MoeSpec) -> Cost:
        """The router's choices stay within: so many experts are read as tokens would meet that choose at random."""
        tokens, hidden = x.shape[0], w.experts.hidden
        met = costs.experts_met(spec.num_experts, spec.top_k, tokens)
        parts = [
            self._linear(step, x, w.router),
            costs.route(tokens, spec.num_experts, spec.top_k, self.sizes),
            costs.experts(tokens, spec.top_k, met, w.experts, self.stored(w.experts), self.sizes),
        ]
        if w.shared_gate_up is not None:
            parts += [self._gated_mlp(step, x, w.shared_gate_up, w.shared_down), costs.add(tokens * hidden, self.sizes)]
        return costs.fused(parts, 2 * tokens * hidden, self.sizes)

    def _gqa(self, step: Step, x: Tensor, w: Any, cache: Any, plan: Any, spec: AttentionSpec, eps: float) -> Cost:
        tokens, sizes = x.shape[0], self.sizes
        turned = tokens * (spec.num_heads + spec.num_kv_heads)
        parts = [
            self._linear(step, x, w.qkv),
            costs.rope(turned * spec.head_dim, turned * spec.rope.dim, sizes),
            costs.kv_write(tokens, costs.kv_values(spec), sizes),
            self._attend(step, x, cache, plan, spec),
            self._linear(step, x, w.out),
        ]
        if w.q_gain is not None:
            parts.append(costs.rms_norm(turned * spec.head_dim, sizes))
        return costs.fused(parts, tokens * (w.qkv.in_features + w.out.out_features), sizes)


def _values(x: Tensor) -> int:
    return math.prod(x.shape)
