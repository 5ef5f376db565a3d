"""From a schedule to a step: tokens, positions, block tables, and which rows are for what."""

from __future__ import annotations

import random
from array import array

import numpy as np
import pytest
from tests.engine.fakes import ByteText

from gallium.engine.blocks import BlockManager
from gallium.engine.request import Choice, Job, Request, Scoring
from gallium.engine.sampling import SamplingState
from gallium.engine.scheduler import Item, Scheduler
from gallium.engine.step_builder import Draw, build
from gallium.engine.stopping import Stopper
from gallium.types import SamplingParams

SIZE = 4  # tokens per block
PARAMS = SamplingParams()


def choice(number: int, tokens: list[int], table: list[int]) -> Choice:
    return Choice(
        arrival=(number, 0),
        tokens=tokens,
        max_computed=100,
        block_table=array("i", table),
        request=Request(number, PARAMS, lambda delta: None),
        sampling=SamplingState(PARAMS, tokens, 0, 100),
        stopper=Stopper(PARAMS, (), 100, ByteText()),
    )


def scoring(number: int, tokens: list[int], table: list[int]) -> Scoring:
    return Scoring(
        arrival=(number, 0),
        tokens=tokens,
        max_computed=len(tokens),
        block_table=array("i", table),
        deliver=lambda result: None,
    )


def test_decodes_chunks_and_scored_prompts_side_by_side() -> None:
    decoding = choice(0, [10, 11, 12, 13, 14, 15], [7, 2, 9])  # 9 is kept for later
    chunk = choice(1, list(range(20, 40)), [5, 0, 3, 1, 6])
    scored = scoring(2, [50, 51, 52], [4])
    ending = choice(3, [60, 61], [8])
    items: list[Item[Job]] = [
        Item(decoding, 5, 1, True, 0),
        Item(chunk, 3, 6, False, 0),
        Item(scored, 0, 3, True, 0),
        Item(ending, 0, 2, True, 0),
    ]
    batch = build(items, SIZE)
    step = batch.step
    assert step.token_ids.tolist() == [15, 23, 24, 25, 26, 27, 28, 50, 51, 52, 60, 61]
    assert step.positions.tolist() == [5, 3, 4, 5, 6, 7, 8, 0, 1, 2, 0, 1]
    assert step.query_start.tolist() == [0, 1, 7, 10, 12]
    assert step.context_lens.tolist() == [6, 9, 3, 2]
    assert step.block_tables.tolist() == [[7, 2, -1], [5, 0, 3], [4, -1, -1], [8, -1, -1]]
    assert batch.draws == [Draw(decoding), Draw(ending)] and batch.scored == [(scored, 3)]
    assert step.logit_rows.tolist() == [0, 11, 7, 8, 9]  # first the draws, then the scored rows
    arrays = (step.token_ids, step.positions, step.query_start, step.context_lens, step.block_tables, step.logit_rows)
    assert {a.dtype for a in arrays} == {np.dtype(np.int32)}


def test_drafts_are_computed_and_each_has_a_row_to_draw_from() -> None:
    drafting = choice(0, [10, 11, 12], [7, 2])
    plain = choice(1, [20, 21], [5])
    scored = scoring(2, [50], [4])
    items: list[Item[Job]] = [
        Item(drafting, 2, 4, True, 0, (70, 71, 72)),
        Item(plain, 1, 1, True, 0),
        Item(scored, 0, 1, True, 0),
    ]
    batch = build(items, SIZE)
    assert batch.step.token_ids.tolist() == [12, 70, 71, 72, 21, 50]
    assert batch.step.positions.tolist() == [2, 3, 4, 5, 1, 0]
    assert batch.step.context_lens.tolist() == [6, 2, 1]
    assert batch.step.block_tables.tolist() == [[7, 2], [5, -1], [4, -1]]
    assert batch.step.logit_rows.tolist() == [0, 1, 2, 3, 4, 5]
    assert batch.draws == [Draw(drafting, (70, 71, 72)), Draw(plain)]


@pytest.mark.parametrize(
    ("drawn", "accepted"), [([9, 8, 7, 6], 0), ([1, 8, 3, 6], 1), ([1, 2, 3, 4], 3), ([8, 2, 3, 4], 0)]
)
def test_drafts_are_accepted_up_to_the_first_that_was_not_drawn(drawn: list[int], accepted: int) -> None:
    assert Draw(choice(0, [5], [0]), (1, 2, 3)).accepted(drawn) == accepted


def test_a_step_without_a_draw_has_no_logit_rows() -> None:
    batch = build([Item(choice(0, list(range(9)), [1, 0, 2]), 0, 4, False, 0)], SIZE)
    assert batch.step.logit_rows.tolist() == [] and not batch.draws and not batch.scored
    assert batch.step.block_tables.tolist() == [[1]]


def test_a_chunk_that_ends_with_its_block_needs_no_other() -> None:
    assert build([Item(choice(0, list(range(8)), [3, 1]), 4, 4, True, 0)], SIZE).step.block_tables.tolist() == [[3, 1]]


@pytest.mark.parametrize("seed", range(5))
def test_over_a_random_history_every_token_is_computed_once_and_in_its_own_slot(seed: int) -> None:
    rng = random.Random(seed)
    blocks = BlockManager(64, SIZE)
    scheduler: Scheduler[Job] = Scheduler(blocks, max_batch=4, max_step_tokens=11, prefix_cache=False)
    jobs = [choice(i, [rng.randrange(100) for _ in range(rng.randrange(1, 30))], []) for i in range(6)]
    for job in jobs:
        scheduler.add(job)
    owner: dict[int, tuple[int, int]] = {}
    while scheduler.has_work:
        schedule = scheduler.schedule()
        batch = build(schedule.items, SIZE)
        slots = batch.step.slots(SIZE).tolist()
        assert len(set(slots)) == len(slots)
        for item, first in zip(schedule.items, batch.step.query_start, strict=False):
            for offset in range(item.count):
                position = item.start + offset
                assert batch.step.token_ids[first + offset] == item.seq.tokens[position]
                owner[slots[first + offset]] = (item.seq.arrival[0], position)
            for position in range(item.start + item.count):  # what came before is still where the table leads to
                slot = item.seq.block_table[position // SIZE] * SIZE + position % SIZE
                assert owner[slot] == (item.seq.arrival[0], position)
        scheduler.commit(schedule)
        for drawn in (draw.choice for draw in batch.draws):
            drawn.tokens.append(rng.randrange(100))
            if len(drawn.tokens) - drawn.prompt_len == 5:
                scheduler.remove(drawn)
    assert all(len(job.tokens) == job.prompt_len + 5 for job in jobs) and blocks.num_free == 64
