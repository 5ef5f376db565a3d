"""Sequences of a batch in the layouts BSND, TND and PA_BSND, with lengths in tensors or lists, as views [S, N, D]."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from gallium.vnpu.attention import layouts, paged
from gallium.vnpu.registry import Illegal

Lengths = Tensor | Sequence[int] | None


def as_list(lengths: Lengths) -> list[int] | None:
    """The numbers, or None."""
    if lengths is None or (not isinstance(lengths, Tensor) and len(lengths) == 0):
        return None
    return [int(n) for n in (lengths.tolist() if isinstance(lengths, Tensor) else lengths)]


@dataclass(frozen=True)
class Batches:
    """How queries and keys are cut. In TND lengths are cumulative, else each is that of one sequence."""

    query: Tensor
    key: Tensor
    query_layout: str
    key_layout: str
    query_lengths: Lengths = None
    key_lengths: Lengths = None
    block_table: Tensor | None = None

    def __post_init__(self) -> None:
        if self.query_layout not in ("BSND", "TND"):
            raise Illegal("the layout of the query", self.query_layout, "BSND or TND")
        if self.key_layout not in ("BSND", "TND", "PA_BSND"):
            raise Illegal("the layout of the key", self.key_layout, "BSND, TND or PA_BSND")
        if self.key_layout != "PA_BSND" and self.key_layout != self.query_layout:
            raise Illegal(
                "the layout of the key", self.key_layout, f"that of the query, {self.query_layout}, or PA_BSND"
            )
        if (self.block_table is not None) != (self.key_layout == "PA_BSND"):
            raise Illegal("block_table", self.block_table, "given for layout PA_BSND, and only then")
        for name, x, layout in (("query", self.query, self.query_layout), ("key", self.key, self.key_layout)):
            if x.dim() != (3 if layout == "TND" else 4):
                raise Illegal(name, x, f"of {3 if layout == 'TND' else 4} dimensions for layout {layout}")
        if len(self.rows) != len(self.keys):
            raise Illegal("the lengths of the keys", len(self.keys), f"as many as those of the query, {len(self.rows)}")

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def rows(self) -> list[range]:
        """The queries of each sequence, within its row of the batch or within the packed tokens."""
        return self._ranges("actual_seq_lengths_query", self.query, self.query_layout, self.query_lengths)

    @cached_property
    def keys(self) -> list[range]:
        """The keys of each sequence."""
        if self.key_layout == "PA_BSND":
            lengths = as_list(self.key_lengths)
            if lengths is None:
                raise Illegal("actual_seq_lengths_key", None, "given for layout PA_BSND")
            return [range(0, n) for n in lengths]
        return self._ranges("actual_seq_lengths_key", self.key, self.key_layout, self.key_lengths)

    def of_queries(self, x: Tensor, sequence: int) -> Tensor:
        """[S1, ..] of a tensor [B, S, ..] or [T, ..]."""
        rows = self.rows[sequence]
        return x[rows.start : rows.stop] if self.query_layout == "TND" else x[sequence, rows.start : rows.stop]

    def of_keys(self, x: Tensor, sequence: int) -> Tensor:
        """[S2, ..] of a tensor [B, S, ..], [T, ..] or [blocks, size, ..]."""
        keys = self.keys[sequence]
        if self.block_table is None:
            return x[keys.start : keys.stop] if self.key_layout == "TND" else x[sequence, keys.start : keys.stop]
        blocks = paged.blocks_of(self.block_table, sequence, len(keys), x.shape[1], x.shape[0])
        return x[blocks].flatten(0, 1)[: len(keys)]

    def stats(self, x: Tensor, sequence: int) -> Tensor:
        """[N2, S1, ..] of a tensor [B, N2, S, ..] or [N2, T, ..]."""
        rows = self.rows[sequence]
        return x[:, rows.start : rows.stop] if self.query_layout == "TND" else x[sequence, :, rows.start : rows.stop]

    def _ranges(self, name: str, x: Tensor, layout: str, lengths: Lengths) -> list[range]:
        given = as_list(lengths)
        if layout == "TND":
            if given is None:
                raise Illegal(name, None, "given for layout TND")
            return layouts.ranges(name, given, x.shape[0])
        if given is None:
            return [range(0, x.shape[1])] * x.shape[0]
        if len(given) != x.shape[0] or min(given) < 0 or max(given) > x.shape[1]:
            raise Illegal(name, given, f"{x.shape[0]} numbers from 0 to {x.shape[1]}")
        return [range(0, n) for n in given]


def causal(queries: int, keys: int) -> Tensor:
    """[S1, S2]: True where a key is after the query, counted from the lower right corner."""
    return torch.ones(queries, keys, dtype=torch.bool).triu(keys - queries + 1)


def heads_first(x: Tensor) -> Tensor:
    """[S, N, D] as [1, N, S, D]."""
    return x.transpose(0, 1)[None]
