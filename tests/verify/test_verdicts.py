"""The three verdicts: where one ends and the next begins, and what is said of it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gallium.ops.handles import MoeSpec, Precision
from gallium.ops.tolerances import TOLERANCES
from gallium.verify.verdicts import STRAY, Judge, choice_scores, worst_of

WANTED = np.random.default_rng(0).standard_normal((40, 50)).astype(np.float32)
WANTED[:, 0] = 10.0  # the largest of each row


def off(by: float, rows: int = 1) -> np.ndarray:
    got = WANTED.copy()
    got[:rows, 7] += 10.0 * by
    return got


@pytest.mark.parametrize("precision", ["float16", "bfloat16", "int8", "int4"])
def test_bands_of_a_reduced_precision(precision: Precision) -> None:
    judge = Judge(precision, None)
    fine, coarse = (TOLERANCES["linear", p].rtol for p in ("float32", precision))
    assert judge.op("linear", off(fine * 0.9), WANTED).verdict == "pass"
    assert judge.op("linear", off(fine * 1.5), WANTED).verdict == "drift"
    found = judge.op("linear", off(coarse * 0.99), WANTED)
    assert (found.verdict, found.reason) == ("drift", TOLERANCES["linear", precision].reason)
    assert found.error == pytest.approx(coarse * 0.99, rel=1e-3)
    assert found.where == (0, 7)
    assert judge.op("linear", off(coarse * 1.2, rows=40), WANTED).verdict == "drift", "2 % may stray"
    assert judge.op("linear", off(coarse * STRAY * 1.1), WANTED).verdict == "wrong"
    many = np.where(np.arange(50) % 10 == 1, WANTED + 12 * coarse, WANTED)
    found = judge.op("linear", many.astype(np.float32), WANTED)
    assert (found.verdict, found.reason) == ("wrong", "200 of 2000 elements differ too much")


def test_float32_has_no_drift_and_no_strays() -> None:
    judge = Judge("float32", None)
    limit = TOLERANCES["linear", "float32"].rtol
    assert judge.op("linear", off(limit * 0.9), WANTED).verdict == "pass"
    assert judge.op("linear", off(limit * 1.2), WANTED).verdict == "wrong"


def test_each_side_that_rounds_adds_its_share() -> None:
    limit = TOLERANCES["linear", "float32"].rtol
    assert Judge("float32", "float32").op("linear", off(limit * 1.9), WANTED).verdict == "pass"
    assert Judge("float32", "float32").op("linear", off(limit * 2.1), WANTED).verdict == "wrong"
    both = TOLERANCES["linear", "bfloat16"].rtol + TOLERANCES["linear", "int8"].rtol
    found = Judge("bfloat16", "int8").op("linear", off(both * 0.95), WANTED)
    assert found.verdict == "drift" and "bfloat16" in found.reason and "8 bits" in found.reason


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_a_number_is_wrong(value: float) -> None:
    got = off(0.0)
    got[3, 4] = value
    found = Judge("int4", None).op("linear", got, WANTED)
    assert found.verdict == "wrong" and found.where == (3, 4) and found.error == math.inf
    assert found.reason.endswith("1 of them not finite")


def test_another_shape_is_wrong_and_nothing_is_right() -> None:
    judge = Judge("float32", None)
    assert judge.op("linear", WANTED[:1], WANTED).reason == "shape (1, 50), not (40, 50)"
    assert judge.op("linear", WANTED[:0], WANTED[:0]).verdict == "pass"


def test_ids_are_equal_or_wrong() -> None:
    judge, ids = Judge("int4", None), np.array([3, 1, 2], np.int32)
    assert judge.op("sample", ids.copy(), ids).verdict == "pass"
    found = judge.op("sample", np.array([3, 1, 5], np.int32), ids)
    assert (found.verdict, found.where, found.got, found.wanted) == ("wrong", (2,), 5.0, 2.0)


def test_what_rounding_alone_changes_widens_the_band_of_the_precision() -> None:
    judge, limit = Judge("bfloat16", None), TOLERANCES["attend", "bfloat16"].rtol
    got = off(limit * 3)
    assert judge.op("attend", got, WANTED).verdict == "wrong"
    assert judge.op("attend", got, WANTED, swayed=off(limit)).verdict == "drift"
    assert judge.op("attend", off(limit * 30), WANTED, swayed=off(limit)).verdict == "wrong"


SPEC = MoeSpec(4, 2, "sigmoid", True, 1.0)


def routed(logits: list[float], ids: list[int]) -> tuple[np.ndarray, np.ndarray]:
    scores = choice_scores(np.array([logits], np.float32), np.zeros(4, np.float32), SPEC)
    weights = np.take_along_axis(scores, np.array([ids]), axis=1)
    return (weights / weights.sum()).astype(np.float32), np.array([ids], np.int32)


@pytest.mark.parametrize(
    ("logits", "got", "verdict"),
    [
        ([3.0, 2.0, 1.0, 0.0], [0, 1], "pass"),
        ([3.0, 2.0, 1.0, 0.0], [0, 2], "wrong"),
        ([3.0, 2.0, 1.0, 0.0], [1, 0], "wrong"),
        ([3.0, 2.000001, 2.0, 0.0], [0, 2], "drift"),
        ([3.0, 2.0, 1.0, 0.0], [0, -1], "wrong"),
    ],
)
def test_routing_may_differ_at_a_tie_only(logits: list[float], got: list[int], verdict: str) -> None:
    scores = choice_scores(np.array([logits], np.float32), np.zeros(4, np.float32), SPEC)
    found = Judge("float32", None).routing(routed(logits, got), routed(logits, [0, 1]), scores)
    assert found.verdict == verdict
    if verdict != "pass":
        assert "choose other experts" in found.reason or "1 of 1" in found.reason or "0 of 1" in found.reason


def test_wrong_weights_of_the_right_experts_are_wrong() -> None:
    scores = choice_scores(np.array([[3.0, 2.0, 1.0, 0.0]], np.float32), np.zeros(4, np.float32), SPEC)
    weights, ids = routed([3.0, 2.0, 1.0, 0.0], [0, 1])
    found = Judge("float32", None).routing((weights * np.float32(1.001), ids), (weights, ids), scores)
    assert found.verdict == "wrong" and "elements differ" in found.reason


def test_the_gravest_verdict_counts() -> None:
    assert worst_of(["pass", "wrong", "drift"]) == "wrong"
    assert worst_of(["drift", "pass"]) == "drift"
    assert worst_of([]) == "pass"
