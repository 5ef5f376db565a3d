"""The one rule by which results are compared, and that it covers every op."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest

from gallium.ops.handles import Precision
from gallium.ops.interface import op_names
from gallium.ops.tolerances import TOLERANCES, difference

WANTED = np.array([[1.0, -100.0, 0.5], [0.001, 0.002, 0.0]], np.float32)


def test_every_op_has_a_tolerance_and_a_reason_in_every_precision() -> None:
    assert set(TOLERANCES) == {(op, precision) for op in op_names() for precision in get_args(Precision)}
    assert all(rule.reason and 0 <= rule.rtol < 0.5 and 0 <= rule.atol < 1e-3 for rule in TOLERANCES.values())


@pytest.mark.parametrize("op", op_names())
def test_less_precise_is_never_stricter(op: str) -> None:
    allowed = [TOLERANCES[op, precision].rtol for precision in get_args(Precision)]
    assert allowed == sorted(allowed) or op in ("embed", "take_rows", "all_reduce", "kv_write", "index_write")


@pytest.mark.parametrize("op", ["linear", "route", "embed"])
def test_equal_is_equal(op: str) -> None:
    assert difference(op, "float32", WANTED.copy(), WANTED) is None


def test_a_difference_is_measured_against_the_largest_of_its_own_row() -> None:
    rtol = TOLERANCES["linear", "float32"].rtol
    off = np.zeros_like(WANTED)
    off[0, 2] = 100 * rtol * 0.9
    assert difference("linear", "float32", WANTED + off, WANTED) is None
    off[:] = 0
    off[1, 2] = 100 * rtol * 0.9
    said = difference("linear", "float32", WANTED + off, WANTED)
    assert said is not None
    assert "1 of 6 elements differ too much; the first at (1, 2): " in said and "reference 0," in said
    assert TOLERANCES["linear", "float32"].reason in said


def test_copies_are_exact_in_float32() -> None:
    nudged = np.nextafter(WANTED, np.float32(np.inf))
    assert difference("embed", "float32", nudged, WANTED) is not None
    assert difference("embed", "bfloat16", nudged, WANTED) is None


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_always_differs(value: float) -> None:
    got = WANTED.copy()
    got[1, 0] = value
    said = difference("linear", "int4", got, WANTED)
    assert said is not None and "(1, 0)" in said


def test_ids_must_be_equal() -> None:
    ids = np.array([[3, 100_000]], np.int32)
    assert difference("route", "int4", ids.copy(), ids) is None
    said = difference("route", "int4", ids + np.int32([0, 1]), ids)
    assert said is not None and "the first at (0, 1): 100001, reference 100000" in said


def test_shapes_must_be_equal() -> None:
    assert difference("linear", "float32", WANTED.T, WANTED) == "shape (3, 2), the reference has (2, 3)"
    assert difference("linear", "float32", WANTED[:0], WANTED[:0]) is None
