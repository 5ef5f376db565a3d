"""Speculative decoding: which drafts a decode takes, how many, and when it is better left alone.

A draft is accepted if it is the very token that is drawn in its place, with the request's own noise. So drafts decide
how many steps an answer takes and never which tokens it has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

from gallium.engine.ngrams import PredictedText, Prediction, PromptLookup, Source
from gallium.engine.scheduler import Chance
from gallium.engine.step_times import StepTimes

Kind: TypeAlias = Literal["prediction", "ngram", "model"]
KINDS: tuple[Kind, ...] = ("prediction", "ngram", "model")
UNKNOWN = -1  # a draft that the draft model is to tell
MOST = 16  # drafts of one sequence in one step
MARGIN = 1.03  # a step must be expected to be that much faster per token
PROBE = 2  # drafts of a trial
FIRST_REST, LONGEST_REST = 8, 256  # chances let pass between trials, doubled while they fail
FADE = 0.93  # how fast a verdict on a draft loses weight
CLASSES = ((2, 0.35), (3, 0.45), (4, 0.5), (8, 0.65), (16, 0.8))
"""(Match of at most, share of right drafts to begin with)."""
LONG = 0.9  # the same for longer matches
MODEL_PRIOR = 0.7  # share of right drafts of a draft model, to begin with
HORIZON = 64  # tokens over which what a draft model has to read first must pay, if the answer may be as long
TRIAL_SHARE = 0.02  # of the time since the last trial: the most that a trial of a draft model may take


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

    @property
    def passed(self) -> int:
        """Chances let pass since the last trial."""
        return self._passed

    def wants_trial(self, affordable: bool = True) -> bool:
        """Whether to try again although it does not seem to pay; asked at each chance that is let pass."""
        self._passed += 1
        if self._passed < self._rest or not affordable:
            return False
        self._passed = 0
        self._rest = min(2 * self._rest, LONGEST_REST)
        return True


class Offer(NamedTuple):
    """What drafts of a draft model would take."""

    limit: int  # the most drafts
    step: float  # seconds for each
    catch_up: float  # seconds before the first
    left: int  # tokens that the answer may still get

    def seconds(self, count: int) -> float:
        """For `count` drafts, with a share of what has to be read first."""
        return count * self.step + self.catch_up / max(1, min(HORIZON, self.left))


class Plan(NamedTuple):
    """A number of drafts, and the tokens per second that are expected of it."""

    drafts: int
    speed: float


@dataclass(slots=True)
class DraftCount:
    """Drafts of one kind."""

    drafted: int = 0
    accepted: int = 0  # of them


class Drafter:
    """The drafts of one choice, from where they promise most: a prediction, its own text, or a draft model.

    `model` is what is known of the draft model's skill from all choices so far; None: there is none.
    """

    def __init__(
        self,
        *,
        prompt_len: int,
        vocab_size: int,
        prediction: PredictedText | None,
        lookup: bool,
        model: Trust | None = None,
    ) -> None:
        self.prediction = None if prediction is None else Prediction(prediction, prompt_len)
        self._predicted = 0 if prediction is None else len(prediction.tokens)
        self._vocab_size = vocab_size  # a prompt may hold padding ids, which are never drawn
        sources: list[tuple[Kind, Source]] = []
        if self.prediction is not None:
            sources.append(("prediction", self.prediction))
        if lookup:
            sources.append(("ngram", PromptLookup()))
        priors = (*(prior for _, prior in CLASSES), LONG)
        self._sources = [(kind, source, [Trust(prior) for prior in priors]) for kind, source in sources]
        self._everybody = model
        self._model: Trust | None = None
        self._trying: Trust | None = None
        self.kind: Kind = "ngram"  # of the last proposal

    def propose(self, tokens: Sequence[int], chance: Chance, times: StepTimes, offer: Offer | None = None) -> list[int]:
        """Drafts after `tokens`; none if they are not expected to save time. UNKNOWN ones are the draft model's."""
        found: list[int] = []
        most = 0.0
        idle: list[tuple[Kind, Source, Trust]] = []
        for kind, source, trusts in self._sources:
            length = source.match(tokens)
            if length == 0:
                continue
            trust = trusts[sum(length > bound for bound, _ in CLASSES)]
            plan = best_count(trust.rate, chance, times)
            if plan.drafts == 0:
                idle.append((kind, source, trust))
            elif plan.speed > most and (drafts := self._known(source.propose(tokens, plan.drafts))):
                found, most = drafts, plan.speed
                self._trying, self.kind = trust, kind
        if offer is not None:
            plan = best_count(self._trust_in_model.rate, chance, times, offer)
            if plan.drafts and plan.speed > most:
                found = [UNKNOWN] * plan.drafts
                self._trying, self.kind = self._trust_in_model, "model"
        return found or self._trial(tokens, chance, times, idle, offer)

    def settle(self, drafted: int, accepted: int) -> None:
        """Learn how many of the last proposal were right."""
        assert self._trying is not None
        self._trying.settle(drafted, accepted)
        if self.kind == "model" and self._everybody is not None:
            self._everybody.settle(drafted, accepted)

    def predicted(self, tokens: Sequence[int]) -> tuple[int, int]:
        """(Tokens of the prediction that the answer has, those that it has not), for an answer that ended."""
        if self.prediction is None:
            return 0, 0
        self.prediction.follow(tokens)
        found = min(self.prediction.found, self._predicted)
        return found, self._predicted - found

    @property
    def _trust_in_model(self) -> Trust:
        if self._model is None:  # now, and not with the request: other answers may have shown more since
            assert self._everybody is not None
            self._model = Trust(self._everybody.rate)
        return self._model

    def _trial(
        self,
        tokens: Sequence[int],
        chance: Chance,
        times: StepTimes,
        idle: Sequence[tuple[Kind, Source, Trust]],
        offer: Offer | None,
    ) -> list[int]:
        """Now and then, a few drafts of what does not seem to pay."""
        count = min(PROBE, chance.limit)
        for kind, source, trust in idle:
            if trust.wants_trial() and (drafts := self._known(source.propose(tokens, count))):
                self._trying, self.kind = trust, kind
                return drafts
        if offer is not None:
            trust = self._trust_in_model
            count = min(count, offer.limit)
            takes = offer.catch_up + count * offer.step + times.expected(chance.width + count)
            allowed = TRIAL_SHARE * (1 + trust.passed) * times.expected(chance.width)
            if best_count(1.0, chance, times, offer).drafts and trust.wants_trial(takes <= allowed):
                self._trying, self.kind = trust, "model"
                return [UNKNOWN] * count
        return []

    def _known(self, drafts: list[int]) -> list[int]:
        """Up to the first that can not be drawn."""
        return drafts[: next((i for i, draft in enumerate(drafts) if draft >= self._vocab_size), len(drafts))]


def best_count(rate: float, chance: Chance, times: StepTimes, offer: Offer | None = None) -> Plan:
    """The number of drafts with the most expected tokens per second, 0 if drafts don't pay.

    Those of an `offer` take time themselves.
    """
    best, most = 0, MARGIN * chance.draws / times.expected(chance.width)
    gain, right = 0.0, 1.0
    limit = chance.limit if offer is None else min(chance.limit, offer.limit)
    for count in range(1, min(limit, MOST) + 1):
        right *= rate
        gain += right
        spent = times.expected(chance.width + count) + (0.0 if offer is None else offer.seconds(count))
        speed = (chance.draws + gain) / spent
        if speed > most:
            best, most = count, speed
    return Plan(best, most)
