"""Checkpoints whose maker has quantised them: against float, and against another backend with the same integers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tests.checkpoints.test_make_modelslim import made
from tools.make_modelslim import Recipe

from gallium.errors import UsageError
from gallium.settings import EngineSettings
from gallium.verify.comparing import compare, judge_of
from gallium.verify.faults import self_test
from gallium.verify.opening import Pair, open_pair, prompts_of
from gallium.verify.rounding import per_token, rounded
from gallium.verify.verdicts import Judge


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(made(tmp_path_factory.mktemp("slim"), Recipe("w8a8-dynamic"))[1])


@pytest.fixture(scope="module")
def pair(folder: str) -> Pair:
    return open_pair(folder, EngineSettings(backend="cpu"))


def test_the_reference_has_them_as_floats(pair: Pair) -> None:
    assert pair.tested.label == "cpu, int8 (the checkpoint's integers)"
    assert pair.other.label == "reference, float32"
    assert judge_of(pair.tested, pair.other) == Judge("int8", None, integers=True)
    found = compare(pair.tested, pair.other, prompts_of(pair, [], 12), 4)
    assert found.verdict == "drift"


def test_faults_are_found_there_too(pair: Pair) -> None:
    assert all(outcome.good for outcome in self_test(pair.tested, pair.other, prompts_of(pair, [], 12)))


def test_the_same_integers_may_differ_by_their_floats_alone(pair: Pair) -> None:
    other = replace(pair.tested, backend="another")
    assert judge_of(pair.tested, other) == Judge("bfloat16", "bfloat16")
    found = compare(pair.tested, other, prompts_of(pair, [], 12), 4)
    assert {row.finding.error for row in found.ops if row.op == "linear"} == {0.0}


def test_a_wrong_scale_of_the_integers_shows(pair: Pair, folder: str) -> None:
    again = open_pair(folder, EngineSettings(backend="cpu"))
    honest = again.tested.ops.linear
    again.tested.ops.linear = lambda x, w: honest(x, w) * np.float32(1.1)  # type: ignore[method-assign, operator]
    found = compare(again.tested, pair.tested, prompts_of(pair, [], 12), 2)
    assert {row.op for row in found.ops if row.finding.verdict == "wrong"} >= {"linear"}


def test_auto_is_the_same_precision(folder: str) -> None:
    with pytest.raises(UsageError, match="cpu in int8 would be compared with itself"):
        open_pair(folder, EngineSettings(backend="cpu"), "cpu")
    pair = open_pair(folder, EngineSettings(backend="cpu"), "cpu", "float32")
    assert pair.other.label == "cpu, float32"


def test_a_grid_of_8_bits_per_row() -> None:
    x = np.array([[127.0, 1.4, -0.6], [0.0, 0.0, 0.0], [-2.54, 0.011, 1.0]], np.float32)
    wanted = [[127.0, 1.0, -1.0], [0.0, 0.0, 0.0], [-2.54, 0.02, 1.0]]
    np.testing.assert_allclose(per_token(x), wanted, rtol=1e-6)
    assert per_token(np.zeros((0, 3), np.float32)).shape == (0, 3)


def test_rounding_is_to_the_nearest_and_to_even() -> None:
    x = np.array([1.0, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, -1.5, 0.0, 3e38], np.float32)
    wanted = np.array([1.0, 1.0, 1 + 2**-6, 1 + 2**-7, -1.5, 0.0, rounded(x, "bfloat16")[-1]], np.float32)
    np.testing.assert_array_equal(rounded(x, "bfloat16"), wanted)
    np.testing.assert_array_equal(rounded(x, "int4"), wanted)
    np.testing.assert_array_equal(rounded(x[:6], "float16"), x[:6].astype(np.float16).astype(np.float32))
    assert rounded(x, "float32") is x
