"""Layouts of attention operands as views [B, N, S, D], and the cut of packed batches (TND) into sequences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gallium.vnpu.registry import Illegal

_VIEWS: dict[str, tuple[int, Callable[[Tensor, int], Tensor]]] = {
    "BSH": (3, lambda x, heads: torch.unflatten(x, 2, (heads, -1)).transpose(1, 2)),
    "SBH": (3, lambda x, heads: torch.unflatten(x, 2, (heads, -1)).permute(1, 2, 0, 3)),
    "BSND": (4, lambda x, heads: x.transpose(1, 2)),
    "BNSD": (4, lambda x, heads: x),
    "NBSD": (4, lambda x, heads: x.transpose(0, 1)),
    "NSD": (3, lambda x, heads: x.unsqueeze(0)),
    "TND": (3, lambda x, heads: x.transpose(0, 1).unsqueeze(0)),
    "NTD": (3, lambda x, heads: x.unsqueeze(0)),
}


def view(name: str, x: Tensor, layout: str, heads: int) -> Tensor:
    """The tensor as [B, N, S, D]; a packed batch (TND, NTD) as [1, N, T, D]."""
    dims, make = _VIEWS[layout]
    if x.dim() != dims:
        raise Illegal(f"{name}'s number of dimensions", x.dim(), f"{dims} for layout {layout}")
    if layout in ("BSH", "SBH") and (heads <= 0 or x.shape[2] % heads):
        raise Illegal(f"{name}'s last dimension", x.shape[2], f"a multiple of the number of heads, {heads}")
    seen = make(x, heads)
    if seen.shape[1] != heads:
        raise Illegal(f"{name}'s number of heads", seen.shape[1], f"{heads}, as the head argument says")
    return seen


def kv_heads(key: Tensor, layout: str, query_size: int) -> int:
    """How many heads a key has whose head size is that of the query."""
    if layout in ("BSH", "SBH"):
        return key.shape[2] // query_size if query_size else 0
    return key.shape[{"BNSD": 1, "BSND": 2, "TND": 1, "NTD": 0}[layout]]


@dataclass(frozen=True)
class Packed:
    """One sequence in a packed batch: its queries and its keys."""

    index: int
    queries: range
    keys: range


def sequences(query_ends: Sequence[int], key_ends: Sequence[int], queries: int, keys: int) -> list[Packed]:
    """Cut by cumulative lengths. Zeros at the tail are sequences that take no part (npu_fusion_attention page)."""
    if len(query_ends) != len(key_ends):
        raise Illegal("actual_seq_kvlen", tuple(key_ends), f"as long as actual_seq_qlen, {len(query_ends)}")
    return [
        Packed(i, q, k)
        for i, (q, k) in enumerate(
            zip(ranges("actual_seq_qlen", query_ends, queries), ranges("actual_seq_kvlen", key_ends, keys), strict=True)
        )
    ]


def ranges(name: str, ends: Sequence[int], size: int) -> list[range]:
    """The range of each sequence; an empty one for zeros at the tail."""
    count = len(ends)
    while count > 0 and ends[count - 1] == 0:
        count -= 1
    starts = (0, *ends[: count - 1]) if count else ()
    cut = [range(a, b) for a, b in zip(starts, ends[:count], strict=True)]
    if any(b < a for a, b in zip(starts, ends[:count], strict=True)) or (count and ends[count - 1] > size):
        raise Illegal(name, tuple(ends), f"cumulative lengths that do not fall, up to {size}")
    return cut + [range(0, 0)] * (len(ends) - count)


def per_sequence(stats: Tensor, cut: Packed, heads: int, as_input: bool) -> Tensor:
    """The softmax statistics [N, s] of one sequence in a tensor [T, N, 8].

    By default each sequence is a block [N, s, 8], one after the other (MindSpeed, flatten_softmax of ring attention);
    with softmax_layout "same_as_input" rows are tokens.
    """
    rows = cut.queries
    if as_input:
        return stats[rows.start : rows.stop].transpose(0, 1)
    flat = stats.reshape(-1, stats.shape[-1])[heads * rows.start : heads * rows.stop]
    return flat.view(heads, len(rows), stats.shape[-1])


def to_float(x: Tensor) -> Tensor:
    """The tensor in float32."""
    return x.to(torch.float32)
