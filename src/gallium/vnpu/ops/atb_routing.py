"""ATB's choice of experts: the best groups, and the best experts of the best groups with their weights.

Meaning of the arguments: Ascend/op-plugin 517f2e7, op_plugin/third_party/atb/inc/infer_op_params.h (GroupTopkParam) and
op_plugin/python/atb/_atb_api_docs.py (npu_fused_add_topk_div, "as DeepSeek-V3 does"); that scores of other groups
become 0: vllm-ascend, ops/fused_moe/router/grouped_topk_router.py. Ties go to the lower number.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gallium.vnpu.checks import FLOATS, HALVES, check_family
from gallium.vnpu.ops.atb_attention import A2_AND_A3
from gallium.vnpu.registry import Illegal, Unsupported, only, op, refuse_given
from gallium.vnpu.writing import write

LARGEST, SUM_OF_LARGEST = 0, 1  # group_multi_flag
SIGMOID = 8


def keep_best_groups(scores: Tensor, groups: int, kept: int, n: int) -> Tensor:
    """`[tokens, experts]` scores with 0 in all groups but the `kept` best, by the sum of a group's `n` largest."""
    grouped = scores.view(scores.shape[0], groups, scores.shape[1] // groups)
    worth = grouped.float().topk(n, dim=-1).values.sum(-1)
    best = worth.argsort(dim=-1, descending=True, stable=True)[:, :kept]
    hidden = torch.ones_like(worth, dtype=torch.bool).scatter_(1, best, False)
    return grouped.masked_fill(hidden.unsqueeze(-1), 0).flatten(1)


@op("atb.GroupTopk", unused={"positions": "the numbers 0 to 1023, which the kernel sorts with"})
def group_topk(
    scores: Tensor, positions: Tensor, group_num: int, k: int, group_multi_flag: int, n: int, out: Tensor
) -> None:
    """Set the scores of all but the k best groups to 0. A group is worth its largest score, or its n largest."""
    only("group_multi_flag", group_multi_flag, LARGEST, SUM_OF_LARGEST)
    if scores.dim() != 2 or scores.dtype not in HALVES:
        raise Illegal("self", scores, "[tokens, experts] of float16 or bfloat16")
    if not 1 <= group_num <= scores.shape[1] or scores.shape[1] % group_num:
        raise Illegal("group_num", group_num, f"a divisor of the number of experts, {scores.shape[1]}")
    if not 1 <= k <= group_num:
        raise Illegal("k", k, f"1 to group_num, {group_num}")
    if not 1 <= n <= scores.shape[1] // group_num:
        raise Illegal("n", n, f"1 to the experts of a group, {scores.shape[1] // group_num}")
    write(out, keep_best_groups(scores, group_num, k, n if group_multi_flag == SUM_OF_LARGEST else 1))


@op("atb.FusedAddTopkDiv")
def fused_add_topk_div(
    x: Tensor,
    add_num: Tensor,
    mapping_num: Tensor | None,
    mapping_table: Tensor | None,
    group_num: int,
    group_topk: int,
    n: int,
    k: int,
    activation_type: int,
    is_norm: bool,
    scale: float,
    enable_expert_mapping: bool,
    y: Tensor,
    indices: Tensor,
) -> None:
    """The k best experts by sigmoid(x) + add_num in the best groups; their weights are sigmoid(x), perhaps normed."""
    check_family("npu_fused_add_topk_div", *A2_AND_A3)
    only("activation_type", activation_type, SIGMOID)
    # A logical expert is chosen "pseudo-randomly", by a rule that is not documented.
    only("enable_expert_mapping", enable_expert_mapping, False)
    refuse_given(mapping_num=mapping_num, mapping_table=mapping_table)
    if not is_norm and scale != 1:
        raise Unsupported("scale", scale, "1 where is_norm is False: it is documented as a factor after the norm")
    if x.dim() != 2 or x.dtype not in FLOATS or add_num.shape != x.shape[1:] or add_num.dtype != x.dtype:
        raise Illegal(
            "x", x, "[tokens, experts] of float16, bfloat16 or float32, and add_num [experts] of the same type"
        )
    _check_groups(x.shape[1], group_num, group_topk, n, k)
    for name, out, dtype in (("y", y, torch.float32), ("indices", indices, torch.int32)):
        if out.shape != (x.shape[0], k) or out.dtype != dtype:
            raise Illegal(name, out, f"{[x.shape[0], k]} of {dtype}")
    weights = x.float().sigmoid()
    chosen = keep_best_groups(weights + add_num.float(), group_num, group_topk, n)
    best = chosen.argsort(dim=-1, descending=True, stable=True)[:, :k]
    picked = weights.gather(1, best)
    write(y, picked / picked.sum(-1, keepdim=True) * scale if is_norm else picked)
    write(indices, best)


def _check_groups(experts: int, group_num: int, group_topk: int, n: int, k: int) -> None:
    if group_num < 1 or experts % group_num or experts > group_num * 32 or (experts >= 32 and group_num != 8):
        raise Illegal(
            "group_num", group_num, f"a divisor of the {experts} experts, 8 from 32 experts on, with groups up to 32"
        )
    if not 1 <= group_topk <= group_num:
        raise Illegal("group_topk", group_topk, f"1 to group_num, {group_num}")
    if not 1 <= n <= experts // group_num:
        raise Illegal("n", n, f"1 to the experts of a group, {experts // group_num}")
    if not 1 <= k <= experts:
        raise Illegal("k", k, f"1 to the number of experts, {experts}")
