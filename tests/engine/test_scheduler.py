"""The scheduler's rules, one by one; random histories are in test_scheduler_histories.py."""

from __future__ import annotations

import pytest

from gallium.engine.blocks import BlockManager
from gallium.engine.request import Sequence, State
from gallium.engine.scheduler import Chance, Schedule, Scheduler
from gallium.errors import ContextTooLong


def make(num_blocks: int = 100, block_size: int = 4, **kwargs: int | bool) -> Scheduler[Sequence]:
    options = {"max_batch": 8, "max_step_tokens": 16, "prefix_cache": True} | kwargs
    return Scheduler(BlockManager(num_blocks, block_size), **options)  # type: ignore[arg-type]


def seq(number: int, prompt_len: int, new: int = 10, index: int = 0, base: int | None = None) -> Sequence:
    start = 1000 * number if base is None else base
    return Sequence(
        arrival=(number, index),
        tokens=list(range(start, start + prompt_len)),
        max_computed=prompt_len + new - 1,
    )


def plan(schedule: Schedule[Sequence]) -> list[tuple[int, int, int, bool]]:
    return [(i.seq.arrival[0], i.start, i.count, i.draws) for i in schedule.items]


def step(scheduler: Scheduler[Sequence], token: int = 7) -> list[tuple[int, int, int, bool]]:
    schedule = scheduler.schedule()
    scheduler.commit(schedule)
    for item in schedule.items:
        if item.draws:
            item.seq.tokens.append(token)
            if len(item.seq.tokens) > item.seq.max_computed:
                scheduler.remove(item.seq)
    scheduler.check()
    return plan(schedule)


def test_prompts_are_cut_into_chunks_and_decodes_come_first() -> None:
    s = make(max_step_tokens=6)
    s.add(seq(0, 4))
    assert step(s) == [(0, 0, 4, True)]
    s.add(seq(1, 12))
    s.add(seq(2, 3))
    assert step(s) == [(0, 4, 1, True), (1, 0, 5, False)]
    assert step(s) == [(0, 5, 1, True), (1, 5, 5, False)]
    assert step(s) == [(0, 6, 1, True), (1, 10, 2, True), (2, 0, 3, True)]
    assert step(s) == [(0, 7, 1, True), (1, 12, 1, True), (2, 3, 1, True)]


def test_an_older_prompt_never_takes_the_token_of_a_younger_decode() -> None:
    s = make(max_step_tokens=8)
    s.add(seq(0, 20))
    s.add(seq(1, 2))
    step(s)
    step(s)
    assert step(s) == [(0, 16, 4, True), (1, 0, 2, True)]
    young = s.running[1]
    s.add(seq(2, 20))
    assert step(s) == [(0, 20, 1, True), (1, 2, 1, True), (2, 0, 6, False)]
    assert young.state is State.RUNNING


def test_the_batch_is_never_larger_than_the_tokens_of_a_step() -> None:
    s = make(max_step_tokens=2)
    for number in range(3):
        s.add(seq(number, 1, new=3))
    assert [r[0] for r in step(s)] == [0, 1]
    assert [r[0] for r in step(s)] == [0, 1]
    assert [r[0] for r in step(s)] == [0, 1]
    assert [r[0] for r in step(s)] == [2]


def test_max_batch() -> None:
    s = make(max_batch=2)
    for number in range(3):
        s.add(seq(number, 2))
    step(s)
    assert len(s.running) == 2 and len(s.waiting) == 1


def test_the_most_recent_sequence_is_preempted_and_comes_back_with_its_tokens() -> None:
    s = make(num_blocks=3, block_size=2, prefix_cache=False)
    old, young = seq(0, 1, new=5), seq(1, 1, new=4)
    s.add(old)
    s.add(young)
    assert step(s) == [(0, 0, 1, True), (1, 0, 1, True)]
    assert step(s) == [(0, 1, 1, True), (1, 1, 1, True)]
    assert step(s) == [(0, 2, 1, True)]  # both want a second block, one is left
    assert young.state is State.WAITING and young.preemptions == 1 and len(young.block_table) == 0
    assert young.tokens == [1000, 7, 7]
    assert step(s) == [(0, 3, 1, True)]
    assert step(s) == [(0, 4, 1, True)] and old.state is State.FINISHED
    assert step(s) == [(1, 0, 3, True)]
    while s.has_work:
        step(s)
    assert young.tokens == [1000, 7, 7, 7, 7] and s.num_preemptions == 1
    assert s.blocks.num_free == 3


def test_nothing_is_admitted_in_the_step_of_a_preemption() -> None:
    s = make(num_blocks=4, block_size=1, prefix_cache=False)
    for number in range(2):
        s.add(seq(number, 1, new=4))
    assert step(s) == [(0, 0, 1, True), (1, 0, 1, True)]
    s.add(seq(2, 1, new=1))
    assert step(s) == [(0, 1, 1, True), (1, 1, 1, True)]  # 2 does not fit with one spare block for each
    assert step(s) == [(0, 2, 1, True)]  # 1 gave its two blocks back; neither it nor 2 starts in this step
    assert [q.arrival[0] for q in s.waiting] == [1, 2]


def test_a_request_that_can_never_fit_is_refused() -> None:
    s = make(num_blocks=3, block_size=4)
    s.add(seq(0, 8, new=5))
    with pytest.raises(ContextTooLong, match="13 tokens of KV cache, but the cache holds 12"):
        s.add(seq(1, 8, new=6))
    assert len(s.waiting) == 1


def test_a_known_prefix_is_shared_but_the_last_token_is_computed() -> None:
    s = make()
    s.add(seq(0, 8, base=0))
    step(s)
    s.add(seq(1, 8, base=0))
    s.add(seq(2, 9, base=0))
    s.add(seq(3, 3, base=0))
    rows = step(s)
    assert rows == [(0, 8, 1, True), (1, 4, 4, True), (2, 8, 1, True), (3, 0, 3, True)]
    tables = [q.block_table for q in s.running]
    assert tables[1][0] == tables[0][0] and tables[1][1] != tables[0][1]
    assert list(tables[2][:2]) == list(tables[0][:2])
    assert [q.cached_tokens for q in s.running] == [0, 4, 8, 0]
    assert s.prefix_hit_tokens == 12


def test_an_answer_is_a_prefix_too() -> None:
    s = make()
    first = seq(0, 4, new=6)
    s.add(first)
    while s.has_work:
        step(s)
    follow_up = Sequence(arrival=(1, 0), tokens=[*first.tokens, 1, 2, 3], max_computed=20)
    s.add(follow_up)
    step(s)
    assert follow_up.cached_tokens == 8


def test_without_a_prefix_cache_nothing_is_shared() -> None:
    s = make(prefix_cache=False)
    s.add(seq(0, 8, base=0))
    step(s)
    s.add(seq(1, 8, base=0))
    assert step(s)[1] == (1, 0, 8, True)


@pytest.mark.parametrize("prefix_cache", [True, False])
def test_choices_share_the_blocks_of_their_prompt(prefix_cache: bool) -> None:
    s = make(prefix_cache=prefix_cache, max_step_tokens=6)
    choices = [seq(0, 10, index=i, base=0) for i in range(3)]
    s.add(choices[0], choices[1:])
    s.add(seq(1, 2))
    assert choices[1].state is State.HELD
    assert step(s) == [(0, 0, 6, False)]
    assert step(s) == [(0, 6, 4, True), (1, 0, 2, True)]
    assert [q.state for q in choices] == [State.RUNNING, State.WAITING, State.WAITING]
    step(s)
    assert [list(q.block_table[:2]) for q in choices] == [list(choices[0].block_table[:2])] * 3
    assert len({q.block_table[2] for q in choices}) == 3
    assert [q.cached_tokens for q in choices] == [0, 8, 8]
    for choice in choices:
        s.remove(choice)
        s.check()


def test_choices_do_not_wait_for_a_cancelled_first_one() -> None:
    s = make(max_step_tokens=4)
    choices = [seq(0, 10, index=i, base=0) for i in range(2)]
    s.add(choices[0], choices[1:])
    step(s)
    s.remove(choices[0])
    assert choices[1].state is State.WAITING
    s.check()
    while s.has_work:
        step(s)
    assert len(choices[1].tokens) == 20


def test_removal_in_every_state_frees_the_blocks() -> None:
    s = make(max_batch=1)
    leader, held, waiting = seq(0, 9), seq(0, 9, index=1, base=0), seq(1, 3)
    s.add(leader, [held])
    s.add(waiting)
    schedule = s.schedule()
    for q in (held, waiting, leader):  # while the step is under way
        s.remove(q)
        assert q.state is State.FINISHED
    assert schedule.live == []
    s.commit(schedule)
    s.check()
    assert s.blocks.num_free == 100 and not s.has_work
    assert s.schedule().items == []


def test_a_long_request_is_not_overtaken() -> None:
    s = make(num_blocks=4, block_size=4)
    s.add(seq(0, 8, new=3))
    step(s)
    s.add(seq(1, 12, new=2))
    s.add(seq(2, 1, new=1))
    assert step(s) == [(0, 8, 1, True)]  # 1 does not fit beside 0, and 2 waits behind 1
    assert step(s) == [(0, 9, 1, True)]
    assert step(s) == [(1, 0, 12, True)]


def test_step_n_plus_one_can_be_planned_before_the_tokens_of_step_n_are_known() -> None:
    s = make()
    a = seq(0, 4, new=3)
    s.add(a)
    first = s.schedule()
    second = s.schedule()
    assert plan(first) == [(0, 0, 4, True)] and plan(second) == [(0, 4, 1, True)]
    s.commit(first)
    a.tokens.append(1)
    third = s.schedule()
    assert plan(third) == [(0, 5, 1, True)]
    assert s.schedule().items == []  # the last token is on its way: nothing to compute after it
    for schedule in (second, third):
        assert len(schedule.live) == 1
        s.commit(schedule)
        a.tokens.append(1)
    s.remove(a)
    s.check()


def test_sequences_that_cannot_grow_need_no_spare_block() -> None:
    s = make(num_blocks=3, block_size=4)
    for number in range(2):
        s.add(seq(number, 2, new=2))  # one block each, for ever
    s.add(seq(2, 2, new=5))
    s.add(seq(3, 2, new=1))
    assert [r[0] for r in step(s)] == [0, 1, 2]
    assert [one.arrival[0] for one in s.waiting] == [3]  # the third may want another block


# -- drafts --------------------------------------------------------------------------------------


def drafting(scheduler: Scheduler[Sequence], count: int) -> list[Chance]:
    """Let every decode propose `count` tokens; what it was told each time."""
    asked: list[Chance] = []

    def propose(seq: Sequence, chance: Chance) -> list[int]:
        asked.append(chance)
        return [900 + n for n in range(min(count, chance.limit))]

    scheduler.propose = propose
    return asked


def test_drafts_get_what_decodes_and_prompts_leave_of_a_step() -> None:
    s = make(max_step_tokens=12)
    s.add(seq(0, 3, new=30))
    s.add(seq(1, 3, new=30))
    step(s)
    asked = drafting(s, 5)
    s.add(seq(2, 6))
    plan = s.schedule()
    assert [(i.start, i.count, i.drafts) for i in plan.items] == [
        (3, 5, (900, 901, 902, 903)), (3, 1, ()), (0, 6, ()),
    ]  # fmt: skip
    assert asked == [Chance(limit=4, width=8, draws=3)]


def test_drafts_end_with_the_answer() -> None:
    s = make()
    s.add(one := seq(0, 3, new=4))
    step(s)
    drafting(s, 9)
    (item,) = s.schedule().items
    assert item.drafts == (900, 901) and one.num_computed == one.max_computed == 6


def test_blocks_of_wrong_drafts_are_given_back_and_those_of_right_ones_are_named() -> None:
    s = make(num_blocks=8)
    s.add(one := seq(0, 4, new=25))
    step(s)
    drafting(s, 11)
    plan = s.schedule()
    assert s.schedule().items == [], "nothing more of it can be planned before the verdict"
    assert len(one.block_table) == 4
    s.commit(plan, {one: 4})
    s.check()
    assert one.num_computed == one.num_committed == 9 and len(one.block_table) == 3
    one.tokens += [900, 901, 902, 903, 5]
    assert s.known_prefix(Sequence(arrival=(9, 0), tokens=[*one.tokens[:8], 1], max_computed=9)) == 8
    assert s.known_prefix(Sequence(arrival=(9, 0), tokens=[*one.tokens[:5], *range(900, 911)], max_computed=99)) == 8
    assert one.remaining == 1


def test_drafts_take_no_block_that_another_decode_may_need() -> None:
    s = make(num_blocks=5)
    s.add(seq(0, 4, new=16))
    s.add(seq(1, 4, new=16))
    step(s)
    drafting(s, 9)
    first, second = s.schedule().items
    assert len(first.drafts) == 3 and second.count == 1 + len(second.drafts)
    assert s.num_preemptions == 0 and s.blocks.num_free >= 1
