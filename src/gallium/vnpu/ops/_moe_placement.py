"""Where each choice (token, expert) of a router goes: in the order of the experts, or into fixed places for each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gallium.vnpu.checks import check_choice
from gallium.vnpu.refusals import Illegal

CUMSUM, COUNT, KEY_VALUE = 0, 1, 2
ELSEWHERE = torch.iinfo(torch.int32).max  # sorts after all experts


class Placement:
    """The choices of `expert_idx` [tokens, k] that go to the experts first <= e < last.

    order: all choices by expert, those of other experts behind; choice i is token i // k.
    tokens, experts: of the choices that are placed, row by row.
    dropping: each expert has `capacity` places, its first choices get them, and the rest is dropped; else the rows are
    `order`, of which `active` are kept (0 or less: all).
    """

    def __init__(
        self, expert_idx: Tensor, active_range: tuple[int, int], mode: int, capacity: int, active: int
    ) -> None:
        check_choice("drop_pad_mode", mode, (0, 1))
        self.first, last = active_range
        self.groups = last - self.first
        self.dropping = mode == 1
        self.capacity = capacity
        flat = expert_idx.reshape(-1).long()
        here = (flat >= self.first) & (flat < last)
        self.order = torch.where(here, flat, ELSEWHERE).argsort(stable=True)
        self.available = int(here.sum())
        self.counts = torch.bincount(flat[here] - self.first, minlength=self.groups)
        choices = self.order[: self.available]
        experts = flat[choices]
        if self.dropping:
            if capacity <= 0:
                raise Illegal("expert_capacity", capacity, "above 0 where tokens are dropped")
            starts = self.counts.cumsum(0) - self.counts
            rank = torch.arange(self.available) - starts[experts - self.first]
            kept = rank < capacity
            choices, experts = choices[kept], experts[kept]
            self.rows = experts * capacity + rank[kept]
        else:
            kept_rows = self.available if active <= 0 else min(active, self.available)
            self.rows = torch.arange(self.available)
            self._placed_rows = kept_rows
        self._choices = choices
        placed = len(choices) if self.dropping else self._placed_rows
        top_k = expert_idx.shape[-1]
        self.tokens = choices[:placed] // top_k
        self.experts = experts[:placed]

    def destinations(self) -> Tensor:
        """For each choice the row it went to; -1 if it went nowhere."""
        result = torch.full((len(self.order),), -1, dtype=torch.int64)
        result[self._choices] = self.rows
        return result

    def place(self, values: Tensor, out: Any) -> None:
        """Write the tokens' values, a row each, to their rows of `out`."""
        self.place_rows(values[self.tokens], out, lambda view, rows: view.copy_(rows))

    def place_rows(self, rows: Tensor, out: Any, store: Callable[[Any, Tensor], object]) -> None:
        """Write one row for each placed choice. Where tokens are dropped, empty places become zero."""
        if not self.dropping:
            store(out[: len(rows)], rows)
            return
        places = out.shape[0] * (self.capacity if out.dim() > rows.dim() else 1)
        full = rows.new_zeros((places, *rows.shape[1:]))
        full[self.rows] = rows
        store(out, full.view(out.shape))


def expert_counts(placement: Placement, kind: int, expert_num: int) -> Tensor:
    """How many choices each expert has: running sums, counts, or pairs (expert, count) of those that have any."""
    check_choice("expert_tokens_num_type", kind, (CUMSUM, COUNT, KEY_VALUE))
    if kind == COUNT:
        return placement.counts
    if kind == CUMSUM:
        return placement.counts.cumsum(0)
    pairs = torch.zeros(expert_num, 2, dtype=torch.int64)
    busy = placement.counts.nonzero().squeeze(-1)
    pairs[: len(busy), 0] = busy + placement.first
    pairs[: len(busy), 1] = placement.counts[busy]
    return pairs
