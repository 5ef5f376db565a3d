"""Where drafts come from without a second model: from what followed the same tokens before, or from the client."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from typing import Protocol

SIZE = 2  # tokens that are looked up; a match is then extended backwards
CANDIDATES = 8  # places that are compared, the latest first
LONGEST = 24  # a match is not measured beyond this
NEAR = 8  # tokens of a prediction that an edit may have dropped


class Source(Protocol):
    """Proposes how one growing sequence of tokens goes on."""

    def match(self, tokens: Sequence[int]) -> int:
        """How many of the last tokens speak for what `propose` would say; 0: nothing to say."""
        ...

    def propose(self, tokens: Sequence[int], count: int) -> list[int]:
        """At most `count` tokens, after a `match` of the same tokens."""
        ...


class Ngrams:
    """Every run of SIZE tokens in a text that grows, and where it ended: constant time per token and per question."""

    def __init__(self) -> None:
        self._latest: dict[int, int] = {}  # run -> the place after it, the latest one
        self._before = array("i")  # place -> the place before it with the same run, or -1

    def extend(self, tokens: Sequence[int], end: int) -> None:
        """Know every run whose place (the index of what follows) is below `end`; `tokens` begin as before."""
        for place in range(len(self._before), end):
            if place < SIZE:
                self._before.append(-1)
                continue
            run = _run(tokens, place)
            self._before.append(self._latest.get(run, -1))
            self._latest[run] = place

    def places(self, tokens: Sequence[int], end: int) -> Iterator[int]:
        """The places after the run that ends at `end`, the latest first, at most CANDIDATES."""
        place = self._latest.get(_run(tokens, end), -1) if end >= SIZE else -1
        for _ in range(CANDIDATES):
            if place < 0:
                return
            yield place
            place = self._before[place]


def _run(tokens: Sequence[int], end: int) -> int:
    """The SIZE tokens before `end` as one number; ids have 32 bits."""
    return tokens[end - 2] << 32 | tokens[end - 1]


def _common(one: Sequence[int], one_end: int, two: Sequence[int], two_end: int) -> int:
    """How many tokens before both ends are the same, LONGEST at most."""
    most = min(one_end, two_end, LONGEST)
    for length in range(most):
        if one[one_end - 1 - length] != two[two_end - 1 - length]:
            return length
    return most


class PromptLookup:
    """Proposes what followed the longest recent match of the last tokens, in prompt or answer."""

    def __init__(self) -> None:
        self._ngrams = Ngrams()
        self._place = 0

    def match(self, tokens: Sequence[int]) -> int:
        """See Source."""
        end = len(tokens)
        self._ngrams.extend(tokens, end)
        best = 0
        for place in self._ngrams.places(tokens, end):
            length = _common(tokens, place, tokens, end)
            if length > best:
                best, self._place = length, place
        return best

    def propose(self, tokens: Sequence[int], count: int) -> list[int]:
        """See Source. A text that repeats itself goes on doing so."""
        drafts: list[int] = []
        for place in range(self._place, self._place + count):
            drafts.append(tokens[place] if place < len(tokens) else drafts[place - len(tokens)])
        return drafts


class PredictedText:
    """The tokens that a client expects as the answer; shared by the choices of a request."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self.tokens = tuple(tokens)
        self.ngrams = Ngrams()
        self.ngrams.extend(self.tokens, len(self.tokens) + 1)


class Prediction:
    """Follows an answer through a predicted text: along it, over what was dropped, inserted or replaced.

    `found` counts the answer's tokens that stand where the prediction was followed to.
    """

    def __init__(self, text: PredictedText, prompt_len: int) -> None:
        self._text = text
        self._start = prompt_len
        self._seen = prompt_len  # tokens followed so far
        self._at = 0  # in the prediction: what is expected next
        self._run = 1  # tokens that agreed in a row; at the beginning, trust the client
        self.found = 0

    def match(self, tokens: Sequence[int]) -> int:
        """See Source."""
        self.follow(tokens)
        return self._run if self._at < len(self._text.tokens) else 0

    def propose(self, tokens: Sequence[int], count: int) -> list[int]:
        """See Source."""
        return list(self._text.tokens[self._at : self._at + count])

    def follow(self, tokens: Sequence[int]) -> None:
        """Take in the answer's new tokens."""
        for end in range(self._seen + 1, len(tokens) + 1):
            expected = self._text.tokens[self._at : self._at + 1]
            if expected and expected[0] == tokens[end - 1]:
                self._at += 1
                self._run += 1
            else:
                self._find(tokens, end)
            self.found += self._run > 0
        self._seen = len(tokens)

    def _find(self, tokens: Sequence[int], end: int) -> None:
        """Look for a place where the answer up to `end` may go on; if there is none, stay and wait."""
        best, at = 0, self._at
        if end - self._start >= SIZE:
            for place in self._text.ngrams.places(tokens, end):
                length = min(_common(self._text.tokens, place, tokens, end), end - self._start)
                if (length, -abs(place - self._at)) > (best, -abs(at - self._at)):
                    best, at = length, place
        if best < SIZE:
            near = self._text.tokens[self._at : self._at + NEAR]
            if tokens[end - 1] in near:
                best, at = 1, self._at + near.index(tokens[end - 1]) + 1
            else:
                best = 0
        self._run, self._at = best, at
