"""A matrix per head on Ascend, for `head_linear`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch_npu
from torch import Tensor

from gallium.backends.ascend.linear import LONGEST_SIDE, Setup
from gallium.backends.torch.packing import stacked_each
from gallium.ops.handles import Weight

ALIGNMENT = 16  # of both sizes of a head's matrix, for npu_transpose_batchmatmul (op-plugin's page)


@dataclass(frozen=True)
class HeadMatrix:
    """A matrix per head, for one kernel that reads and writes heads as they lie, without a copy in another order."""

    weight: Tensor  # [heads, in, out]

    def __call__(self, x: Tensor) -> Tensor:
        """`[tokens, heads, in]` -> `[tokens, heads, out]`."""
        if not x.shape[0]:
            return x.new_empty((0, self.weight.shape[0], self.weight.shape[2]), dtype=self.weight.dtype)
        y: Tensor = torch_npu.npu_transpose_batchmatmul(
            x.to(self.weight.dtype), self.weight, perm_x1=[1, 0, 2], perm_x2=[0, 1, 2], perm_y=[1, 0, 2]
        )
        return y


def refusal(heads: Sequence[Weight], setup: Setup) -> str:
    """Why npu_transpose_batchmatmul does not take these heads; empty if it does."""
    height, width = heads[0].shape
    if not setup.chip.has("npu_transpose_batchmatmul"):
        return f"{setup.chip.name} has no npu_transpose_batchmatmul"
    if height % ALIGNMENT or width % ALIGNMENT:
        return f"heads of {width} by {height}; both must be multiples of {ALIGNMENT}"
    if max(len(heads) * width, height) > LONGEST_SIDE:
        return f"{len(heads)} heads of width {width} are more than {LONGEST_SIDE} together"
    return ""


def pack(heads: Sequence[Weight], setup: Setup) -> HeadMatrix:
    """Heads that `refusal` lets pass; they stay floats in every precision."""
    return HeadMatrix(stacked_each([[head] for head in heads], setup.dtype, setup.device).transpose(1, 2).contiguous())
