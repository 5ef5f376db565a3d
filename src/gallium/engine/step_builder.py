"""From a schedule to the Step that a backend runs, and to the rows that are drawn from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from gallium.engine.request import Choice, Job, Scoring
from gallium.engine.scheduler import Item
from gallium.ops.handles import Step


class Draw(NamedTuple):
    """Rows that tokens of one choice are drawn from: the next one, and one after each draft."""

    choice: Choice
    drafts: tuple[int, ...] = ()

    def accepted(self, drawn: Sequence[int]) -> int:
        """How many drafts are what was drawn in their place: up to the first that is not."""
        for number, (draft, token) in enumerate(zip(self.drafts, drawn, strict=False)):
            if draft != token:
                return number
        return len(self.drafts)


class Batch(NamedTuple):
    """One step and what its logit rows are for: the rows of each draw, then those of each scored chunk."""

    step: Step
    draws: list[Draw]
    scored: list[tuple[Scoring, int]]  # (whose, how many rows)


def build(items: list[Item[Job]], block_size: int) -> Batch:
    """Lay the items of one schedule side by side. Every token id that is read must be known by now."""
    parts: list[Part] = []
    draws: list[Draw] = []
    scored: list[tuple[Scoring, int]] = []
    for item in items:
        seq, start, count, drafts = item.seq, item.start, item.count, item.drafts
        rows = 0
        if isinstance(seq, Scoring):
            scored.append((seq, count))
        elif item.draws:
            draws.append(Draw(seq, drafts))
            rows = 1 + len(drafts)
        parts.append(Part((*seq.tokens[start : start + count - len(drafts)], *drafts), start, seq.block_table, rows))
    scored_rows: list[int] = []
    first = 0
    for item in items:
        if isinstance(item.seq, Scoring):
            scored_rows += range(first, first + item.count)
        first += item.count
    return Batch(lay_out(parts, block_size, scored_rows), draws, scored)


class Part(NamedTuple):
    """What a step computes of one sequence."""

    tokens: Sequence[int]
    start: int  # position of the first
    blocks: Sequence[int]  # its block table, or more than that
    rows: int  # of the last tokens, how many have their logits drawn from


def lay_out(parts: Sequence[Part], block_size: int, more_rows: Sequence[int] = ()) -> Step:
    """The step that computes these parts side by side; `more_rows` are logit rows after those that are drawn from."""
    token_ids: list[int] = []
    positions: list[int] = []
    query_start = [0]
    rows: list[int] = []
    for part in parts:
        token_ids += part.tokens
        positions += range(part.start, part.start + len(part.tokens))
        query_start.append(len(token_ids))
        rows += range(len(token_ids) - part.rows, len(token_ids))
    ends = [part.start + len(part.tokens) for part in parts]
    used = [-(-end // block_size) for end in ends]
    tables = np.full((len(parts), max(used)), -1, np.int32)
    for row, (part, width) in enumerate(zip(parts, used, strict=True)):
        tables[row, :width] = part.blocks[:width]
    return Step(
        token_ids=np.array(token_ids, np.int32),
        positions=np.array(positions, np.int32),
        query_start=np.array(query_start, np.int32),
        context_lens=np.array(ends, np.int32),
        block_tables=tables,
        logit_rows=np.array([*rows, *more_rows], np.int32),
    )
