"""Naive attention in float64, one query and one head at a time, and random paged caches: for the tests of ATB."""

from __future__ import annotations

import torch
from torch import Tensor


def attention(
    query: Tensor, keys: Tensor, values: Tensor, scale: float, seen: int | None = None, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """One query `[heads, size]` over the first `seen` of `[n, kv_heads, size]`: output, log-sum-exp per head."""
    heads, share = query.shape[0], query.shape[0] // keys.shape[1]
    keys, values = keys[:seen], values[:seen]
    out = torch.zeros(heads, values.shape[2], dtype=torch.float64)
    total = torch.zeros(heads, dtype=torch.float64)
    for head in range(heads):
        scores = torch.stack([query[head].double() @ key[head // share].double() for key in keys]) * scale
        if bias is not None:
            scores = scores + bias[head, : len(scores)].double()
        weights = torch.exp(scores - scores.max())
        total[head] = weights.sum().log() + scores.max()
        for weight, value in zip(weights / weights.sum(), values, strict=True):
            out[head] += weight * value[head // share].double()
    return out, total


class Cache:
    """A random paged cache on the CPU with a block table, and the tokens of a sequence out of it, one by one."""

    def __init__(self, counts: list[int], heads: int, size: int, dtype: torch.dtype, block_size: int = 16) -> None:
        blocks = [-(-count // block_size) for count in counts]
        order = (torch.randperm(sum(blocks) + 3)[: sum(blocks)]).tolist()
        self.data = torch.randn(sum(blocks) + 3, block_size, heads, size).to(dtype)
        self.table = torch.zeros(len(counts), max(*blocks, 1) + 1, dtype=torch.int32)
        self.counts, self.block_size = counts, block_size
        for row, number in enumerate(blocks):
            self.table[row, :number] = torch.tensor(order[:number])
            order = order[number:]

    def like(self, size: int) -> Cache:
        """Another cache with the same blocks, of another head size."""
        other = object.__new__(Cache)
        other.__dict__.update(self.__dict__)
        other.data = torch.randn(*self.data.shape[:3], size).to(self.data.dtype)
        return other

    def tokens(self, row: int) -> Tensor:
        """`[count, heads, size]`"""
        places = [(int(self.table[row, i // self.block_size]), i % self.block_size) for i in range(self.counts[row])]
        return torch.stack([self.data[place] for place in places]) if places else self.data[0, :0]


def blocked(x: Tensor) -> Tensor:
    """`[n, rows, columns]` in the order of the NZ format, `[n, columns / 16, rows, 16]`."""
    return x.view(*x.shape[:2], -1, 16).transpose(1, 2).contiguous()
