"""The feed-forward network of a transformer in one operator, plain or with experts, in three precisions."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as nn
from torch import Tensor

from gallium.vnpu.checks import HALVES, SINCE_910B, check_choice, check_dtype, check_family
from gallium.vnpu.quantisation import Matrix, integer_product, integers, unpacked_scale
from gallium.vnpu.refusals import Illegal, only, refuse_given
from gallium.vnpu.registry import op
from gallium.vnpu.writing import write

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": nn.gelu,
    "fastgelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": nn.relu,
    "silu": nn.silu,
}
MOST_EXPERTS = 256


@op("FFNV2", cube=True)
def ffn(
    x: Tensor,
    weight1: Matrix,
    weight2: Matrix,
    expert_tokens: tuple[int, ...] | None,
    bias1: Tensor | None,
    bias2: Tensor | None,
    scale: Tensor | None,
    offset: Tensor | None,
    deq_scale1: Tensor | None,
    deq_scale2: Tensor | None,
    antiquant_scale1: Tensor | None,
    antiquant_scale2: Tensor | None,
    antiquant_offset1: Tensor | None,
    antiquant_offset2: Tensor | None,
    activation: str,
    inner_precise: int,
    tokens_index_flag: bool,
    out: Tensor,
) -> None:
    """y = activation(x W1 + b1) W2 + b2 (docs of op-plugin: torch_npu.npu_ffn); expert_tokens are counts or ends.

    The gated activations are refused: no public source says which half they activate.
    """
    check_family("FFNV2", *SINCE_910B)
    only("activation", activation, *ACTIVATIONS)
    check_choice("inner_precise", inner_precise, (0, 1))
    rows = x.reshape(-1, x.shape[-1])
    first, second = integers(weight1), integers(weight2)
    given = bias1, bias2, scale, offset, deq_scale1, deq_scale2
    antiquant = antiquant_scale1, antiquant_scale2, antiquant_offset1, antiquant_offset2
    names = dict(zip(_NAMES, (*given, *antiquant), strict=True))
    if x.dtype == torch.int8:
        refuse_given(**{name: t for name, t in names.items() if name.startswith("antiquant")})
        result = _quantised
    elif first.dtype == torch.int8:
        refuse_given(scale=scale, offset=offset, deq_scale1=deq_scale1, deq_scale2=deq_scale2)
        result = _antiquantised
    else:
        check_dtype("x", x, HALVES)
        if x.dtype == torch.bfloat16:
            check_choice("inner_precise", inner_precise, (0,), "0 for bfloat16")
        refuse_given(**{name: t for name, t in names.items() if "bias" not in name})
        result = _plain
    parts = []
    for expert, start, end in _experts(expert_tokens, tokens_index_flag, first, len(rows)):
        mine = {name: _of_expert(t, expert) for name, t in names.items()}
        weights = first if expert is None else first[expert], second if expert is None else second[expert]
        parts.append(result(rows[start:end], *weights, ACTIVATIONS[activation], mine))
    write(out, torch.cat(parts).view(out.shape))


_NAMES = (
    "bias1",
    "bias2",
    "scale",
    "offset",
    "deq_scale1",
    "deq_scale2",
    "antiquant_scale1",
    "antiquant_scale2",
    "antiquant_offset1",
    "antiquant_offset2",
)
Given = dict[str, Tensor | None]
Activation = Callable[[Tensor], Tensor]


def _plain(x: Tensor, first: Tensor, second: Tensor, activation: Activation, given: Given) -> Tensor:
    hidden = activation(_plus(x.float() @ first.float(), given["bias1"]))
    return _plus(hidden @ second.float(), given["bias2"])


def _antiquantised(x: Tensor, first: Tensor, second: Tensor, activation: Activation, given: Given) -> Tensor:
    """Weights of int8: (W + offset) * scale, each per column."""
    first_wide, second_wide = (_wide_weight(weight, n, given) for weight, n in ((first, 1), (second, 2)))
    return _plain(x, first_wide, second_wide, activation, given)


def _wide_weight(weight: Tensor, number: int, given: Given) -> Tensor:
    factor = given[f"antiquant_scale{number}"]
    if factor is None:
        raise Illegal(f"antiquant_scale{number}", None, "given, with weights of int8 and x in floats")
    return _plus(weight.float(), given[f"antiquant_offset{number}"]) * factor.float()


def _quantised(x: Tensor, first: Tensor, second: Tensor, activation: Activation, given: Given) -> Tensor:
    """x and weights of int8: ((act((x W1 + b1) * deq1) * scale + offset) W2 + b2) * deq2."""
    factors = [given[name] for name in ("deq_scale1", "scale", "offset", "deq_scale2")]
    missing = [factor is None for factor in factors]
    if any(missing):
        raise Illegal("deq_scale1, scale, offset and deq_scale2", missing, "given, with an x of int8")
    deq1, scale, offset, deq2 = (unpacked_scale(factor)[0] for factor in factors if factor is not None)
    hidden = activation(_plus(integer_product(x, first), given["bias1"]).float() * deq1)
    again = (hidden * scale + offset).round().clamp(-128, 127).to(torch.int8)
    return _plus(integer_product(again, second), given["bias2"]).float() * deq2


def _plus(x: Tensor, term: Tensor | None) -> Tensor:
    return x if term is None else x + (term if term.dtype == torch.int32 else term.float())


def _of_expert(tensor: Tensor | None, expert: int | None) -> Tensor | None:
    return tensor if tensor is None or expert is None else tensor[expert]


def _experts(
    tokens: tuple[int, ...] | None, are_ends: bool, weight: Tensor, rows: int
) -> list[tuple[int | None, int, int]]:
    """Each expert with the rows it has; None for a network without experts."""
    if not tokens:
        return [(None, 0, rows)]
    ends = list(tokens) if are_ends else [sum(tokens[: n + 1]) for n in range(len(tokens))]
    bounds = list(pairwise([0, *ends]))
    if len(tokens) != weight.shape[0] or len(tokens) > MOST_EXPERTS or weight.dim() != 3:
        raise Illegal("the length of expert_tokens", len(tokens), f"the number of experts, at most {MOST_EXPERTS}")
    if any(start > end for start, end in bounds) or ends[-1] != rows:
        raise Illegal("expert_tokens", tokens, f"in order and {rows} rows in all")
    return [(expert, start, end) for expert, (start, end) in enumerate(bounds)]
