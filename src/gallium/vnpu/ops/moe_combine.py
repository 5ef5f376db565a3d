"""Rows given back by the experts' ranks, weighted and added for each token: MoeDistributeCombine, all versions.

Docs of op-plugin: torch_npu.npu_moe_distribute_combine, npu_moe_distribute_combine_v2.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gallium.vnpu.expert_parallel import UNUSED, Placement
from gallium.vnpu.named import register_named
from gallium.vnpu.ops._moe_combine import Special, combine
from gallium.vnpu.refusals import only, refuse_given
from gallium.vnpu.writing import write

_UNUSED = UNUSED | {
    "expand_scales": "repeats expert_scales for ranks that add before they send, which changes no result",
    "tp_send_counts": "is reserved: there is no communication over a second group",
}
_ASSIST = {"assist_info_for_combine": "holds nothing here: the counts and expert_ids say where rows go"}
_IDX = {"expand_idx": "says again what the counts and expert_ids say"}
_RESERVED = {"reserved": "activation_scale", "reserved_8": "weight_scale", "reserved_9": "group_list"}


@dataclass(frozen=True, kw_only=True)
class _Rows(Placement):
    """What all forms are given. Those with experts that need no rank have the parameters from ori_x on."""

    expand_x: Tensor
    expert_ids: Tensor
    expand_idx: Tensor | None = None
    assist_info_for_combine: Tensor | None = None
    ep_send_counts: Tensor
    expert_scales: Tensor
    tp_send_counts: Tensor | None
    x_active_mask: Tensor | None
    activation_scale: Tensor | None
    weight_scale: Tensor | None
    group_list: Tensor | None
    expand_scales: Tensor | None
    shared_expert_x: Tensor | None = None
    ori_x: Tensor | None = None
    const_expert_alpha_1: Tensor | None = None
    const_expert_alpha_2: Tensor | None = None
    const_expert_v: Tensor | None = None
    global_bs: int
    out_dtype: int
    comm_quant_mode: int
    group_list_type: int
    comm_alg: str = ""
    zero_expert_num: int = 0
    copy_expert_num: int = 0
    const_expert_num: int = 0

    def total(self) -> Tensor:
        """What each token gets, [tokens, hidden], in float32."""
        self.refuse_reserved()
        self._refuse_quantised_forms()
        special = Special(
            self.zero_expert_num, self.copy_expert_num, self.const_expert_num, self.ori_x, self.const_expert_alpha_1,
            self.const_expert_alpha_2, self.const_expert_v,
        )  # fmt: skip
        return combine(
            self.experts(), self.expand_x, self.expert_ids, self.ep_send_counts, self.expert_scales,
            self.x_active_mask, self.shared_expert_x, special, self.global_bs, self.comm_alg,
        )  # fmt: skip

    def _refuse_quantised_forms(self) -> None:
        refuse_given(activation_scale=self.activation_scale, weight_scale=self.weight_scale, group_list=self.group_list)
        only("out_dtype", self.out_dtype, 0)
        only("comm_quant_mode", self.comm_quant_mode, 0)
        only("group_list_type", self.group_list_type, 0)


@dataclass(frozen=True, kw_only=True)
class Combine(_Rows):
    """The sum for each token."""

    output: Tensor

    def run(self) -> None:
        """Compute and write it."""
        write(self.output, self.total())


@dataclass(frozen=True, kw_only=True)
class CombineAddRmsNorm(_Rows):
    """x = the sum for each token + residual_x, then RmsNorm of x."""

    residual_x: Tensor
    gamma: Tensor
    norm_eps: float
    y: Tensor
    rstd: Tensor
    x: Tensor

    def run(self) -> None:
        """Compute and write all outputs."""
        wide = self.total().view(self.x.shape) + self.residual_x.float()
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.norm_eps)
        write(self.x, wide)
        write(self.rstd, scale.view(self.rstd.shape))
        write(self.y, wide * scale * self.gamma.float())


register_named("MoeDistributeCombine", Combine, cube=False, unused=_UNUSED | _IDX)
for _name in ("MoeDistributeCombineV2", "MoeDistributeCombineV3", "MoeDistributeCombineV4"):
    register_named(_name, Combine, same=_RESERVED, cube=False, unused=_UNUSED | _ASSIST)
for _name in ("MoeDistributeCombineAddRmsNorm", "MoeDistributeCombineAddRmsNormV2"):
    register_named(
        _name,
        CombineAddRmsNorm,
        same={"output": "y", "output2": "rstd", "output3": "x"},
        cube=False,
        unused=_UNUSED | _IDX,
    )
