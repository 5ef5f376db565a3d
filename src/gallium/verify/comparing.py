"""One comparison of two sides: steps as an engine makes them, and what they show, op by op and layer by layer."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from gallium.models.decoder import Model
from gallium.ops.handles import FloatArray, SamplerInputs
from gallium.ops.reference import ReferenceOps
from gallium.ops.tolerances import TOLERANCES
from gallium.verify.pairing import AFTER, BEFORE, Call, Growth, Pairing, Value, pair_caches, pair_model
from gallium.verify.sides import Sequences, Side, greedy
from gallium.verify.verdicts import Finding, Judge, Verdict, worst_of

DRAWS = 4  # rows of each step that a token is drawn from
DECODE_STEPS = 2  # that are compared op by op, after the prompt


@dataclass(frozen=True)
class OpRow:
    """One op at one place, over all steps."""

    layer: str
    op: str
    site: str
    inside: tuple[str, ...]
    calls: int
    finding: Finding  # the worst


@dataclass(frozen=True)
class LayerRow:
    """One layer: its ops, and how far the tested side's own values have gone from the other's when they leave it."""

    layer: str
    verdict: Verdict
    worst: OpRow | None
    growth: Finding | None  # None before the first layer and after the last


@dataclass(frozen=True)
class LogitStats:
    """The tested side's own logits beside the other's, over all rows; divergences KL(other || tested) in nats."""

    rows: int
    agreeing: int  # rows with the same first choice
    kl_mean: float
    kl_max: float
    largest_error: float  # of one logit
    widest_margin: float  # of the other side between the two first choices, where these differ
    finding: Finding

    @staticmethod
    def of(got: FloatArray, wanted: FloatArray, finding: Finding) -> LogitStats:
        """Count `[rows, vocab]`."""
        with np.errstate(invalid="ignore"):
            divergence = np.nan_to_num(kl(wanted, got), nan=math.inf)
            error = np.nan_to_num(np.abs(got - wanted).max(), nan=math.inf)
        theirs, ours = wanted.argmax(axis=-1), got.argmax(axis=-1)
        at = np.arange(len(wanted))
        margins = wanted[at, theirs] - wanted[at, ours]
        agreeing = int((theirs == ours).sum())
        return LogitStats(
            len(wanted), agreeing, float(divergence.mean()), float(divergence.max()), float(error),
            float(margins.max()), finding,
        )  # fmt: skip


@dataclass(frozen=True)
class Answer:
    """Greedy decoding after one prompt, each side by its own compiled steps."""

    tokens: int
    diverges_at: int | None  # index of the first token that differs
    theirs: int
    ours: int
    margin: float  # by which the other side prefers its token there
    verdict: Verdict
    reason: str


@dataclass
class Comparison:
    """What one run has shown."""

    ops: list[OpRow]
    layers: list[LayerRow]
    logits: LogitStats | None
    answers: list[Answer] = field(default_factory=list)

    @property
    def verdict(self) -> Verdict:
        """The worst of all."""
        return worst_of(
            [row.finding.verdict for row in self.ops]
            + [row.verdict for row in self.layers]
            + ([self.logits.finding.verdict] if self.logits else [])
            + [answer.verdict for answer in self.answers]
        )


def judge_of(tested: Side, other: Side) -> Judge:
    """The rules for two sides. If both multiply the same integers, nothing but their floats can differ."""
    if tested.integers and other.integers:
        return Judge("bfloat16", "bfloat16")
    rounds = None if isinstance(other.ops, ReferenceOps) else other.precision
    return Judge(tested.precision, rounds, integers=tested.integers)


def compare(tested: Side, other: Side, prompts: Sequence[Sequence[int]], new_tokens: int) -> Comparison:
    """Decode greedily on each side, then run prompts and the other's tokens through both, op by op.

    The prompts of at least one token run together: first most of each, then the rest as a second chunk, then
    DECODE_STEPS single tokens.
    """
    count = max(new_tokens, DECODE_STEPS)
    theirs, their_rows = greedy(other, prompts, count)
    ours, _ = greedy(tested, prompts, count)
    pairing = Pairing(tested.ops, other.ops, judge_of(tested, other))
    got, wanted = run_pair(pairing, tested.model, other.model, prompts, [tokens[:DECODE_STEPS] for tokens in theirs])
    routed = tested.model.spec.moe is not None
    finding = judge_growth(pairing.judge, len(tested.model.layers) + 1, got, wanted, routed=routed)
    logits = LogitStats.of(got, wanted, finding)
    answers = []
    for i, prompt in enumerate(prompts):
        answer = _answer(ours[i], theirs[i], [rows[i] for rows in their_rows], logits)
        if answer.verdict == "wrong":
            answer = _looked_into(
                answer, pairing, tested.model, other.model, [*prompt, *theirs[i][: answer.diverges_at]]
            )
        answers.append(answer)
    rows = op_rows(pairing.calls)
    return Comparison(rows, layer_rows(pairing, rows, tested.model), logits, answers)


def run_pair(
    pairing: Pairing, tested: Model, other: Model, prompts: Sequence[Sequence[int]], later: Sequence[Sequence[int]]
) -> tuple[FloatArray, FloatArray]:
    """Run the prompts in two chunks, and after them `later`, one token of each sequence per step.

    What was seen is in the pairing afterwards. Returns the tested side's own logits and the other's, `[rows, vocab]`;
    without a chained lane these are empty.
    """
    lengths = [len(prompt) + len(tokens) for prompt, tokens in zip(prompts, later, strict=True)]
    ours, theirs = (Sequences(lengths, ops.block_size) for ops in (pairing.tested, pairing.other))
    model = pair_model(pairing, tested, other)
    caches = pair_caches(tested, other, (ours.num_blocks, theirs.num_blocks), (ours.block_size, theirs.block_size))
    rows: list[tuple[FloatArray, FloatArray]] = []
    for chunks in _chunks(prompts, later):
        plan = pairing.begin(ours.step(chunks), theirs.step(chunks))
        found = model.forward(plan, caches)
        assert isinstance(found, Value)
        drawn = found[:DRAWS]
        pairing.ops.sample(drawn, _draws(drawn.shape))
        if found.chained is not None:
            rows.append(
                (np.array(pairing.tested.download(found.chained)), np.array(pairing.other.download(found.other)))
            )
    if not rows:
        return np.zeros((0, 0), np.float32), np.zeros((0, 0), np.float32)
    own, led = (np.concatenate(side) for side in zip(*rows, strict=True))
    return own, led


def _chunks(prompts: Sequence[Sequence[int]], later: Sequence[Sequence[int]]) -> Iterable[list[Sequence[int]]]:
    cuts = [max(1, len(prompt) * 3 // 4) for prompt in prompts]
    yield [prompt[:cut] for prompt, cut in zip(prompts, cuts, strict=True)]
    if all(len(prompt) > cut for prompt, cut in zip(prompts, cuts, strict=True)):
        yield [prompt[cut:] for prompt, cut in zip(prompts, cuts, strict=True)]
    for at in range(min(len(tokens) for tokens in later)):
        yield [tokens[at : at + 1] for tokens in later]


def _draws(shape: tuple[int, ...]) -> SamplerInputs:
    """Every second row greedily, the others at temperature 1."""
    rows, vocab = shape
    none = np.zeros(0, np.float32)
    return SamplerInputs(
        temperature=(np.arange(rows) % 2).astype(np.float32),
        top_k=np.zeros(rows, np.int32),
        top_p=np.ones(rows, np.float32),
        min_p=np.zeros(rows, np.float32),
        seed=np.arange(rows, dtype=np.uint64),
        position=np.arange(rows, dtype=np.int32),
        adjust_start=np.zeros(rows + 1, np.int32),
        adjust_ids=np.zeros(0, np.int32),
        adjust_scale=none,
        adjust_bias=none,
        vocab_size=vocab,
    )


def op_rows(calls: Iterable[Call]) -> list[OpRow]:
    """One row per place, in the order of the model."""
    rows: dict[tuple[str, str, str, tuple[str, ...]], list[Finding]] = {}
    for call in calls:
        rows.setdefault((call.layer, call.op, call.site, call.inside), []).append(call.finding)
    return [
        OpRow(*place, calls=len(findings), finding=max(findings, key=lambda one: one.gravity))
        for place, findings in rows.items()
    ]


def layer_rows(pairing: Pairing, ops: Sequence[OpRow], model: Model) -> list[LayerRow]:
    """One row per layer, with what stands before and after them."""
    leaving: dict[str, list[Growth]] = {}
    for one in pairing.growth:
        leaving.setdefault(one.layer, []).append(one)
    rows = []
    for layer in (BEFORE, *map(str, range(len(model.layers))), AFTER):
        here = [row for row in ops if row.layer == layer]
        growth = None
        if layer in leaving:
            got, wanted = (np.concatenate(parts) for parts in zip(*((g, w) for _, g, w in leaving[layer]), strict=True))
            growth = judge_growth(pairing.judge, int(layer) + 1, got, wanted, routed=model.spec.moe is not None)
        verdicts = [row.finding.verdict for row in here] + ([growth.verdict] if growth else [])
        worst = max(here, key=lambda row: row.finding.gravity, default=None)
        rows.append(LayerRow(layer, worst_of(verdicts), worst, growth))
    return rows


def judge_growth(judge: Judge, layers: int, got: FloatArray, wanted: FloatArray, *, routed: bool) -> Finding:
    """Judge the tested side's own values after some layers.

    Roundings of different layers are independent, so they add up like the steps of a random walk: the band grows with
    the root of their number, and is twice that of a block, since a layer has two blocks and reads what it adds to. It
    ends at the largest magnitude of a row, where no value is left. In a model with experts single tokens may go their
    own way: near a tie another expert is chosen.
    """
    factor = min(2 * math.sqrt(layers), 1 / sum(TOLERANCES["gqa", side].rtol for side in judge.sides))
    finding = judge.op("gqa", got, wanted, factor)
    if finding.verdict != "wrong" or not routed or not np.isfinite(got).all():
        return finding
    astray = [judge.op("gqa", a[None], b[None], factor).verdict == "wrong" for a, b in zip(got, wanted, strict=True)]
    if sum(astray) * 2 >= len(astray):
        return finding
    reason = f"{sum(astray)} of {len(astray)} tokens went their own way, as after a near tie between experts"
    return replace(finding, verdict="drift", reason=reason)


def kl(wanted: FloatArray, got: FloatArray) -> FloatArray:
    """KL(wanted || got) of the distributions that logits `[rows, vocab]` mean, in nats per row."""
    p, q = (_log_softmax(logits.astype(np.float64)) for logits in (wanted, got))
    divergence: FloatArray = (np.exp(p) * (p - q)).sum(axis=-1)
    return np.maximum(divergence, 0.0)


def _log_softmax(x: FloatArray) -> FloatArray:
    shifted = x - x.max(axis=-1, keepdims=True)
    found: FloatArray = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return found


def _answer(ours: list[int], theirs: list[int], their_rows: list[FloatArray], stats: LogitStats) -> Answer:
    """Where two answers part, and whether the margin there is no more than the logits are known to differ."""
    at = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b), None)
    if at is None:
        return Answer(len(theirs), None, 0, 0, 0.0, "pass", "equal")
    a, b = ours[at], theirs[at]
    margin = float(their_rows[at][b] - their_rows[at][a])
    seen = f"logits differ by up to {stats.largest_error:.3g} in the steps compared op by op"
    if margin <= 2 * stats.largest_error:
        return Answer(len(theirs), at, b, a, margin, "drift", f"a near tie: {seen}")
    return Answer(len(theirs), at, b, a, margin, "wrong", f"no near tie: {seen}")


def _looked_into(answer: Answer, pairing: Pairing, tested: Model, other: Model, context: list[int]) -> Answer:
    """Run what led to the other token op by op too: is it what the ops give, which are judged there as everywhere?"""
    got, _ = run_pair(pairing, tested, other, [context], [[]])
    if got[-1, answer.ours] >= got[-1, answer.theirs]:
        return replace(answer, verdict="drift", reason="no near tie, but what its ops give one by one, see there")
    return replace(answer, reason=f"{answer.reason}; its ops one by one do not give that token, its compiled steps do")
