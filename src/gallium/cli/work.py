"""How many weights a step reads and how many operations a prompt needs, counted from the model's own tensors."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from gallium.models.catalog import EMBEDDING, HEAD, expected_tensors
from gallium.models.spec import ModelSpec
from gallium.ops.costs import experts_met

ROUTED = re.compile(r"\.mlp\.experts\.")  # routed experts; shared ones are named otherwise


@dataclass(frozen=True)
class Work:
    """Matrix elements of one model, by when they are read."""

    spec: ModelSpec
    layers: int  # every token: attention, dense and shared MLPs, routers
    routed: int  # all routed experts
    head: int
    total: int  # with an embedding that is not the head too

    @staticmethod
    def of(spec: ModelSpec) -> Work:
        """Count."""
        layers = routed = head = total = 0
        for name, shape in expected_tensors(spec, ()).items():
            if len(shape) == 1:
                continue
            size = math.prod(shape)
            total += size
            if name == f"{HEAD}.weight" or (spec.tied_head and name == f"{EMBEDDING}.weight"):
                head += size
            elif ROUTED.search(name):
                routed += size
            elif name != f"{EMBEDDING}.weight":
                layers += size
        return Work(spec, layers, routed, head, total)

    def share_read(self, batch: int) -> float:
        """The part of all weights that one decode step of `batch` sequences reads, if tokens choose at random."""
        moe = self.spec.moe
        met = 0.0 if moe is None else experts_met(moe.num_experts, moe.top_k, batch) / moe.num_experts
        return (self.layers + self.routed * met + self.head) / self.total

    def prefill_operations(self, tokens: int) -> float:
        """Multiplications and additions for a prompt whose last token alone gets logits."""
        moe, at = self.spec.moe, self.spec.attention
        active = self.layers + (0 if moe is None else self.routed * moe.top_k / moe.num_experts)
        pairs = tokens * (tokens + 1) / 2  # (query, key), causal
        attention = 2 * pairs * at.num_heads * (at.head_dim + at.v_head_dim) * self.spec.num_layers
        return 2 * active * tokens + 2 * self.head + attention
