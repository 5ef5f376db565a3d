"""A pretend model that notices every mix-up of blocks, a byte tokenizer, helpers that wait for answers."""

from __future__ import annotations

import codecs
import queue
import threading
from collections.abc import Sequence

import numpy as np

from gallium.engine.async_engine import Engine, EngineLimits
from gallium.engine.draft_model import DraftModel
from gallium.engine.runner import NOTHING, LaneStep, Runner, StepResult
from gallium.errors import GalliumError
from gallium.ops.handles import FloatArray, Step
from gallium.ops.reference_sampling import sample
from gallium.types import Delta, SamplingParams, TokenLogprob

EOS = 256
VOCAB = 257
HEAD_ROWS = 264  # 7 columns of padding, which the pretend model likes best
Cache = dict[int, tuple[int, int]]  # slot -> (position, token)


class PretendRunner(Runner):
    """Logits are a pure function of the text that the block table leads to: a wrong block changes the answer.

    `gate` (if set) lets one step through per release; `fail_at` makes that step raise.
    """

    def __init__(self, block_size: int, lanes: int = 1) -> None:
        self.block_size = block_size
        self.caches: list[Cache] = [{} for _ in range(lanes)]
        self.steps: list[Step] = []
        self.gate: threading.Semaphore | None = None
        self.fail_at: int | None = None

    def run(self, lanes: Sequence[LaneStep | None]) -> list[StepResult]:
        if self.gate is not None:
            self.gate.acquire()
        if self.fail_at == len(self.steps):
            raise RuntimeError("the device caught fire")
        self.steps += [lane.step for lane in lanes if lane is not None]
        pairs = zip(lanes, self.caches, strict=True)
        return [NOTHING if lane is None else self._compute(lane, cache) for lane, cache in pairs]

    def _compute(self, lane: LaneStep, cache: Cache) -> StepResult:
        step, how = lane.step, lane.how
        for slot, position, token in zip(step.slots(self.block_size), step.positions, step.token_ids, strict=True):
            cache[int(slot)] = (int(position), int(token))
        logits = np.array([self._row(step, int(row), cache) for row in step.logit_rows], np.float32)
        logits = logits.reshape(-1, HEAD_ROWS)
        tokens = [] if how is None else sample(logits[: len(how.seed)], how).tolist()
        return StepResult(tokens, logits if lane.want_logits else None)

    def _row(self, step: Step, row: int, cache: Cache) -> FloatArray:
        seq = int(np.searchsorted(step.query_start, row, side="right")) - 1
        text = []
        for position in range(int(step.positions[row]) + 1):
            block = int(step.block_tables[seq, position // self.block_size])
            known, token = cache[block * self.block_size + position % self.block_size]
            assert known == position, "read another sequence's block"
            text.append(token)
        return pretend_logits(text)


def pretend_logits(text: Sequence[int]) -> FloatArray:
    """Logits `[HEAD_ROWS]` after `text`: noise that is fixed by the text; printable ASCII is likelier."""
    rng = np.random.default_rng([len(text), *text])
    logits = rng.standard_normal(HEAD_ROWS).astype(np.float32) * 2
    logits[32:127] += 3
    logits[VOCAB:] += 100
    return logits


class ByteText:
    """A detokenizer for token = byte; ids from 256 on have no text."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, ids: list[int]) -> str:
        return self._decoder.decode(bytes(i for i in ids if i < 256))

    def flush(self) -> str:
        return self._decoder.decode(b"", True)


class PretendDraft(PretendRunner):
    """A model that drafts: says what PretendRunner says for a share of all texts, and knows fewer ids."""

    def __init__(self, block_size: int, skill: float = 1.0) -> None:
        super().__init__(block_size)
        self.skill = skill

    def _row(self, step: Step, row: int, cache: Cache) -> FloatArray:
        logits = super()._row(step, row, cache)
        if int(abs(logits[0]) * 1e4) % 100 >= self.skill * 100:
            logits[40] += 100
        return logits


def pretend_engine(
    *, draft: PretendDraft | None = None, draft_vocab: int = VOCAB, **changes: int | bool
) -> tuple[Engine, PretendRunner]:
    """An engine that is not started yet, over the pretend model; `draft` drafts for it."""
    numbers: dict[str, int | bool] = {
        "num_blocks": 64, "block_size": 4, "max_context": 96, "max_batch": 8, "max_step_tokens": 24,
        "prefix_cache": True, "vocab_size": VOCAB, "head_rows": HEAD_ROWS,
    }  # fmt: skip
    limits = EngineLimits(**(numbers | changes))  # type: ignore[arg-type]
    runner = PretendRunner(limits.block_size, limits.lanes)
    model = None
    if draft is not None:
        model = DraftModel(
            draft,
            block_size=limits.block_size,
            vocab_size=draft_vocab,
            max_positions=limits.max_context,
            max_step_tokens=limits.max_step_tokens,
        )
    return Engine(runner, limits, eos_ids=(EOS,), detokenizer=lambda params: ByteText(), draft_model=model), runner


class Answer:
    """Collects the deltas of one request, choice by choice."""

    def __init__(self, engine: Engine, prompt: Sequence[int] | str, params: SamplingParams) -> None:
        ids = list(prompt.encode()) if isinstance(prompt, str) else prompt
        self.deltas: list[Delta] = []
        self.error: GalliumError | None = None
        self._arrived: queue.SimpleQueue[Delta | GalliumError] = queue.SimpleQueue()
        self._open = params.n
        self.handle = engine.submit(ids, params, self._arrived.put)

    def next(self) -> Delta:
        """Wait for the next delta."""
        delta = self._arrived.get(timeout=120)
        if isinstance(delta, GalliumError):
            self.error = delta
            self._open = 0
            raise delta
        self.deltas.append(delta)
        self._open -= delta.finish_reason is not None
        return delta

    def wait(self) -> Answer:
        """Wait for the end of every choice."""
        while self._open:
            self.next()
        return self

    def of(self, index: int = 0) -> list[Delta]:
        return [d for d in self.deltas if d.index == index]

    def tokens(self, index: int = 0) -> list[int]:
        return [t for d in self.of(index) for t in d.token_ids]

    def text(self, index: int = 0) -> str:
        return "".join(d.text for d in self.of(index))

    def logprobs(self, index: int = 0) -> list[TokenLogprob]:
        return [entry for d in self.of(index) for entry in d.logprobs]

    def last(self, index: int = 0) -> Delta:
        return self.of(index)[-1]


def answer(engine: Engine, prompt: Sequence[int] | str, **params: object) -> Answer:
    """Submit and wait."""
    return Answer(engine, prompt, SamplingParams(**params)).wait()  # type: ignore[arg-type]
