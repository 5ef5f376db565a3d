"""Which keys a query sees: a diagonal band, keys that are always seen, and a mask, all of them optional."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

UNLIMITED = 2147483647  # torch_npu's default for pre_tokens and next_tokens


@dataclass(frozen=True)
class Visible:
    """Query i sees key j if low <= j - i <= high or j < prefix, unless hidden[.., i, j].

    hidden: bool [B or 1, N or 1, Sq, Skv], or None.
    """

    low: int | None = None
    high: int | None = None
    prefix: int = 0
    hidden: Tensor | None = None

    def columns(self, rows: range, keys: int) -> range:
        """The keys that at least one of these queries may see; the others need not be computed."""
        first = 0 if self.low is None or self.prefix > 0 else max(0, rows.start + self.low)
        last = keys if self.high is None else max(self.prefix, rows.stop + self.high)
        return range(min(first, keys), max(min(last, keys), min(first, keys)))

    def hide(self, scores: Tensor, rows: range, columns: range) -> None:
        """Set the scores [.., rows, columns] outside the band to minus infinity (the mask is another matter)."""
        if self.high is not None:
            first = max(columns.start, rows.start + self.high + 1, self.prefix)
            if first < columns.stop:
                corner = _above(len(rows), columns.stop - first, self.high - first + rows.start)
                scores[..., first - columns.start :].masked_fill_(corner, -torch.inf)
        if self.low is not None:
            first = max(columns.start, self.prefix)
            last = min(columns.stop, rows.stop - 1 + self.low)
            if first < last:
                corner = ~_above(len(rows), last - first, self.low - first + rows.start - 1)
                scores[..., first - columns.start : last - columns.start].masked_fill_(corner, -torch.inf)

    @property
    def everything(self) -> bool:
        """Whether every query sees every key."""
        return self.low is None and self.high is None and self.hidden is None


@lru_cache(maxsize=64)
def _above(rows: int, columns: int, diagonal: int) -> Tensor:
    """True where column - row > diagonal."""
    return torch.ones(rows, columns, dtype=torch.bool).triu(diagonal + 1)


def band(low: int | None, high: int | None, hidden: Tensor | None = None) -> Visible:
    """A band from key - query = low to high; limits that are as far as torch_npu's default are none."""
    return Visible(
        None if low is not None and low <= -UNLIMITED // 2 else low,
        None if high is not None and high >= UNLIMITED // 2 else high,
        hidden=hidden,
    )
