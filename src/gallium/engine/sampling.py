"""From sampling parameters to what the device samples with, and log-probabilities from raw logits.

A draw depends on the row's logits, the choice's seed and the token's position, and on nothing else.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from copy import copy
from typing import Any

import numpy as np

from gallium.errors import InvalidRequest
from gallium.ops.handles import FloatArray, IntArray, SamplerInputs
from gallium.types import SamplingParams, TokenLogprob

_MASK = 2**64 - 1


def choice_seed(seed: int, index: int) -> int:
    """The 64-bit seed of choice `index`: the request's own for the first, SplitMix64 outputs for the others.

    SplitMix64 (Steele, Lea, Flood 2014): state + index * golden gamma, then two xor-multiply rounds.
    """
    if index == 0:
        return seed & _MASK
    z = (seed + index * 0x9E3779B97F4A7C15) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


def fresh_seed() -> int:
    """A 64-bit seed from the operating system, for requests that give none."""
    return int.from_bytes(os.urandom(8), "little")


def check_token_ids(params: SamplingParams, vocab_size: int, eos_ids: Collection[int]) -> None:
    """Refuse token ids that the model does not have, and a `min_tokens` that leaves nothing to draw."""
    for name, ids in (("logit_bias", params.logit_bias), ("stop_token_ids", params.stop_token_ids)):
        for token_id in ids:
            if isinstance(token_id, bool) or not isinstance(token_id, int) or not 0 <= token_id < vocab_size:
                raise InvalidRequest(f"{name} has token id {token_id!r}, but ids are 0 to {vocab_size - 1}.", name)
    if params.min_tokens and len(ending_ids(params, eos_ids)) >= vocab_size:
        raise InvalidRequest("min_tokens forbids every token, for all of them end the answer.", "min_tokens")


def ending_ids(params: SamplingParams, eos_ids: Collection[int]) -> frozenset[int]:
    """The token ids that end this request's answers."""
    return frozenset(params.stop_token_ids).union(() if params.ignore_eos else eos_ids)


class SamplingState:
    """One choice's seed, penalties and biases, kept up to date token by token.

    `ids`, `scale` and `bias` `[adjustments]` are the adjustments of the next draw, as SamplerInputs defines
    them. Repetition is counted over prompt and output (as Hugging Face does), presence and frequency over the
    output (as OpenAI does).
    """

    __slots__ = (
        "_bias", "_drawn", "_forbidden", "_ids", "_num_drawn", "_penalised", "_scale", "_slots",
        "count", "params", "seed",
    )  # fmt: skip

    def __init__(
        self,
        params: SamplingParams,
        prompt: Sequence[int],
        seed: int,
        vocab_size: int,
        eos_ids: Collection[int] = (),
    ) -> None:
        self.params = params
        self.seed = seed  # of this choice, see choice_seed
        self.count = 0  # adjustments in use; the arrays behind them have room to spare
        self._slots: dict[int, int] = {}
        self._drawn: set[int] = set()
        self._num_drawn = 0
        self._penalised = (
            params.repetition_penalty != 1.0 or params.presence_penalty != 0.0 or params.frequency_penalty != 0.0
        )
        seen: dict[int, None] = {}  # a prompt may hold padding ids, which are never drawn
        if params.repetition_penalty != 1.0:
            seen = {token_id: None for token_id in dict.fromkeys(prompt) if token_id < vocab_size}
        self._forbidden = ending_ids(params, eos_ids) if params.min_tokens else frozenset()
        known = {**seen, **dict.fromkeys(params.logit_bias), **dict.fromkeys(self._forbidden)}
        room = len(known) + (16 if self._penalised else 0)
        self._ids = np.zeros(room, np.int32)
        self._scale = np.ones(room, np.float32)
        self._bias = np.zeros(room, np.float32)
        for token_id in known:
            slot = self._slot(token_id)
            self._bias[slot] = params.logit_bias.get(token_id, 0.0)
            if token_id in seen:
                self._scale[slot] = params.repetition_penalty
        for token_id in self._forbidden:
            self._bias[self._slots[token_id]] = -np.inf

    @property
    def ids(self) -> IntArray:
        """Adjusted token ids, unique."""
        return self._ids[: self.count]

    @property
    def scale(self) -> FloatArray:
        """Repetition penalty of each adjusted token."""
        return self._scale[: self.count]

    @property
    def bias(self) -> FloatArray:
        """What is added to each adjusted token's logit."""
        return self._bias[: self.count]

    def accept(self, token_id: int) -> None:
        """Count a drawn token."""
        self._num_drawn += 1
        if self._penalised:
            slot = self._slot(token_id)
            self._bias[slot] -= self.params.frequency_penalty
            if token_id not in self._drawn:
                self._drawn.add(token_id)
                self._bias[slot] -= self.params.presence_penalty
                self._scale[slot] = self.params.repetition_penalty
        if self._forbidden and self._num_drawn == self.params.min_tokens:
            for token in self._forbidden:  # none of them was drawn, so none has a penalty yet
                self._bias[self._slots[token]] = self.params.logit_bias.get(token, 0.0)
            self._forbidden = frozenset()

    def ahead(self, drafts: Sequence[int]) -> list[SamplingState]:
        """This state, and those after each of the drafts if they are all accepted. Nothing changes here."""
        states = [self]
        if not (self._penalised or self._forbidden):
            return states * (1 + len(drafts))
        for token_id in drafts:
            state = copy(states[-1])
            state._slots, state._drawn = dict(state._slots), set(state._drawn)
            state._ids, state._scale, state._bias = state._ids.copy(), state._scale.copy(), state._bias.copy()
            state.accept(token_id)
            states.append(state)
        return states

    def _slot(self, token_id: int) -> int:
        slot = self._slots.get(token_id)
        if slot is None:
            slot = self._slots[token_id] = self.count
            if slot == len(self._ids):
                more = slot + 16
                self._ids = np.concatenate([self._ids, np.zeros(more, np.int32)])
                self._scale = np.concatenate([self._scale, np.ones(more, np.float32)])
                self._bias = np.concatenate([self._bias, np.zeros(more, np.float32)])
            self._ids[slot] = token_id
            self.count += 1
        return slot


def sampler_inputs(states: Sequence[SamplingState], positions: Sequence[int], vocab_size: int) -> SamplerInputs:
    """The device's view of one draw per row; `positions` are those of the tokens being drawn."""
    rows = len(states)
    start = np.zeros(rows + 1, np.int32)
    adjusted = [state for state in states if state.count]
    if adjusted:
        np.cumsum([state.count for state in states], out=start[1:])
    params = [state.params for state in states]
    return SamplerInputs(
        temperature=np.array([p.temperature for p in params], np.float32),
        top_k=np.array([p.top_k for p in params], np.int32),
        top_p=np.array([p.top_p for p in params], np.float32),
        min_p=np.array([p.min_p for p in params], np.float32),
        seed=np.array([state.seed for state in states], np.uint64),
        position=np.array(positions, np.int32),
        adjust_start=start,
        adjust_ids=_joined([state.ids for state in adjusted], np.int32),
        adjust_scale=_joined([state.scale for state in adjusted], np.float32),
        adjust_bias=_joined([state.bias for state in adjusted], np.float32),
        vocab_size=vocab_size,
    )


def _joined(parts: list[Any], dtype: type[np.generic]) -> Any:
    return np.concatenate(parts) if parts else np.zeros(0, dtype)


def token_logprob(logits: FloatArray, token_id: int, top: int) -> TokenLogprob:
    """Log-softmax in float64 of one row of raw logits `[vocab]`, at the drawn token and the `top` best.

    Ties among the best go to the lower id. The row must not contain the padding of the vocabulary.
    """
    row = logits.astype(np.float64)
    row -= row.max()
    norm = float(np.log(np.exp(row).sum()))
    best: tuple[tuple[int, float], ...] = ()
    top = min(top, len(row))
    if top:
        threshold = np.partition(row, -top)[-top]
        ids = np.flatnonzero(row >= threshold)
        ids = ids[np.argsort(-row[ids], kind="stable")][:top]
        best = tuple((int(i), float(row[i]) - norm) for i in ids)
    return TokenLogprob(token_id, float(row[token_id]) - norm, best)
