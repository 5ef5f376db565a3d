"""Attention as the pages of op-plugin define it, naive and in float64, for the tests of all attention operators."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

FAR = 2147483647


class Result(NamedTuple):
    out: Tensor
    maximum: Tensor
    total: Tensor


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    seen: Tensor | None = None,
    bias: Tensor | None = None,
    bias_first: bool = False,
    sink: Tensor | None = None,
    keep: Tensor | None = None,
    keep_prob: float = 1.0,
) -> Result:
    """softmax(scale * (q k^T) + bias) v over [B, N, S, D]; differentiable. A query that sees nothing gives zeros."""
    query, key, value = query.double(), key.double(), value.double()
    group = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    scores = query @ key.transpose(-1, -2)
    added = 0 if bias is None else bias.double()
    scores = (scores + added) * scale if bias_first else scores * scale + added
    if seen is not None:
        scores = scores.masked_fill(~seen, -torch.inf)
    columns = scores
    if sink is not None:
        columns = torch.cat((scores, sink.double()[None, :, None, None].expand(*scores.shape[:3], 1)), -1)
    maximum = columns.amax(-1, keepdim=True).detach()
    lowest = torch.finfo(torch.float32).min
    maximum = maximum.clamp(min=lowest)
    exponentials = (columns - maximum).exp()
    total = exponentials.sum(-1, keepdim=True)
    weights = exponentials[..., : scores.shape[-1]] / torch.where(total == 0, 1.0, total)
    if keep is not None:
        weights = weights * keep / keep_prob
    return Result(weights @ value, maximum, total)


def seen_by(
    mode: int,
    queries: int,
    keys: int,
    pre: int = FAR,
    after: int = FAR,
    mask: Tensor | None = None,
    prefix: int = 0,
) -> Tensor:
    """[Sq, Skv]: whether query i sees key j, one pair at a time, from the text of the page of npu_fusion_attention."""
    shift = keys - queries  # of the lower right corner
    rule = {
        0: lambda i, j: -pre <= j - i <= after,
        1: lambda i, j: True,
        2: lambda i, j: j <= i,
        3: lambda i, j: j <= i + shift,
        4: lambda i, j: -pre <= j - i - shift <= after,
        5: lambda i, j: j <= i + shift or j < prefix,
        6: lambda i, j: j <= i + shift or j < prefix,
    }[mode]
    pairs = [[rule(i, j) for j in range(keys)] for i in range(queries)]
    seen = torch.tensor(pairs, dtype=torch.bool).view(queries, keys)
    return seen if mask is None else seen & ~mask.bool()


def triangle(with_prefix: bool = False) -> Tensor:
    """The compressed mask of the sparse modes 2, 3, 4, 7 and 8, or of mode 6."""
    upper = torch.triu(torch.ones(2048, 2048, dtype=torch.bool), 1)
    if not with_prefix:
        return upper
    return torch.cat((upper, (torch.arange(2048) >= 1024).expand(1024, 2048)))


def close(actual: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    """Equal up to the rounding of a result in this type."""
    bound = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}[dtype]
    torch.testing.assert_close(actual.cpu().double(), expected.detach().double(), rtol=bound, atol=bound)
