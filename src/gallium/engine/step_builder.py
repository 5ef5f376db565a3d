"""From a schedule to the Step that a backend runs, and to the rows that are drawn from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gallium.engine.request import Choice, Job, Scoring
from gallium.engine.scheduler import Item
from gallium.ops.handles import Step


@dataclass(frozen=True, slots=True)
class Draw:
    """Rows that tokens of one choice are drawn from: the next one, and one after each draft."""

    choice: Choice
    drafts: tuple[int, ...] = ()

    def accepted(self, drawn: Sequence[int]) -> int:
        """How many drafts are what was drawn in their place: up to the first that is not."""
        for number, (draft, token) in enumerate(zip(self.drafts, drawn, strict=False)):
            if draft != token:
                return number
        return len(self.drafts)


@dataclass(frozen=True, slots=True)
class Batch:
    """One step and what its logit rows are for: the rows of each draw, then those of each scored chunk."""

    step: Step
    draws: list[Draw]
    scored: list[tuple[Scoring, int]]  # (whose, how many rows)


def build(items: list[Item[Job]], block_size: int) -> Batch:
    """Lay the items of one schedule side by side. Every token id that is read must be known by now."""
    token_ids: list[int] = []
    positions: list[int] = []
    query_start = [0]
    draws: list[Draw] = []
    draw_rows: list[int] = []
    scored: list[tuple[Scoring, int]] = []
    scored_rows: list[int] = []
    for item in items:
        seq, start, count, drafts = item.seq, item.start, item.count, item.drafts
        first = len(token_ids)
        token_ids += seq.tokens[start : start + count - len(drafts)]
        token_ids += drafts
        positions += range(start, start + count)
        query_start.append(first + count)
        if isinstance(seq, Scoring):
            scored.append((seq, count))
            scored_rows += range(first, first + count)
        elif item.draws:
            draws.append(Draw(seq, drafts))
            draw_rows += range(first + count - 1 - len(drafts), first + count)
    used = [-(-(i.start + i.count) // block_size) for i in items]
    tables = np.full((len(items), max(used)), -1, np.int32)
    for row, (item, width) in enumerate(zip(items, used, strict=True)):
        tables[row, :width] = item.seq.block_table[:width]
    step = Step(
        token_ids=np.array(token_ids, np.int32),
        positions=np.array(positions, np.int32),
        query_start=np.array(query_start, np.int32),
        context_lens=np.array([i.start + i.count for i in items], np.int32),
        block_tables=tables,
        logit_rows=np.array(draw_rows + scored_rows, np.int32),
    )
    return Batch(step, draws, scored)
