"""Random histories of submits, cancels, drafts and steps: no block leaked or shared by mistake, everybody ends."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from gallium.engine.blocks import BlockManager
from gallium.engine.request import Sequence, State
from gallium.engine.scheduler import Chance, Item, Schedule, Scheduler

STEPS_PER_REQUEST = 400


def following(text: list[int]) -> int:
    """The token that the pretend model draws after `text`."""
    return (sum(text) + len(text)) % 2


def verified(item: Item[Sequence]) -> list[int]:
    """The drafts that were right, and the token after them."""
    text = list(item.seq.tokens)
    for draft in item.drafts:
        if draft != following(text):
            break
        text.append(draft)
    return [*text[len(item.seq.tokens) :], following(text)]


class Histories(RuleBasedStateMachine):
    """A scheduler beside a pretend cache that remembers which token was written at which place."""

    @initialize(
        num_blocks=st.integers(2, 12),
        block_size=st.integers(1, 4),
        max_batch=st.integers(1, 5),
        max_step_tokens=st.integers(1, 9),
        prefix_cache=st.booleans(),
        lag=st.booleans(),
        guess=st.sampled_from(["nothing", "right", "wrong", "half"]),
    )
    def start(
        self,
        num_blocks: int,
        block_size: int,
        max_batch: int,
        max_step_tokens: int,
        prefix_cache: bool,
        lag: bool,
        guess: str,
    ) -> None:
        self.blocks = BlockManager(num_blocks, block_size)
        self.scheduler: Scheduler[Sequence] = Scheduler(
            self.blocks, max_batch=max_batch, max_step_tokens=max_step_tokens, prefix_cache=prefix_cache
        )
        if guess != "nothing":
            self.scheduler.propose = self.propose
        self.size = block_size
        self.lag = lag
        self.guess = guess
        self.asked = 0
        self.planned: Schedule[Sequence] | None = None
        self.cache: dict[int, tuple[int, int]] = {}  # slot -> (position, token)
        self.open: list[Sequence] = []
        self.number = 0

    @rule(
        prompt=st.lists(st.integers(0, 1), min_size=1, max_size=20),
        new=st.integers(1, 12),
        n=st.integers(1, 3),
    )
    def submit(self, prompt: list[int], new: int, n: int) -> None:
        room = self.blocks.num_blocks * self.size
        if len(prompt) + new - 1 > room:
            prompt = prompt[: max(1, room - new + 1)]
            new = min(new, room - len(prompt) + 1)
        choices = [
            Sequence(arrival=(self.number, i), tokens=list(prompt), max_computed=len(prompt) + new - 1)
            for i in range(n)
        ]
        self.number += 1
        self.scheduler.add(choices[0], choices[1:])
        self.open += choices

    @rule(which=st.integers(0, 1000))
    def cancel(self, which: int) -> None:
        if self.open:
            seq = self.open.pop(which % len(self.open))
            self.scheduler.remove(seq)

    @rule(times=st.integers(1, 6))
    def step(self, times: int) -> None:
        for _ in range(times):
            self.one_step()

    def propose(self, seq: Sequence, chance: Chance) -> list[int]:
        """What will come, its opposite, or first the one and then the other; as many as there is room for, or fewer."""
        assert chance.limit >= 1 and seq.num_computed + chance.limit <= seq.max_computed
        assert chance.limit + chance.width <= self.scheduler.max_step_tokens
        self.asked += 1
        text = list(seq.tokens)
        drafts: list[int] = []
        for number in range(min(chance.limit, self.asked % 7)):
            token = following(text)
            right = self.guess == "right" or (self.guess == "half" and number < self.asked % 3)
            drafts.append(token if right else 1 - token)
            text.append(drafts[-1])
        return drafts

    @invariant()
    def blocks_are_where_they_should_be(self) -> None:
        self.scheduler.check()

    def one_step(self) -> None:
        """Plan (with a lag: one step ahead), run in the pretend cache, commit, append."""
        first = (self.scheduler.running or self.scheduler.waiting or [None])[0]  # type: ignore[list-item]
        schedule = self.planned if self.planned is not None else self.scheduler.schedule()
        self.planned = None
        live = schedule.live
        total = sum(item.count for item in schedule.items)
        assert total <= self.scheduler.max_step_tokens
        for item in live:
            self.write(item.seq, [*item.seq.tokens, *item.drafts], item.start, item.count)
        for item in live:
            self.read(item.seq, [*item.seq.tokens, *item.drafts], item.start + item.count)
        drawn = {item.seq: verified(item) for item in live if item.draws}
        if self.lag:
            self.planned = self.scheduler.schedule()
            self.scheduler.check()
        elif first is not None:
            assert live[0].seq is first, "the oldest must move in every step"
        self.scheduler.commit(schedule, {seq: len(tokens) - 1 for seq, tokens in drawn.items()})
        for seq, tokens in drawn.items():
            assert seq.state is not State.FINISHED
            seq.tokens += tokens
            assert seq.state is not State.RUNNING or seq.num_computed == len(seq.tokens) - 1 + seq.pending
            assert len(seq.tokens) <= seq.max_computed + 1
            if len(seq.tokens) == seq.max_computed + 1:
                self.scheduler.remove(seq)
                self.open.remove(seq)
        self.scheduler.check()

    def write(self, seq: Sequence, text: list[int], start: int, count: int) -> None:
        """What a device does with the keys of one chunk. Shared blocks are never written again."""
        for position in range(start, start + count):
            block = seq.block_table[position // self.size]
            slot = block * self.size + position % self.size
            others = [s for s in self.scheduler.running if s is not seq and block in s.block_table]
            assert not others, "wrote into a shared block"
            self.cache[slot] = (position, text[position])

    def read(self, seq: Sequence, text: list[int], length: int) -> None:
        """What a device reads for one chunk must be exactly this sequence's own text."""
        for position in range(length):
            slot = seq.block_table[position // self.size] * self.size + position % self.size
            assert self.cache[slot] == (position, text[position])

    def teardown(self) -> None:
        """Everybody ends within a bounded number of steps, and then every block is free."""
        if not hasattr(self, "open"):
            return
        limit = STEPS_PER_REQUEST * (len(self.open) + 1)
        while self.open:
            self.one_step()
            limit -= 1
            assert limit > 0, "no progress"
        if self.planned is not None:
            self.one_step()
        assert self.blocks.num_free == self.blocks.num_blocks
        assert not self.scheduler.has_work
        self.blocks.check([])


TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=150, stateful_step_count=25, deadline=None)
