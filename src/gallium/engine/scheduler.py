"""What runs in the next step: continuous batching, chunked prefill, preemption; pure Python without tensors.

The order of service is the order of arrival. Running sequences that decode get one token each, first; what
is left of `max_step_tokens` goes to prompts, oldest first, in chunks. When blocks run out, the most recent
running sequence gives its blocks back and waits (recomputation later is exact, because results do not depend
on company). The oldest sequence is never the victim of another and always fits alone, so every step moves it
forward: there is no starvation.

Drafts are an afterthought of a plan: a decode takes as many as its proposer wants and as tokens of the step and free
blocks are left for. They push nobody aside. `commit` takes back what was reserved for those that were wrong.

`schedule` and `commit` may interleave with a lag of one: step N+1 can be planned before the tokens of step N
are known. A sequence with drafts under way is then left out of step N+1.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Generic, NamedTuple, TypeVar

from gallium.engine.blocks import BlockManager, block_digest
from gallium.engine.request import Sequence, State
from gallium.errors import ContextTooLong

S = TypeVar("S", bound=Sequence)


@dataclass(frozen=True, slots=True)
class Item(Generic[S]):
    """The part of one step that belongs to one sequence: `count` tokens from position `start`, drafts included."""

    seq: S
    start: int
    count: int
    draws: bool  # the chunk ends with the last known token: its logits give the next one
    epoch: int  # the sequence's preemptions when this was planned
    drafts: tuple[int, ...] = ()  # tokens that may follow the last known one; each is computed and drawn after


@dataclass(frozen=True, slots=True)
class Schedule(Generic[S]):
    """One planned step, in the order of arrival."""

    items: list[Item[S]]

    @property
    def live(self) -> list[Item[S]]:
        """The items whose sequence did not end or lose its blocks after planning."""
        return [i for i in self.items if i.seq.state is State.RUNNING and i.epoch == i.seq.preemptions]


class Chance(NamedTuple):
    """What a step has room for, when drafts are asked for."""

    limit: int  # the most drafts
    width: int  # tokens that the step computes without them
    draws: int  # tokens that it gives without them


def _arrival(seq: Sequence) -> tuple[int, int]:
    return seq.arrival


class Scheduler(Generic[S]):
    """Decides which tokens of which sequences are computed next, and owns their block tables."""

    def __init__(
        self, blocks: BlockManager, *, max_batch: int, max_step_tokens: int, prefix_cache: bool = True
    ) -> None:
        self.blocks = blocks
        self.max_step_tokens = max_step_tokens
        # At most one sequence per token of a step: each decode, and the oldest prompt, advance in every step.
        self.max_running = min(max_batch, max_step_tokens)
        self.prefix_cache = prefix_cache
        self.waiting: list[S] = []  # both sorted by arrival
        self.running: list[S] = []
        self._held: dict[tuple[int, int], list[S]] = {}  # leader's arrival -> followers
        self.num_preemptions = 0
        self.prefix_hit_tokens = 0
        self.propose: Callable[[S, Chance], list[int]] | None = None  # drafts for a decode

    @property
    def has_work(self) -> bool:
        """Whether `schedule` would find something to do."""
        return bool(self.running or self.waiting)

    @property
    def num_open(self) -> int:
        """Sequences that have not ended."""
        return len(self.running) + len(self.waiting) + sum(map(len, self._held.values()))

    def known_prefix(self, seq: S) -> int:
        """Tokens of `seq` that the prefix cache would give it now."""
        return len(self._prefix(seq)) * self.blocks.block_size

    def reset(self) -> None:
        """Forget every sequence and every prefix: the cache's content is gone. The counters go on."""
        self.waiting, self.running, self._held = [], [], {}
        self.blocks.reset()

    def add(self, seq: S, followers: Iterable[S] = ()) -> None:
        """Queue a sequence; `followers` have the same prompt and start, sharing blocks, when it is computed.

        Raises ContextTooLong if it could not finish even with the whole cache for itself.
        """
        fits = self.blocks.num_blocks * self.blocks.block_size
        if seq.max_computed > fits:
            raise ContextTooLong(
                f"the request may need {seq.max_computed} tokens of KV cache, but the cache holds {fits}: "
                "ask for fewer tokens or start with more KV memory."
            )
        held = list(followers)
        for follower in held:
            follower.leader = seq
            follower.state = State.HELD
        if held:
            self._held[seq.arrival] = held
        seq.state = State.WAITING
        insort(self.waiting, seq, key=_arrival)

    def remove(self, seq: S) -> None:
        """Forget a sequence that ended or was cancelled, in whatever state; its blocks are free at once."""
        if seq.state is State.RUNNING:
            self._take_out(self.running, seq)
            self._release(seq)
        elif seq.state is State.WAITING:
            self._take_out(self.waiting, seq)
        elif seq.state is State.HELD and seq.leader is not None:
            self._held[seq.leader.arrival].remove(seq)
        seq.state = State.FINISHED
        seq.leader = None
        self._free_followers(seq)  # if it ended before its prompt was computed, they must not wait for ever

    def schedule(self) -> Schedule[S]:
        """Plan one step; reserves blocks, may preempt. Empty only if nothing can run before a commit."""
        items: list[Item[S]] = []
        budget, preempted = self._schedule_running(items)
        if not preempted:  # admitting what was just thrown out would only thrash
            budget = self._admit(items, budget)
        if self.propose is not None:
            self._draft(items, budget, self.propose)
        return Schedule(items)

    def commit(self, schedule: Schedule[S], accepted: Mapping[S, int] = MappingProxyType({})) -> None:
        """The step ran: its blocks may be found by others. Call it before the drawn tokens are appended.

        `accepted` says of how many drafts the draws before them were the same; the others leave no trace.
        """
        for item in schedule.items:
            seq = item.seq
            seq.pending -= item.draws
            if seq.state is not State.RUNNING or item.epoch != seq.preemptions:
                continue
            computed = item.start + item.count
            if item.drafts:
                computed -= len(item.drafts) - accepted.get(seq, 0)
                self._take_back(seq, computed)
            if self.prefix_cache:
                self._name_blocks(seq, seq.num_committed, computed, item.drafts)
            seq.num_committed = computed
            if self._held and computed >= seq.prompt_len:
                self._free_followers(seq)

    def check(self) -> None:
        """Assert every invariant of scheduler and blocks; for tests."""
        self.blocks.check(seq.block_table for seq in self.running)
        assert all(s.state is State.RUNNING for s in self.running) and all(
            s.state is State.WAITING for s in self.waiting
        )
        assert self.running == sorted(self.running, key=_arrival) and self.waiting == sorted(self.waiting, key=_arrival)
        assert not any(s.block_table or s.num_computed for s in self.waiting), "a waiting sequence holds blocks"
        assert all(self.blocks.blocks_for(s.num_computed) <= len(s.block_table) for s in self.running)
        assert len(self.running) <= self.max_running

    # -- parts of schedule ------------------------------------------------------

    def _schedule_running(self, items: list[Item[S]]) -> tuple[int, bool]:
        """Plan the running sequences in order of arrival; (tokens left, whether one was preempted)."""
        budget, preempted, index = self.max_step_tokens, False, 0
        decodes = sum(1 for seq in self.running if seq.remaining == 1)  # of those not visited yet
        while index < len(self.running):
            seq = self.running[index]
            index += 1
            decodes -= seq.remaining == 1
            count = min(seq.remaining, budget - decodes, seq.max_chunk)
            if count <= 0:
                continue
            while not self._grow(seq, seq.num_computed + count):
                victim = self.running.pop()
                decodes -= victim is not seq and victim.remaining == 1
                self._preempt(victim)
                preempted = True
                if victim is seq:
                    break
            else:
                items.append(self._item(seq, count))
                budget -= count
        return budget, preempted

    def _admit(self, items: list[Item[S]], budget: int) -> int:
        """Start waiting sequences, strictly in order of arrival, while their whole known text fits; tokens left."""
        while self.waiting and budget > 0 and len(self.running) < self.max_running:
            seq = self.waiting[0]
            if seq.pending:  # preempted while its last token was being drawn
                break
            prefix = self._prefix(seq)
            need = self.blocks.blocks_for(min(len(seq.tokens), seq.max_computed)) - len(prefix)
            if need + self._spare() > self.blocks.free_without(prefix):
                break
            self.blocks.share(prefix)
            seq.block_table.extend(prefix)
            seq.block_table.extend(self.blocks.allocate(need) or ())
            seq.num_computed = len(prefix) * self.blocks.block_size
            seq.num_committed = seq.num_computed
            if seq.cached_tokens is None:
                seq.cached_tokens = seq.num_computed
                self.prefix_hit_tokens += seq.num_computed
            seq.state = State.RUNNING
            del self.waiting[0]
            insort(self.running, seq, key=_arrival)
            count = min(seq.remaining, budget, seq.max_chunk)
            items.append(self._item(seq, count))
            budget -= count
        return budget

    def _draft(self, items: list[Item[S]], budget: int, propose: Callable[[S, Chance], list[int]]) -> None:
        """Let decodes take drafts, oldest first, from what is left of the step's tokens and of the free blocks."""
        width, draws = self.max_step_tokens - budget, sum(item.draws for item in items)
        free, size = self.blocks.num_free - self._spare(), self.blocks.block_size
        for index, item in enumerate(items):
            seq = item.seq
            if not item.draws or item.count != 1 or seq.num_computed != len(seq.tokens):
                continue
            blocks = len(seq.block_table)
            limit = min(budget, seq.max_computed - seq.num_computed, (blocks + max(0, free)) * size - seq.num_computed)
            drafts = propose(seq, Chance(limit, width, draws)) if limit > 0 else []
            if drafts:
                assert len(drafts) <= limit
                seq.num_computed += len(drafts)
                grown = self._grow(seq, seq.num_computed)
                assert grown, "drafts were given blocks that are not there"
                items[index] = replace(item, count=1 + len(drafts), drafts=tuple(drafts))
                budget -= len(drafts)
                width += len(drafts)
                free -= len(seq.block_table) - blocks

    def _take_back(self, seq: S, computed: int) -> None:
        """Of a sequence whose last drafts were wrong, only `computed` tokens are right."""
        seq.num_computed = computed
        keep = self.blocks.blocks_for(computed)
        self.blocks.release(seq.block_table[keep:])
        del seq.block_table[keep:]

    def _spare(self) -> int:
        """Blocks that stay free: one for each running sequence that may grow, else a newcomer is soon thrown out."""
        return sum(self.blocks.blocks_for(seq.max_computed) > len(seq.block_table) for seq in self.running)

    def _item(self, seq: S, count: int) -> Item[S]:
        start = seq.num_computed
        seq.num_computed += count
        draws = seq.num_computed == len(seq.tokens) + seq.pending
        seq.pending += draws
        return Item(seq, start, count, draws, seq.preemptions)

    def _grow(self, seq: S, num_tokens: int) -> bool:
        """Make the block table long enough for `num_tokens`; False if there are no blocks."""
        need = self.blocks.blocks_for(num_tokens) - len(seq.block_table)
        if need <= 0:
            return True
        taken = self.blocks.allocate(need)
        if taken is None:
            return False
        seq.block_table.extend(taken)
        return True

    def _preempt(self, seq: S) -> None:
        """Take the blocks of a sequence already taken out of `running`; its tokens stay, and it waits."""
        self._release(seq)
        seq.preemptions += 1
        seq.state = State.WAITING
        insort(self.waiting, seq, key=_arrival)
        self.num_preemptions += 1

    def _release(self, seq: S) -> None:
        self.blocks.release(seq.block_table)
        del seq.block_table[:]
        seq.num_computed = seq.num_committed = 0

    # -- sharing ----------------------------------------------------------------

    def _prefix(self, seq: S) -> list[int]:
        """Computed blocks that `seq` can share; never its last token's, whose logits are wanted."""
        if not seq.reuse_prefix:
            return []
        size = self.blocks.block_size
        if self.prefix_cache:
            full = (len(seq.tokens) - 1) // size
            return self.blocks.lookup(self._digests(seq, full))
        leader = seq.leader
        if leader is None or leader.state is not State.RUNNING:
            return []
        return list(leader.block_table[: min(seq.prompt_len - 1, leader.num_committed) // size])

    def _digests(self, seq: S, count: int, more: tuple[int, ...] = ()) -> list[bytes]:
        """The names of the first `count` blocks of tokens and `more`, all full; computed once per sequence."""
        size, known = self.blocks.block_size, seq.digests
        text = [*seq.tokens, *more] if more else seq.tokens
        for index in range(len(known), count):
            parent = known[-1] if known else b""
            known.append(block_digest(parent, text[index * size : (index + 1) * size]))
        return known if len(known) == count else known[:count]

    def _name_blocks(self, seq: S, before: int, computed: int, drafts: tuple[int, ...]) -> None:
        """Offer the blocks that became full to the prefix cache; `drafts` that were right are not in `tokens` yet."""
        named, full = before // self.blocks.block_size, computed // self.blocks.block_size
        if full > named:
            digests = self._digests(seq, full, drafts)
            for index in range(named, full):
                self.blocks.register(seq.block_table[index], digests[index])

    def _free_followers(self, seq: S) -> None:
        for follower in self._held.pop(seq.arrival, ()):
            follower.state = State.WAITING
            insort(self.waiting, follower, key=_arrival)

    @staticmethod
    def _take_out(ordered: list[S], seq: S) -> None:
        index = bisect_left(ordered, seq.arrival, key=_arrival)
        assert ordered[index] is seq
        del ordered[index]
