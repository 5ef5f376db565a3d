"""How a result of the tested backend is judged: pass, drift as expected for its precision, or wrong.

An element may differ by a share of the largest magnitude in its row (`ops/tolerances.py`). What stays within the share
of float32 passes; what stays within the share of the precision is drift as expected; what lies beyond is wrong. Both
backends round, so each adds its own share, except the reference: it is the definition.

Errors of a reduced precision are sums of many roundings and have a tail: a few elements (STRAYS of them) may differ by
up to STRAY times as much before the result counts as wrong. In float32 none may.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gallium.ops.handles import FloatArray, MoeSpec, Precision
from gallium.ops.reference import sigmoid, softmax
from gallium.ops.tolerances import TOLERANCES, is_float, row_scale
from gallium.verify.rounding import leeway

Verdict = Literal["pass", "drift", "wrong"]
VERDICTS: tuple[Verdict, ...] = ("pass", "drift", "wrong")
MEANING = {
    "pass": "within what float32 allows",
    "drift": "beyond float32, within what the precision allows",
    "wrong": "beyond what the precision allows",
}
STRAYS, STRAY = 0.02, 2.0
TIE = 1e-5  # scores of experts that differ by less may be ordered either way: their last bits are the backend's own


def worst_of(verdicts: Iterable[Verdict]) -> Verdict:
    """The gravest; "pass" if there are none."""
    return max(verdicts, key=VERDICTS.index, default="pass")


@dataclass(frozen=True, slots=True)
class Finding:
    """One comparison. Errors are shares of the largest magnitude of the element's row, infinite if not a number.

    What is told of one element is told of that which goes furthest towards, or beyond, what is allowed for it.
    """

    verdict: Verdict
    error: float
    mean: float  # over all elements
    allowed: float
    where: tuple[int, ...]
    got: float
    wanted: float
    reason: str

    @property
    def gravity(self) -> tuple[int, float]:
        """Orders findings, the worst last."""
        return VERDICTS.index(self.verdict), self.error / self.allowed if self.allowed else self.error


EXACT = Finding("pass", 0.0, 0.0, 0.0, (), 0.0, 0.0, "nothing to compare")


@dataclass(frozen=True, slots=True)
class Judge:
    """The rules for one pair of precisions; `other` is None if the other backend is the reference."""

    tested: Precision
    other: Precision | None
    integers: bool = False  # the tested side alone multiplies a checkpoint's integers

    @property
    def sides(self) -> list[Precision]:
        """The precisions that round."""
        return [self.tested] if self.other is None else [self.tested, self.other]

    def op(
        self, op: str, got: FloatArray, wanted: FloatArray, growth: float = 1.0, swayed: FloatArray | None = None
    ) -> Finding:
        """Judge one result of one op.

        `growth` widens the bands for what went through several ops; `swayed`, what the other side gives for rounded
        inputs, widens that of the precision by what rounding alone changes in each row.
        """
        if got.shape != wanted.shape:
            reason = f"shape {got.shape}, not {wanted.shape}"
            return Finding("wrong", math.inf, math.inf, 0.0, (), math.nan, math.nan, reason)
        if got.size == 0:
            return EXACT
        if not is_float(wanted):
            return _whole_numbers(got, wanted)
        with np.errstate(invalid="ignore", over="ignore"):  # what is not a number is found below
            difference = np.abs(got.astype(np.float64) - wanted.astype(np.float64))
        difference[~np.isfinite(difference)] = math.inf
        scale = row_scale(np.nan_to_num(wanted, nan=0.0, posinf=0.0, neginf=0.0))
        sides = self.sides
        exact: list[Precision] = ["float32"] * len(sides)
        fine, coarse = (self._allowed(op, rules, scale, growth) for rules in (exact, sides))
        if swayed is not None and np.isfinite(swayed).all():
            coarse = coarse + leeway(op, self.tested) * np.abs(swayed - wanted.astype(np.float64)).max(
                axis=-1, keepdims=True
            )
        excess = np.divide(difference, coarse, out=np.where(difference > 0, math.inf, 0.0), where=coarse > 0)
        at = np.unravel_index(int(excess.argmax()), excess.shape)
        beyond = int((excess > 1).sum())
        strays = max(1, int(STRAYS * excess.size)) if sides != exact else 0
        wrong = beyond > strays or excess[at] > STRAY or (beyond > 0 and not strays)
        verdict: Verdict = "wrong" if wrong else "drift" if (difference > fine).any() else "pass"
        relative = np.divide(difference, scale, out=difference.copy(), where=scale > 0)
        row = np.broadcast_to(scale, difference.shape)[at]
        return Finding(
            verdict,
            float(relative[at]),
            float(relative.mean()),
            float(np.broadcast_to(coarse, difference.shape)[at] / (row or 1.0)),
            tuple(int(i) for i in at),
            float(got[at]),
            float(wanted[at]),
            self._reason(op, verdict, beyond, difference),
        )

    @staticmethod
    def _allowed(op: str, sides: list[Precision], scale: NDArray[np.float64], growth: float) -> NDArray[np.float64]:
        rules = [TOLERANCES[op, precision] for precision in sides]
        total: NDArray[np.float64] = growth * (sum(r.atol for r in rules) + sum(r.rtol for r in rules) * scale)
        return total

    def _reason(self, op: str, verdict: Verdict, beyond: int, difference: NDArray[np.float64]) -> str:
        if verdict == "wrong":
            lost = int(np.isinf(difference).sum())
            kind = f", {lost} of them not finite" if lost else ""
            return f"{beyond} of {difference.size} elements differ too much{kind}"
        if verdict == "pass":
            return MEANING["pass"]
        reasons = dict.fromkeys(TOLERANCES[op, side].reason for side in self.sides if side != "float32")
        strays = [f"{beyond} of {difference.size} elements stray"] if beyond else []
        return "; ".join([*strays, *reasons])

    def routing(
        self, got: tuple[FloatArray, Any], wanted: tuple[FloatArray, Any], choice: NDArray[np.float64]
    ) -> Finding:
        """Judge `route`: its ids by the score that chose them, `choice` `[tokens, experts]`; weights expert by expert.

        Where two scores differ by less than TIE, either expert may be taken.
        """
        ids = [one[1].astype(np.int64) for one in (got, wanted)]
        if ids[0].shape != ids[1].shape or ids[0].size == 0 or (ids[0] == ids[1]).all():
            return max(
                (self.op("route", a, b) for a, b in zip(got, wanted, strict=True)), key=lambda found: found.gravity
            )
        known = (ids[0] >= 0) & (ids[0] < choice.shape[1])
        scores = [np.take_along_axis(choice, np.where(known, one, 0), axis=1) for one in ids]
        gap = np.where(ids[0] == ids[1], 0.0, np.abs(scores[0] - scores[1]))
        gap[~known] = math.inf
        at = np.unravel_index(int(gap.argmax()), gap.shape)
        tie = bool(gap.max() < TIE)
        place = tuple(int(i) for i in at)
        changed = int((np.sort(ids[0], axis=1) != np.sort(ids[1], axis=1)).any(axis=1).sum())
        reason = f"{changed} of {len(gap)} tokens choose other experts, whose scores differ by up to {gap.max():.2g}"
        if tie:
            reason += ": a tie, which the last bit decides"
        error = float(gap.max())
        chosen = Finding(
            "drift" if tie else "wrong", error, error, TIE, place, float(ids[0][at]), float(ids[1][at]), reason
        )
        same = (ids[0] == ids[1]).all(axis=1)
        return max(chosen, self.op("route", got[0][same], wanted[0][same]), key=lambda found: found.gravity)


def choice_scores(logits: FloatArray, bias: FloatArray, spec: MoeSpec) -> NDArray[np.float64]:
    """What `route` chooses experts by: scores plus bias, `[tokens, experts]`."""
    scores = sigmoid(logits) if spec.scoring == "sigmoid" else softmax(logits)
    chosen: NDArray[np.float64] = scores.astype(np.float64) + bias
    return chosen


def _whole_numbers(got: FloatArray, wanted: FloatArray) -> Finding:
    """Ids and positions are equal or wrong."""
    bad = got != wanted
    if not bad.any():
        return Finding("pass", 0.0, 0.0, 0.0, (), 0.0, 0.0, "equal")
    at = np.unravel_index(int(bad.argmax()), bad.shape)
    share = float(bad.mean())
    reason = f"{int(bad.sum())} of {bad.size} ids differ"
    return Finding("wrong", 1.0, share, 0.0, tuple(int(i) for i in at), float(got[at]), float(wanted[at]), reason)
