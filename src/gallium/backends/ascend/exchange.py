"""Tokens to the ranks of their experts and back, in one kernel each: npu_moe_distribute_dispatch_v2 and -combine_v2.

For lanes of their own (`dp > 1`) that share whole experts (`ep > 1`). The kernels have limits on a batch, and all ranks
must call the same ones: so the ranks agree on the largest batch once per step, when it is planned, and larger ones take
the plain exchange of `backends/torch/ranks.py`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch_npu
from torch import Tensor

from gallium.backends.ascend import experts
from gallium.backends.ascend.soc import Soc
from gallium.backends.torch.collectives import Collectives
from gallium.ops.handles import ModelFacts

NO_QUANT, PER_TOKEN = 0, 2  # quant_mode of the dispatch
COUNTS = 1  # expert_token_nums_type
MOST_EXPERTS, MOST_CHOICES = 1024, 16
BUFFER_MIB = 200  # HCCL's own default for HCCL_BUFFSIZE


@dataclass(frozen=True)
class Limits:
    """What the two kernels take on a family of chips (op-plugin's pages)."""

    tokens: int
    hidden: range
    ranks: frozenset[int]
    algorithm: str
    sends_weights: bool  # whether the weights of the choices travel with the tokens


LIMITS = {
    "910B": Limits(
        256, range(32, 7168 + 1, 32), frozenset((*range(2, 9), 16, 32, 64, 128, 256)), "fullmesh", sends_weights=True
    ),
    "910_93": Limits(512, range(1024, 8192 + 1), frozenset(range(2, 769)), "", sends_weights=False),
}


def communicator_name(group: dist.ProcessGroup, rank: int, device: torch.device) -> str:
    """What kernels that talk to a group themselves call it; `rank` is this process's in the group."""
    found: str = group._get_backend(device).get_hccl_comm_name(rank)  # type: ignore[attr-defined]
    return found


class Exchange:
    """The exchange of one model's tokens among all ranks; `refusal` says why its kernels cannot serve, if so."""

    def __init__(self, collectives: Collectives, model: ModelFacts, chip: Soc, dtype: torch.dtype) -> None:
        assert model.moe is not None and collectives.expert_group is not None
        self._placement = collectives.placement
        self._group = collectives.expert_group
        self._experts, self._hidden = model.moe.num_experts, model.hidden
        self._choices = model.moe.top_k // self._placement.tp  # they are dealt over the ranks of a lane
        self.refusal = self._refusal(chip, model.moe.top_k, dtype)
        self._batch = 0
        if self.refusal:
            return
        self._limits = LIMITS[chip.family]
        self._most = min(self._limits.tokens, self._room())
        self._name = communicator_name(self._group, self._placement.rank, torch.device("npu"))

    def _refusal(self, chip: Soc, top_k: int, dtype: torch.dtype) -> str:
        limits, ranks = LIMITS.get(chip.family), self._placement.world
        if limits is None or not chip.has("npu_moe_distribute_dispatch_v2"):
            return f"{chip.name} has no npu_moe_distribute_dispatch_v2"
        if dtype == torch.float32:
            return "it sends 16-bit activations only"
        if self._hidden not in limits.hidden:
            step = f" by {limits.hidden.step}" if limits.hidden.step > 1 else ""
            return f"a hidden size of {self._hidden}; it takes {limits.hidden.start} to {limits.hidden[-1]}{step}"
        if ranks not in limits.ranks or self._experts > MOST_EXPERTS:
            return f"{self._experts} experts on {ranks} ranks are beyond its limits"
        if top_k % self._placement.tp or self._choices > MOST_CHOICES:
            return f"{top_k} choices over {self._placement.tp} ranks of a lane; it takes up to {MOST_CHOICES} each"
        return ""

    def _room(self) -> int:
        """How many tokens per rank HCCL's buffer holds, by the formula of the page: twice all rows that may arrive."""
        mib = int(os.environ.get("HCCL_BUFFSIZE") or BUFFER_MIB)
        local = self._experts // self._placement.ep
        row = self._placement.world * min(local, self._choices) * self._hidden * 2
        return ((mib << 20) // 2 - (2 << 20)) // row

    def agree(self, tokens: int) -> None:
        """Learn how many tokens the fullest rank has in this step. Every rank calls it when it plans the step."""
        if self.refusal:
            return
        most = torch.tensor([tokens], dtype=torch.int32, device="npu")
        dist.all_reduce(most, op=dist.ReduceOp.MAX, group=self._group)
        self._batch = int(most.item())

    @property
    def fits(self) -> bool:
        """Whether the kernels take the step that was planned last."""
        return not self.refusal and self._batch <= self._most

    def run(self, x: Tensor, weights: Tensor, ids: Tensor, pair: experts.ExpertPair) -> Tensor:
        """This rank's summand of the weighted sums `[tokens, hidden]`; ids `[tokens, top_k]` count all experts."""
        place, limits, tokens = self._placement, self._limits, len(x)
        dealt = slice(place.tp_rank, None, place.tp)
        weights, ids, awake = weights[:, dealt].float().contiguous(), ids[:, dealt].contiguous(), None
        if not tokens:  # the kernels want a token: one that takes no part
            x = x.new_zeros((1, self._hidden))
            ids = torch.arange(self._choices, dtype=torch.int32, device=x.device)[None]
            weights, awake = torch.zeros(ids.shape, device=x.device), torch.zeros(1, dtype=torch.bool, device=x.device)
        quantised = pair.gate_up.takes_integers
        where = {
            "group_ep": self._name, "ep_world_size": place.world, "ep_rank_id": place.rank,
            "moe_expert_num": self._experts, "x_active_mask": awake, "comm_alg": limits.algorithm,
            "global_bs": place.world * max(self._batch, 1),
        }  # fmt: skip
        rows, scale, assist, counts, received, _, row_weights = torch_npu.npu_moe_distribute_dispatch_v2(
            x, ids, expert_scales=weights if limits.sends_weights else None,
            quant_mode=PER_TOKEN if quantised else NO_QUANT, expert_token_nums_type=COUNTS, **where,
        )  # fmt: skip
        out = experts.multiply(rows, scale if quantised else None, counts, pair)
        total: Tensor = torch_npu.npu_moe_distribute_combine_v2(
            out, ids, assist, received, weights, expand_scales=row_weights if limits.sends_weights else None, **where
        )
        return total[:tokens]
