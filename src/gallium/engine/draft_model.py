"""A second, smaller model whose tokens are tried as drafts: what it has read of each choice, and its steps.

It draws with the noise that the choice itself draws with, so that both take the same token as often as can be. Its
cache has the blocks of the model's own cache, block by block: whatever shares, frees or evicts a block there does so
here, and it can never run out alone.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from gallium.engine.request import Choice, Job
from gallium.engine.runner import LaneStep, Runner
from gallium.engine.sampling import SamplingState, sampler_inputs
from gallium.engine.scheduler import Schedule
from gallium.engine.speculate import UNKNOWN, Offer
from gallium.engine.step_builder import Part, lay_out
from gallium.engine.step_times import StepTimes
from gallium.ops.handles import SamplerInputs
from gallium.types import SamplingParams

NEAR = 4  # tokens of one choice that are read together with those of others, in the step that draws the first draft
WARM_UP = 3  # steps that show what one takes


class DraftModel:
    """Drafts for all choices of an engine with one lane. Used by the engine's thread only."""

    def __init__(
        self, runner: Runner, *, block_size: int, vocab_size: int, max_positions: int, max_step_tokens: int
    ) -> None:
        self._runner = runner
        self._block_size = block_size
        self._vocab_size = vocab_size  # ids that it knows and the model can draw
        self._max_positions = max_positions
        self._max_step_tokens = max_step_tokens
        self._left = max_step_tokens  # tokens that may still be read in this step of the engine
        self._partly: list[tuple[Choice, int]] = []  # reads so many tokens in this step, and drafts in a later one
        self._names: dict[int, bytes] = {}  # block -> the name of the content that this model has computed
        self.times = StepTimes()
        self.seconds = 0.0

    def warm_up(self) -> None:
        """Find out what a step takes, before anybody waits for one."""
        state = SamplingState(SamplingParams(), (), 0, self._vocab_size)
        for _ in range(WARM_UP):
            self._run([Part((0,), 0, (0,), 1)], [state], [1])

    # -- before a step of the engine -----------------------------------------------------

    def offer(self, choice: Choice, limit: int, draws: int) -> Offer | None:
        """What up to `limit` drafts for this choice would take, in a step that draws for `draws` choices; or None."""
        behind = self._behind(choice)
        limit = min(limit, self._max_positions - len(choice.tokens))
        if limit <= 0 or not self._knows(choice):
            return None
        step = self.times.expected(draws) / draws  # of all choices together, as if they all took as many drafts
        catch_up = 0.0 if behind <= NEAR else self.times.expected(behind)
        return Offer(limit, step, catch_up, choice.max_computed - choice.num_computed)

    def reserve(self, choice: Choice) -> bool:
        """Whether drafts can be had in this step; if it is too far behind, it reads on instead."""
        behind = self._behind(choice)
        if behind <= NEAR or behind <= self._left:
            self._left -= 0 if behind <= NEAR else behind
            return True
        if self._left > 0:
            self._partly.append((choice, self._left))
            self._left = 0
        return False

    def _behind(self, choice: Choice) -> int:
        """Tokens that are to be read before the first draft; at least the last one."""
        reading = choice.reading
        if reading.epoch != choice.preemptions:  # it has blocks that it had not: those of its prefix may be known
            reading.epoch, reading.tokens = choice.preemptions, self._known_prefix(choice)
        return len(choice.tokens) - reading.tokens

    def _known_prefix(self, choice: Choice) -> int:
        full = min(len(choice.digests), len(choice.block_table), (len(choice.tokens) - 1) // self._block_size)
        for index in range(full):
            if self._names.get(choice.block_table[index]) != choice.digests[index]:
                return index * self._block_size
        return full * self._block_size

    def _knows(self, choice: Choice) -> bool:
        """Whether the text has only tokens that this model has, too."""
        reading, tokens = choice.reading, choice.tokens
        while reading.checked < len(tokens) and tokens[reading.checked] < self._vocab_size:
            reading.checked += 1
        return reading.checked == len(tokens)

    # -- in a step of the engine --------------------------------------------------------

    def fill(self, plan: Schedule[Job]) -> None:
        """Tell the drafts that a plan leaves UNKNOWN."""
        places: list[int] = []
        wanted: list[tuple[Choice, int]] = []
        for place, item in enumerate(plan.items):
            if item.drafts[:1] == (UNKNOWN,) and isinstance(item.seq, Choice):
                places.append(place)
                wanted.append((item.seq, len(item.drafts)))
        for place, drafts in zip(places, self.draft(wanted), strict=True):
            plan.items[place] = replace(plan.items[place], drafts=tuple(drafts))

    def draft(self, wanted: Sequence[tuple[Choice, int]]) -> list[list[int]]:
        """So many drafts for each of these choices, whose block tables have room for them."""
        for choice, count in self._partly:
            self._read(choice, choice.reading.tokens + count)
        self._partly, self._left = [], self._max_step_tokens
        for choice, _ in wanted:
            if self._behind(choice) > NEAR:
                self._read(choice, len(choice.tokens) - 1)
        drafts: list[list[int]] = [[] for _ in wanted]
        states = [choice.sampling for choice, _ in wanted]
        for number in range(max((count for _, count in wanted), default=0)):
            going = [index for index, (_, count) in enumerate(wanted) if count > number]
            parts = [self._next(wanted[index][0], drafts[index]) for index in going]
            positions = [len(wanted[index][0].tokens) + number for index in going]
            drawn = self._run(parts, [states[index] for index in going], positions)
            for index, part, token in zip(going, parts, drawn, strict=True):
                wanted[index][0].reading.tokens = part.start + len(part.tokens)
                states[index] = states[index].ahead((token,))[-1]
                drafts[index].append(token)
        for choice, _ in wanted:
            self._name_blocks(choice)
        return drafts

    def settle(self, choice: Choice, right: int) -> None:
        """Only the first `right` tokens of what was read have proved to be the choice's own."""
        choice.reading.tokens = min(choice.reading.tokens, right)

    def _read(self, choice: Choice, end: int) -> None:
        """Compute the choice's tokens up to `end`, in chunks."""
        reading = choice.reading
        while reading.tokens < end:
            until = min(end, reading.tokens + self._max_step_tokens)
            self._run([Part(choice.tokens[reading.tokens : until], reading.tokens, choice.block_table, 0)])
            reading.tokens = until
        self._name_blocks(choice)

    def _next(self, choice: Choice, drafts: list[int]) -> Part:
        """What is to be read for the next draft: known tokens for the first, then the draft before it."""
        tokens = drafts[-1:] or choice.tokens[choice.reading.tokens :]
        return Part(tokens, choice.reading.tokens, choice.block_table, 1)

    def _run(self, parts: list[Part], states: Sequence[SamplingState] = (), positions: Sequence[int] = ()) -> list[int]:
        """One step; what was drawn for each part, if there are states to draw with."""
        for part in parts:
            first, last = part.start // self._block_size, (part.start + len(part.tokens) - 1) // self._block_size
            for block in part.blocks[first : last + 1]:
                self._names.pop(block, None)
        start = time.perf_counter()
        how = within(sampler_inputs(states, positions, self._vocab_size)) if states else None
        [result] = self._runner.run([LaneStep(lay_out(parts, self._block_size), how, False)])
        spent = time.perf_counter() - start
        self.times.observe(sum(len(part.tokens) for part in parts), spent)
        self.seconds += spent
        return result.tokens

    def _name_blocks(self, choice: Choice) -> None:
        """Remember which of the choice's blocks are complete here, for whoever shares them."""
        full = min(choice.reading.tokens // self._block_size, len(choice.digests))
        for index in range(full - 1, -1, -1):
            block = choice.block_table[index]
            if self._names.get(block) == choice.digests[index]:
                break
            self._names[block] = choice.digests[index]

    def close(self) -> None:
        """Give back what the runner holds."""
        self._runner.close()


def within(how: SamplerInputs) -> SamplerInputs:
    """`how` without adjustments of tokens that the draft model does not have."""
    known = how.adjust_ids < how.vocab_size
    if known.all():
        return how
    start = np.concatenate([np.zeros(1, np.int32), np.cumsum(known, dtype=np.int32)])[how.adjust_start]
    return replace(
        how,
        adjust_start=start,
        adjust_ids=how.adjust_ids[known],
        adjust_scale=how.adjust_scale[known],
        adjust_bias=how.adjust_bias[known],
    )
