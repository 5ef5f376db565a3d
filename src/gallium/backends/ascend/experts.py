"""Routing and routed experts on Ascend: gating, tokens in their experts' order, grouped products, and the way back.

Grouped matrices `[experts, in, out]` know their kernel, as the matrices of `linear.py` do. Nothing here waits for the
device: how many rows each expert has stays there.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
import torch_npu
from torch import Tensor

from gallium.backends.ascend.linear import Form, Setup, form_of, nz
from gallium.backends.ascend.weights import (
    INT4_GROUP,
    INT4_PER_WORD,
    eight_times_sums,
    float_bits,
    int4_rows,
    int8_rows,
    integer_rows,
    packed4,
)
from gallium.backends.torch.packing import empty
from gallium.backends.torch.packing import stacked as stacked_rows
from gallium.errors import BackendError
from gallium.ops.handles import MoeSpec, Role, Weight

BY_ROWS, ONE_RESULT = 0, 3  # group_type, split_item of npu_grouped_matmul
ENDS, COUNTS = 0, 1  # its group_list_type
SOFTMAX, SIGMOID = 0, 1  # norm_type of npu_moe_gating_top_k
BY_BEST_TWO = 1  # group_select_mode
MOST_EXPERTS, SMALLEST_GROUP, GROUP_ALIGNMENT = 2048, 3, 32  # of npu_moe_gating_top_k (op-plugin's page)
KEPT_FLOAT, QUANTISED = -1, 1  # quant_mode of npu_moe_init_routing_v2
BY_ROW_WITH_DROPPED = 3  # drop_pad_mode of npu_moe_finalize_routing: an index of -1 adds nothing
SWIGLU_MULTIPLE, WIDEST_SWIGLU = 64, 10_496  # of the width of npu_dequant_swiglu_quant with groups


# -- routing ------------------------------------------------------------------------
def gating_refusal(spec: MoeSpec) -> str:
    """Why npu_moe_gating_top_k cannot route for this model; empty if it can.

    Its order among equal scores is a stable sort's (op-plugin's page has the calculation): the lower id, as defined.
    """
    group = spec.num_experts // spec.num_groups
    aligned = -(-group // GROUP_ALIGNMENT) * GROUP_ALIGNMENT
    if spec.scoring == "sigmoid" and not spec.renormalize:
        return "it always renormalises the weights of a sigmoid"
    if group < SMALLEST_GROUP or aligned * spec.num_groups > MOST_EXPERTS:
        return f"{spec.num_groups} groups of {group} experts are beyond its limits"
    if spec.top_k > group * spec.top_groups:
        return f"top_k {spec.top_k} is more than the experts of {spec.top_groups} groups"
    return ""


def route(logits: Tensor, bias: Tensor, spec: MoeSpec) -> tuple[Tensor, Tensor]:
    """(weights float32, ids int32) of the chosen experts, best first, in one kernel."""
    weights, ids, _ = torch_npu.npu_moe_gating_top_k(
        logits, spec.top_k, bias=bias, k_group=spec.top_groups, group_count=spec.num_groups,
        group_select_mode=BY_BEST_TWO, renorm=0, norm_type=SIGMOID if spec.scoring == "sigmoid" else SOFTMAX,
        routed_scaling_factor=spec.routed_scale, eps=1e-20,
    )  # fmt: skip
    if spec.scoring == "softmax" and spec.renormalize:
        weights = weights / weights.sum(1, keepdim=True) * spec.routed_scale
    return weights, ids


# -- grouped matrices -----------------------------------------------------------------
class Grouped(ABC):
    """One matrix per expert: rows in the experts' order -> products, each with its expert's matrix."""

    takes_integers = False  # whether rows come as int8 with a scale each

    @abstractmethod
    def __call__(self, rows: Tensor, row_scale: Tensor | None, counts: Tensor) -> Tensor:
        """`rows [n, in]`, of which the first counts[0] go to expert 0 and so on; rows behind them stay undefined."""

    @property
    @abstractmethod
    def tensors(self) -> tuple[Tensor, ...]:
        """All that is stored."""

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors, without the padding of NZ."""
        return sum(part.nbytes for part in self.tensors)


def grouped(rows: Tensor, weight: Tensor, counts: Tensor, **how: object) -> Tensor:
    """npu_grouped_matmul of rows in groups, one tensor in and one out.

    The function does not take a single count (op-plugin's page); where it ends is the same number.
    """
    kind = COUNTS if len(counts) > 1 else ENDS
    result: Tensor = torch_npu.npu_grouped_matmul(
        [rows], [weight], group_list=counts, group_list_type=kind, split_item=ONE_RESULT, group_type=BY_ROWS, **how
    )[0]
    return result


def integers_of(rows: Tensor, row_scale: Tensor | None) -> tuple[Tensor, Tensor]:
    """Rows as int8 and their scales; measured, if they are not quantised yet."""
    if row_scale is not None:
        return rows, row_scale
    codes, scale = torch_npu.npu_dynamic_quant(rows)
    return codes, scale


@dataclass(frozen=True)
class FloatGroups(Grouped):
    """Weights in the type of the activations."""

    weight: Tensor  # [experts, in, out]

    def __call__(self, rows: Tensor, row_scale: Tensor | None, counts: Tensor) -> Tensor:
        """One grouped product."""
        return grouped(rows, self.weight, counts)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The weight."""
        return (self.weight,)


@dataclass(frozen=True)
class Int8Groups(Grouped):
    """W8A8: codes with a scale per expert and column, rows with a scale each.

    With a bfloat16 result npu_grouped_matmul wants the scales in bfloat16 too (op-plugin's page, table 2), while
    npu_dequant_swiglu_quant takes them in float32: both are kept.
    """

    codes: Tensor  # [experts, in, out]
    scale: Tensor  # [experts, out], float32
    rounded: Tensor  # the same in the type of the result, or float32 for float16
    dtype: torch.dtype
    takes_integers = True

    def __call__(self, rows: Tensor, row_scale: Tensor | None, counts: Tensor) -> Tensor:
        """One grouped product."""
        codes, scale = integers_of(rows, row_scale)
        return grouped(
            codes, self.codes, counts, scale=[self.rounded], per_token_scale=[scale], output_dtype=self.dtype
        )

    def sums(self, rows: Tensor, counts: Tensor) -> Tensor:
        """The int32 sums alone."""
        return grouped(rows, self.codes, counts, output_dtype=torch.int32)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Codes and scales."""
        return self.codes, self.scale, self.rounded


@dataclass(frozen=True)
class Int4Groups(Grouped):
    """W4A16: `(code + offset) * scale` per expert, column and group of 32 rows."""

    words: Tensor  # [experts, in, out / 8]
    scale: Tensor  # [experts, groups, out], of the activations' type
    offset: Tensor

    def __call__(self, rows: Tensor, row_scale: Tensor | None, counts: Tensor) -> Tensor:
        """The weights become floats inside the kernel."""
        return grouped(rows, self.words, counts, antiquant_scale=[self.scale], antiquant_offset=[self.offset])

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Codes, scales and offsets."""
        return self.words, self.scale, self.offset


@dataclass(frozen=True)
class EightByFourGroups(Grouped):
    """W4A8, see `linear.EightByFour`."""

    words: Tensor  # [experts, in, out / 8]
    scale: Tensor  # [experts, groups, out] or [experts, out], int64 holding the bits of a float32
    shift: Tensor  # [experts, out], float32
    dtype: torch.dtype
    takes_integers = True

    def __call__(self, rows: Tensor, row_scale: Tensor | None, counts: Tensor) -> Tensor:
        """The shift goes in as a bias, before the rows' scales."""
        codes, scale = integers_of(rows, row_scale)
        return grouped(
            codes, self.words, counts, scale=[self.scale], bias=[self.shift], per_token_scale=[scale],
            output_dtype=self.dtype,
        )  # fmt: skip

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Codes, scales and shifts."""
        return self.words, self.scale, self.shift


# -- packing ----------------------------------------------------------------------
@dataclass(frozen=True)
class ExpertPair:
    """The two grouped matrices of one layer's experts."""

    gate_up: Grouped  # [experts, hidden, 2 * width]
    down: Grouped  # [experts, width, hidden]

    @property
    def nbytes(self) -> int:
        """Of both."""
        return self.gate_up.nbytes + self.down.nbytes


def pack(
    gate_up: Sequence[Sequence[Weight]], down: Sequence[Weight], roles: tuple[Role, Role], setup: Setup
) -> ExpertPair:
    """All experts that this rank holds. Raises BackendError for experts of different shapes or kinds."""
    if not down or len(gate_up) != len(down):
        raise BackendError(f"as many gate_up as down projections are needed, not {len(gate_up)} and {len(down)}.")
    return ExpertPair(pack_groups(gate_up, roles[0], setup), pack_groups([[part] for part in down], roles[1], setup))


def pack_groups(experts: Sequence[Sequence[Weight]], role: Role, setup: Setup) -> Grouped:
    """One matrix per expert, its output rows those of the expert's parts in order."""
    shapes = {(sum(part.shape[0] for part in parts), parts[0].shape[1]) for parts in experts}
    if len(shapes) != 1:
        raise BackendError(f"all experts of a layer must have one shape, not {sorted(shapes)}.")
    ((height, width),) = shapes
    forms = {form_of(part, height, role, setup) for parts in experts for part in parts}
    if len(forms) != 1:
        raise BackendError(
            f"{experts[0][0].name} and its like: the experts of a layer are quantised in several ways, "
            f"{', '.join(sorted(map(str, forms)))}."
        )
    (form,) = forms
    return PACKERS[_kind(form, height, width, experts[0][0])](experts, setup)


def _kind(form: Form, height: int, width: int, example: Weight) -> str:
    if form.kind == "int4" and (height % INT4_PER_WORD or width % INT4_GROUP):
        return "int8"  # experts are not filled up: that would cost each of their products a copy
    if form.kind == "static":
        raise BackendError(f"{example.name}: experts with static activations are not supported on this backend.")
    if form.kind == "dynamic" and form.bits == 4 and height % INT4_PER_WORD == 0:
        return "grouped"
    return form.kind


def _float(experts: Sequence[Sequence[Weight]], setup: Setup) -> Grouped:
    (weight,) = stacked(len(experts), ((stacked_rows(e, setup.dtype, setup.device).t(),) for e in experts))
    return FloatGroups(nz(weight, setup))


def _int8(experts: Sequence[Sequence[Weight]], setup: Setup) -> Grouped:
    return _in_int8(len(experts), (int8_rows(e, setup.device, setup.dtype) for e in experts), setup)


def _dynamic(experts: Sequence[Sequence[Weight]], setup: Setup) -> Grouped:
    return _in_int8(len(experts), (integer_rows(e, setup.device) for e in experts), setup)


def _in_int8(count: int, pieces: Iterable[tuple[Tensor, Tensor]], setup: Setup) -> Grouped:
    codes, scale = stacked(count, ((codes.t(), scale[:, 0]) for codes, scale in pieces))
    rounded = scale if setup.dtype == torch.float16 else scale.to(setup.dtype)
    return Int8Groups(nz(codes, setup), scale, rounded, setup.dtype)


def _int4(experts: Sequence[Sequence[Weight]], setup: Setup) -> Grouped:
    words, scale, offset = stacked(len(experts), (int4_rows(e, setup.device, setup.dtype) for e in experts))
    if scale.shape[1] == 1:
        scale, offset = scale.squeeze(1), offset.squeeze(1)
    return Int4Groups(words, scale, offset)


def _eight_by_four(experts: Sequence[Sequence[Weight]], setup: Setup) -> Grouped:
    pieces = (integer_rows(e, setup.device) for e in experts)
    words, scale, shift = stacked(
        len(experts), ((packed4(c), float_bits(s.t()), eight_times_sums(c, s)) for c, s in pieces)
    )
    return EightByFourGroups(words, scale.squeeze(1) if scale.shape[1] == 1 else scale, shift, setup.dtype)


PACKERS: dict[str, Callable[[Sequence[Sequence[Weight]], Setup], Grouped]] = {
    "float": _float, "int8": _int8, "dynamic": _dynamic, "int4": _int4, "grouped": _eight_by_four,
}  # fmt: skip


def stacked(count: int, pieces: Iterable[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """Piece after piece into tensors made for all of them, so that no expert is there twice for long."""
    whole: tuple[Tensor, ...] = ()
    for index, piece in enumerate(pieces):
        if not whole:
            whole = tuple(empty((count, *part.shape), part.dtype, part.device) for part in piece)
        for target, part in zip(whole, piece, strict=True):
            target[index] = part
    return whole


# -- running ------------------------------------------------------------------------
def run(x: Tensor, weights: Tensor, ids: Tensor, pair: ExpertPair, first: int, held: int, total: int) -> Tensor:
    """The weighted sum of the outputs of the chosen experts among `first .. first + held`, of `total` in the model.

    x `[tokens, hidden]` in the type of the activations; a token that chose none of them gets zeros.
    """
    if not x.shape[0]:
        return x
    rows, places, counts, row_scale = torch_npu.npu_moe_init_routing_v2(
        x, ids, active_num=ids.numel(), expert_num=total, expert_tokens_num_type=COUNTS, expert_tokens_num_flag=True,
        quant_mode=QUANTISED if pair.gate_up.takes_integers else KEPT_FLOAT,
        active_expert_range=[first, first + held],  # never left out: torch_npu keeps the first call's default for good
    )  # fmt: skip
    out = multiply(rows, row_scale if pair.gate_up.takes_integers else None, counts, pair)
    result: Tensor = torch_npu.npu_moe_finalize_routing(
        out.unsqueeze(0), None, None, None, weights.to(x.dtype), places, None, drop_pad_mode=BY_ROW_WITH_DROPPED
    )
    return result


def alone(rows: Tensor, ids: Tensor, pair: ExpertPair, held: int) -> Tensor:
    """`[rows, 1, hidden]`: each row's product with its own expert, of the `held` ones here; ids `[rows, 1]`."""
    ones = torch.ones(ids.shape, dtype=rows.dtype, device=rows.device)
    return run(rows, ones, ids.int(), pair, 0, held, held).unsqueeze(1)


def multiply(rows: Tensor, row_scale: Tensor | None, counts: Tensor, pair: ExpertPair) -> Tensor:
    """`down(swiglu(gate_up(row)))` of rows that are in their experts' order."""
    up, down = pair.gate_up, pair.down
    if fuses(up, down):
        assert isinstance(up, Int8Groups)
        codes, scale = integers_of(rows, row_scale)
        hidden, hidden_scale = torch_npu.npu_dequant_swiglu_quant(
            up.sums(codes, counts), weight_scale=up.scale, activation_scale=scale.unsqueeze(1), group_index=counts,
            activate_left=True, quant_mode=1,
        )  # fmt: skip
        return down(hidden, hidden_scale, counts)
    return down(torch_npu.npu_swiglu(up(rows, row_scale, counts)), None, counts)


def fuses(up: Grouped, down: Grouped) -> bool:
    """Whether scaling, gate and the next quantisation are one kernel here."""
    if not (isinstance(up, Int8Groups) and isinstance(down, Int8Groups)):
        return False
    width = up.scale.shape[1] // 2
    return width % SWIGLU_MULTIPLE == 0 and width <= WIDEST_SWIGLU
