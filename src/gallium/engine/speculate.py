"""Speculative decoding: which drafts a decode takes, how many, and when it is better left alone.

A draft is accepted if it is the very token that is drawn in its place, with the request's own noise. So drafts decide
how many steps an answer takes and never which tokens it has.
"""

from __future__ import annotations

from collections.abc import Sequence

from gallium.engine.ngrams import PredictedText, Prediction, PromptLookup, Source
from gallium.engine.scheduler import Chance
from gallium.engine.step_times import StepTimes

MOST = 16  # drafts of one sequence in one step
MARGIN = 1.03  # a step must be expected to be that much faster per token
PROBE = 2  # drafts of a trial
FIRST_REST, LONGEST_REST = 8, 256  # chances let pass between trials, doubled while they fail
FADE = 0.93  # how fast a verdict on a draft loses weight
CLASSES = ((2, 0.5), (4, 0.5), (8, 0.7), (16, 0.8))  # (match of at most, share of right drafts to begin with)
LONG = 0.9  # the same for longer matches


class Trust:
    """How often drafts of one kind were right, and how long to rest when they don't pay."""

    def __init__(self, prior: float) -> None:
        self._tried = 3.0
        self._right = prior * self._tried
        self._rest = FIRST_REST
        self._passed = 0

    @property
    def rate(self) -> float:
        """The share of drafts that will be right, of those whose predecessors were."""
        return self._right / self._tried

    def settle(self, drafted: int, accepted: int) -> None:
        """Learn from one verification."""
        tried = accepted + (accepted < drafted)  # nothing is known of what comes after a wrong one
        keep = FADE**tried
        self._tried = self._tried * keep + tried
        self._right = self._right * keep + accepted
        if accepted == drafted:
            self._rest = FIRST_REST

    def wants_trial(self) -> bool:
        """Whether to try again although it does not seem to pay; asked at each chance that is let pass."""
        self._passed += 1
        if self._passed < self._rest:
            return False
        self._passed = 0
        self._rest = min(2 * self._rest, LONGEST_REST)
        return True


class Drafter:
    """The drafts of one choice: from a prediction first, then from its own text."""

    def __init__(self, *, prompt_len: int, vocab_size: int, prediction: PredictedText | None, lookup: bool) -> None:
        self.prediction = None if prediction is None else Prediction(prediction, prompt_len)
        self._predicted = 0 if prediction is None else len(prediction.tokens)
        self._vocab_size = vocab_size  # a prompt may hold padding ids, which are never drawn
        sources: list[Source] = [] if self.prediction is None else [self.prediction]
        if lookup:
            sources.append(PromptLookup())
        self._sources = [(source, [Trust(prior) for prior in (*(p for _, p in CLASSES), LONG)]) for source in sources]
        self._trying: Trust | None = None

    def propose(self, tokens: Sequence[int], chance: Chance, times: StepTimes) -> list[int]:
        """Drafts after `tokens`; none if they are not expected to save time."""
        for source, trusts in self._sources:
            length = source.match(tokens)
            if length == 0:
                continue
            trust = trusts[sum(length > most for most, _ in CLASSES)]
            count = best_count(trust.rate, chance, times)
            if count == 0 and trust.wants_trial():
                count = min(PROBE, chance.limit)
            drafts = source.propose(tokens, count)
            known = next((i for i, draft in enumerate(drafts) if draft >= self._vocab_size), len(drafts))
            if known:
                self._trying = trust
                return drafts[:known]
        return []

    def settle(self, drafted: int, accepted: int) -> None:
        """Learn how many of the last proposal were right."""
        assert self._trying is not None
        self._trying.settle(drafted, accepted)

    def predicted(self, tokens: Sequence[int]) -> tuple[int, int]:
        """(Tokens of the prediction that the answer has, those that it has not), for an answer that ended."""
        if self.prediction is None:
            return 0, 0
        self.prediction.follow(tokens)
        found = min(self.prediction.found, self._predicted)
        return found, self._predicted - found


def best_count(rate: float, chance: Chance, times: StepTimes) -> int:
    """The number of drafts with the most expected tokens per second, 0 if drafts don't pay."""
    best, most = 0, MARGIN * chance.draws / times.expected(chance.width)
    gain, right = 0.0, 1.0
    for count in range(1, min(chance.limit, MOST) + 1):
        right *= rate
        gain += right
        speed = (chance.draws + gain) / times.expected(chance.width + count)
        if speed > most:
            best, most = count, speed
    return best
