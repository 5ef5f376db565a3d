"""FlashAttentionScoreGrad and FlashAttentionUnpaddingScoreGrad of all versions: the gradients of attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gallium.vnpu.attention import layouts
from gallium.vnpu.attention.gradient import Forward, Gradients, attend_backward
from gallium.vnpu.attention.positions import ALIBI
from gallium.vnpu.attention.training import Part, Training
from gallium.vnpu.named import register_named
from gallium.vnpu.ops.flash_attention import SAME
from gallium.vnpu.registry import Illegal, Unsupported, refuse_given


@dataclass(frozen=True, kw_only=True)
class FlashAttentionGrad(Training):
    """Gradients from what the forward pass wrote: softmax_max, softmax_sum, attention; softmax is reserved, empty."""

    dy: Tensor
    softmax_max: Tensor | None
    softmax_sum: Tensor | None
    softmax: Tensor | None
    attention: Tensor | None
    d_scale_dy: Tensor | None = None
    d_scale_o: Tensor | None = None
    dq: Tensor
    dk: Tensor
    dv: Tensor
    dpse: Tensor | None = None
    dq_rope: Tensor | None = None
    dk_rope: Tensor | None = None
    dsink: Tensor | None = None

    def run(self) -> None:
        """Compute and write all outputs."""
        refuse_given(d_scale_dy=self.d_scale_dy, d_scale_o=self.d_scale_o)
        if self.softmax is not None and self.softmax.numel() > 0:
            raise Unsupported("softmax_in", self.softmax, "an empty tensor")
        if self.softmax_max is None or self.softmax_sum is None or self.attention is None:
            raise Illegal("softmax_max, softmax_sum and attention_in", None, "given, all three")
        views = self.views()
        grads = [torch.zeros(x.shape) for x in views]
        sink_grad = None if self.sink is None else torch.zeros(self.head_num)
        dy = layouts.view("dy", self.dy, self.input_layout, self.head_num)
        out = layouts.view("attention_in", self.attention, self.input_layout, self.head_num)
        if self.dpse is not None:
            self.dpse.zero_()
        for part, work in self.parts(*views):
            maximum, total = self.stats(self.softmax_max, part)[..., :1], self.stats(self.softmax_sum, part)[..., :1]
            bias_grad = None if work.bias is None or self.dpse is None else torch.zeros(work.bias.shape)
            into = (part.of_queries(grads[0]), part.of_keys(grads[1]), part.of_keys(grads[2]))
            forward = Forward(part.of_queries(out), maximum, total)
            attend_backward(work, forward, part.of_queries(dy), Gradients(*into, bias_grad, sink_grad))
            if bias_grad is not None and self.dpse is not None:
                self._add_pse_gradient(part, bias_grad, self.dpse)
        self._write(*grads)
        if self.dsink is not None and sink_grad is not None:
            self.dsink.copy_(sink_grad)

    def _add_pse_gradient(self, part: Part, bias_grad: Tensor, dpse: Tensor) -> None:
        assert self.pse is not None
        queries, keys = bias_grad.shape[2:]
        if self.pse_type == ALIBI:
            bias_grad = (bias_grad * self.positions(self.pse).distances(queries, keys)).sum((2, 3))
            bias_grad = bias_grad.sum(0) if dpse.dim() == 1 else bias_grad
        elif self.packed or self.positions(self.pse).compressed(queries):
            raise Unsupported("the gradient of pse", "its last 1024 rows", "a whole pse")
        shared = dpse.dim() == 1 or dpse.shape[0] == 1
        into = dpse if shared else dpse[part.sequences(self.packed)]
        into += bias_grad.sum_to_size(into.shape)

    def _write(self, query_grad: Tensor, key_grad: Tensor, value_grad: Tensor) -> None:
        """Split the heads into their own part and the rotated part, if there is one."""
        rotated = 0
        if self.query_rope is not None:
            rotated = self.query_rope.shape[-1] // (self.head_num if self.input_layout in ("BSH", "SBH") else 1)
        for grad, out, rope in ((query_grad, self.dq, self.dq_rope), (key_grad, self.dk, self.dk_rope)):
            own = grad.shape[-1] - rotated
            layouts.view("the gradient", out, self.input_layout, grad.shape[1]).copy_(grad[..., :own])
            if rotated and rope is not None:
                layouts.view("the gradient", rope, self.input_layout, grad.shape[1]).copy_(grad[..., own:])
        layouts.view("dv", self.dv, self.input_layout, value_grad.shape[1]).copy_(value_grad)


@dataclass(frozen=True, kw_only=True)
class FlashAttentionGradWithDropout(FlashAttentionGrad):
    """On 950 the kernel draws the dropout mask itself, the same as in the forward pass."""

    draws_dropout: ClassVar[bool] = True


for _name in ("FlashAttentionScoreGrad", "FlashAttentionScoreGradV2", "FlashAttentionScoreGradV3"):
    register_named(_name, FlashAttentionGrad, same=SAME)
for _name in ("", "V2", "V3", "V4", "V5"):
    register_named(f"FlashAttentionUnpaddingScoreGrad{_name}", FlashAttentionGrad, same=SAME)
register_named("FlashAttentionScoreGradV4", FlashAttentionGradWithDropout, same=SAME)
