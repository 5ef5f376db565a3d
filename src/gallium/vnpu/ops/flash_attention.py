"""FlashAttentionScore and FlashAttentionVarLenScore of all versions: attention for training (npu_fusion_attention)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from gallium.vnpu.attention import layouts
from gallium.vnpu.attention.core import attend
from gallium.vnpu.attention.training import Training
from gallium.vnpu.named import register_named
from gallium.vnpu.registry import Unsupported

SAME = {"pre_tockens": "pre_tokens", "next_tockens": "next_tokens"}


@dataclass(frozen=True, kw_only=True)
class FlashAttention(Training):
    """Writes the output and the softmax's maximum and sum, each 8 times over; softmax_out is reserved and empty."""

    softmax_max: Tensor
    softmax_sum: Tensor
    softmax_out: Tensor | None
    attention_score: Tensor

    def run(self) -> None:
        """Compute and write all outputs."""
        if self.softmax_out is not None and self.softmax_out.numel() > 0:
            raise Unsupported("softmax_out", self.softmax_out, "an empty tensor")
        out = layouts.view("attention_score", self.attention_score, self.input_layout, self.head_num)
        for part, work in self.parts(*self.views()):
            attend(work, part.of_queries(out), self.stats(self.softmax_max, part), self.stats(self.softmax_sum, part))
        if self.packed:
            self.attention_score[self.end :] = 0


@dataclass(frozen=True, kw_only=True)
class FlashAttentionWithDropout(FlashAttention):
    """On 950 the kernel draws the dropout mask itself."""

    draws_dropout: ClassVar[bool] = True


for _name in ("FlashAttentionScore", "FlashAttentionScoreV2", "FlashAttentionScoreV3"):
    register_named(_name, FlashAttention, same=SAME)
for _name in ("", "V2", "V3", "V4", "V5"):
    register_named(f"FlashAttentionVarLenScore{_name}", FlashAttention, same=SAME)
register_named("FlashAttentionScoreV4", FlashAttentionWithDropout, same=SAME)
