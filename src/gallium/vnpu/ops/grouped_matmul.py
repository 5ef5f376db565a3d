"""One product per group of rows or of the inner dimension: GroupedMatmul."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as nn
from torch import Tensor

from gallium.vnpu import soc
from gallium.vnpu.checks import check_choice
from gallium.vnpu.named import register_named
from gallium.vnpu.ops.weight_quant_matmul import restored_weight
from gallium.vnpu.quantisation import (
    Matrix,
    dequantised,
    group_ends,
    grouped_product,
    holds_int4,
    integer_product,
    integers,
    msd_product,
    write_quantised,
)
from gallium.vnpu.refusals import Illegal, Unsupported, refuse_given
from gallium.vnpu.registry import op
from gallium.vnpu.tensors import Blocked, Packed4, dense
from gallium.vnpu.writing import into, write

NO_GROUPS, ROWS, INNER = -1, 0, 2  # group_type
COUNTS = 1  # group_list_type
SEPARATE, JOINED = (0, 1), (2, 3)  # split_item: an output for each weight, or one for all
PAIRS = 2  # group_list_type
MOST_TENSORS, MOST_GROUPS = 128, 1024
TUNING = {"tuning_config": "is a hint about how many tokens to expect, which makes nothing but speed"}

ACTIVATIONS: dict[int, Callable[[Tensor], Tensor]] = {
    0: lambda x: x,
    1: torch.relu,
    2: lambda x: nn.gelu(x, approximate="tanh"),
    4: lambda x: x * torch.sigmoid(1.702 * x),  # fast GELU
    5: nn.silu,
}

Many = Sequence[Tensor | None]


@op("GroupedMatmul")
def grouped_matmul(
    x: Sequence[Matrix],
    weight: Sequence[Matrix],
    bias: Many,
    scale: Many,
    offset: Many,
    antiquant_scale: Many,
    antiquant_offset: Many,
    group_list: tuple[int, ...] | None,
    split_item: int,
    result: Sequence[Tensor],
) -> None:
    """The form whose group_list is on the host: docs of op-plugin, torch_npu.npu_grouped_matmul."""
    refuse_given(offset=offset)
    parts = _Parts(bias, scale, antiquant_scale, antiquant_offset, ())
    ends = torch.tensor(group_list) if group_list else None
    _run(x, weight, parts, ends, split_item, ROWS if group_list else NO_GROUPS, 0, 0, result)


class _Parts:
    """The optional operands, each for one group at a time."""

    def __init__(
        self, bias: Many, scale: Many, antiquant_scale: Many, antiquant_offset: Many, per_token: Many, size: int = 0
    ) -> None:
        self.bias, self.scale, self.per_token = bias, scale, per_token
        self.antiquant_scale, self.antiquant_offset, self.group_size = antiquant_scale, antiquant_offset, size
        self.eight_by_four = False

    def quantised(self) -> bool:
        return bool(self.scale)


def _of(many: Many, group: int, groups: int) -> Tensor | None:
    """The group's operand: entry `group` of a list, or row `group` of the only entry."""
    if not many:
        return None
    if len(many) == groups and groups > 1:
        return many[group]
    only_one = many[0]
    if only_one is None or (groups == 1 and only_one.dim() < 2):
        return only_one
    return only_one[group]


def _run(
    x: Sequence[Matrix],
    weight: Sequence[Matrix],
    parts: _Parts,
    group_list: Tensor | None,
    split_item: int,
    group_type: int,
    group_list_type: int,
    act_type: int,
    result: Sequence[Tensor],
) -> None:
    _check(x, weight, split_item, group_type, group_list_type, act_type, parts)
    if group_type == INNER:
        _inner(x, weight, parts, group_list, group_list_type, result)
        return
    parts.eight_by_four = bool(parts.scale) and holds_int4(weight[0]) and not holds_int4(x[0])
    weights = _weights(weight)
    if group_type == NO_GROUPS:
        sources = [(i, slice(None), values) for i, values in enumerate(x)]
    else:
        sources = _by_rows(x, group_list, group_list_type, len(weights))
    written = 0
    for position, (group, rows, values) in enumerate(sources):
        if split_item in SEPARATE:
            out = result[position]
        else:
            start = rows.start if len(x) == 1 else written
            count = values.shape[0] if rows.stop is None else rows.stop - rows.start
            out = result[0][start : start + count]
            written += count
        if out.numel():
            _group_into(out, values, rows, weights[group], parts, group, len(weights), act_type)


def _check(
    x: Sequence[Matrix],
    weight: Sequence[Matrix],
    split_item: int,
    group_type: int,
    group_list_type: int,
    act_type: int,
    parts: _Parts,
) -> None:
    check_choice("split_item", split_item, (*SEPARATE, *JOINED))
    check_choice("group_type", group_type, (NO_GROUPS, ROWS, INNER))
    check_choice("act_type", act_type, ACTIVATIONS, "0, 1, 2, 4 or 5")
    if max(len(x), len(weight)) > MOST_TENSORS:
        raise Illegal("the length of x or weight", max(len(x), len(weight)), f"at most {MOST_TENSORS}")
    if act_type and not parts.per_token:
        raise Illegal("act_type", act_type, "0 unless the rows have their own scales")
    if group_type == INNER and (parts.scale or parts.antiquant_scale):
        raise Illegal("group_type", group_type, "-1 or 0 where something is quantised")
    if group_list_type == PAIRS and not parts.quantised():
        raise Illegal("group_list_type", group_list_type, "0 or 1 unless x and weight are int8")
    plain = group_type == ROWS and not (act_type or parts.scale or parts.antiquant_scale or group_list_type == PAIRS)
    if soc.current().family in ("310P", "910") and not plain:
        raise Illegal("group_type", group_type, f"0, and nothing quantised, on {soc.current().family}")


def _weights(weight: Sequence[Matrix]) -> list[Tensor]:
    """One matrix per group. A list of 8-bit matrices stays so; integers of 4 bits are unpacked to 8."""
    whole = [w if isinstance(w, Tensor) and w.dtype != torch.int32 else integers(w) for w in weight]
    return list(whole[0].unbind(0)) if len(whole) == 1 and whole[0].dim() == 3 else whole


def _by_rows(
    x: Sequence[Matrix], group_list: Tensor | None, list_type: int, groups: int
) -> list[tuple[int, slice, Matrix]]:
    """(group, its rows, the tensor they are in)."""
    if len(x) > 1:
        if len(x) != groups:
            raise Illegal("the length of x", len(x), f"that of weight, {groups}")
        return [(i, slice(0, values.shape[0]), values) for i, values in enumerate(x)]
    if group_list is None:
        raise Illegal("group_list", None, "given where x is one tensor")
    if groups > MOST_GROUPS:
        raise Illegal("the number of groups", groups, f"at most {MOST_GROUPS}")
    if list_type == COUNTS and len(group_list) == 1:
        raise Illegal("the length of group_list", 1, "more where group_list_type is 1")
    rows = x[0].shape[0]
    if list_type == PAIRS:
        pairs = group_list.tolist()
        ends = torch.tensor([size for _, size in pairs]).cumsum(0).tolist()
        order = [int(group) for group, _ in pairs]
        if any(not 0 <= group < groups for group in order) or (ends and ends[-1] > rows):
            raise Illegal("group_list", pairs, f"groups below {groups}, sizes of at most {rows} in all")
    else:
        ends, order = group_ends(group_list, list_type, rows, groups), list(range(groups))
    starts = [0, *ends[:-1]]
    return [(group, slice(a, b), x[0]) for group, a, b in zip(order, starts, ends, strict=True)]


def _group_into(
    out: Tensor,
    values: Matrix,
    rows: slice,
    weight: Tensor,
    parts: _Parts,
    group: int,
    groups: int,
    act_type: int,
) -> None:
    """Write one group's rows times its weight."""
    bias = _of(parts.bias, group, groups)
    if parts.scale:
        per_row = _rows_of_scale(parts.per_token, rows, group)
        product = _quantised(integers(values)[rows], weight, parts, group, groups, per_row, bias)
        _store(out, ACTIVATIONS[act_type](product))
        return
    part = dense(values)[rows]
    scale = _of(parts.antiquant_scale, group, groups)
    if scale is not None:
        offset = _of(parts.antiquant_offset, group, groups)
        size = weight.shape[0] // scale.shape[0] if scale.dim() == 2 and scale.shape[0] > 1 else 0
        product = part.float() @ restored_weight(weight, scale, offset, size, part)
        write(out, product if bias is None else product + bias.float())
    elif part.dtype == weight.dtype == torch.int8 and out.dtype == torch.int32:
        product = integer_product(part, weight)
        write(out, product if bias is None else product + bias)
    elif part.dtype != weight.dtype or not part.is_floating_point():
        raise Unsupported("the dtypes of x and weight", (part.dtype, weight.dtype), "the same float, or scales")
    elif bias is not None:
        write(out, part.float() @ weight.float() + bias.float())
    elif part.dim() == 2 and part.dtype == out.dtype:
        into(torch.mm, out, part, weight)
    else:
        write(out, part @ weight)


def _rows_of_scale(per_token: Many, rows: slice, group: int) -> Tensor | None:
    if not per_token:
        return None
    scale = per_token[group if len(per_token) > 1 else 0]
    return None if scale is None else scale.reshape(-1)[rows]


def _quantised(
    x: Tensor, weight: Tensor, parts: _Parts, group: int, groups: int, per_row: Tensor | None, bias: Tensor | None
) -> Tensor:
    scale = _of(parts.scale, group, groups)
    assert scale is not None
    if scale.dim() == 2 and scale.shape[0] == 1 and not parts.group_size:
        scale = scale[0]
    in_halves = parts.eight_by_four and bias is not None
    if scale.dim() < 2 and not in_halves:
        scaled, offset = dequantised(integer_product(x, weight), scale, per_row, bias)
        return scaled if offset is None else scaled + offset
    scale = scale if scale.dim() == 2 else scale.unsqueeze(0)
    if parts.group_size and parts.group_size * scale.shape[0] != x.shape[-1]:
        raise Illegal("the number of groups of scale", scale.shape[0], f"{x.shape[-1] // parts.group_size}")
    product = grouped_product(x, weight, scale, None) if bias is None else msd_product(x, weight, scale, bias)
    return product if per_row is None else product * per_row.float().reshape(-1, 1)


def _inner(
    x: Sequence[Matrix],
    weight: Sequence[Matrix],
    parts: _Parts,
    group_list: Tensor | None,
    list_type: int,
    result: Sequence[Tensor],
) -> None:
    """Groups of the inner dimension: x [m, k], weight [k, n], a result [m, n] for each group."""
    if parts.bias:
        raise Unsupported("bias", "given", "None where group_type is 2")
    if group_list is None or len(x) != 1 or isinstance(x[0], Blocked | Packed4):
        raise Illegal("x and group_list", len(x), "one tensor and a list where group_type is 2")
    left, right = dense(x[0]), [dense(w) for w in weight]
    start = 0
    for group, end in enumerate(group_ends(group_list, list_type, left.shape[1], len(group_list))):
        block = right[0][start:end] if len(right) == 1 else right[group]
        _store(result[0][group] if len(result) == 1 else result[group], left[:, start:end] @ block)
        start = end


def _store(out: Tensor, value: Tensor) -> None:
    if out.dtype == torch.int8:
        write_quantised(out, value)
    else:
        write(out, value)


@dataclass(frozen=True, kw_only=True)
class GroupedMatmul:
    """Docs of op-plugin: torch_npu.npu_grouped_matmul. quant_per_group_size: 256 for int8 times int4, else 0."""

    x: Sequence[Matrix]
    weight: Sequence[Matrix]
    bias: Many
    scale: Many
    offset: Many
    antiquant_scale: Many
    antiquant_offset: Many
    per_token_scale: Many
    group_list: Tensor | None
    activation_input: Many
    activation_quant_scale: Many
    activation_quant_offset: Many
    split_item: int
    group_type: int
    group_list_type: int
    act_type: int
    tuning_config: tuple[int, ...] | None = None
    quant_per_group_size: int = 0
    result: Sequence[Tensor]
    act_out: Many
    dynamic_quant_scale_out: Many

    def run(self) -> None:
        """Compute and write all outputs."""
        refuse_given(offset=self.offset, activation_input=self.activation_input)
        refuse_given(
            activation_quant_scale=self.activation_quant_scale, activation_quant_offset=self.activation_quant_offset
        )
        refuse_given(act_out=self.act_out, dynamic_quant_scale_out=self.dynamic_quant_scale_out)
        parts = _Parts(
            self.bias, self.scale, self.antiquant_scale, self.antiquant_offset, self.per_token_scale,
            self.quant_per_group_size,
        )  # fmt: skip
        _run(
            self.x, self.weight, parts, self.group_list, self.split_item, self.group_type, self.group_list_type,
            self.act_type, self.result,
        )  # fmt: skip


register_named("GroupedMatmulV4", GroupedMatmul, cube=False)
for _name in ("GroupedMatmulV5", "GroupedMatmulWeightNz"):
    register_named(_name, GroupedMatmul, cube=False, unused=TUNING)
