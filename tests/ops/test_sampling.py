"""The definition of `sample`: which tokens may be drawn, how often, and what decides ties."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from tests.ops.sampling_rows import Adjust, Row, inputs

from gallium.ops.handles import FloatArray
from gallium.ops.philox import gumbel, token_words
from gallium.ops.reference_sampling import adjusted, sample, survivors

NEVER = -np.inf
DRAWS = 4000
P = np.array([0.4, 0.05, 0.2, 0.1, 0.15, 0.03, 0.05, 0.02])
LOGITS = np.log(P).astype(np.float32)
CHI_SQUARE_LIMIT = 30.0  # 7 degrees of freedom: exceeded once in ten thousand honest tests


def draw(logits: Sequence[float] | FloatArray, row: Row, vocab_size: int | None = None) -> int:
    values = np.array([logits], np.float32)
    return int(sample(values, inputs([row], vocab_size or values.shape[1]))[0])


def draws(logits: FloatArray, rows: Sequence[Row]) -> FloatArray:
    """How often each token is drawn."""
    chosen = sample(np.tile(logits, (len(rows), 1)), inputs(rows, len(logits)))
    assert chosen.dtype == np.int32
    return np.bincount(chosen, minlength=len(logits)).astype(np.float32)


def chi_square(counts: FloatArray, p: np.ndarray) -> float:
    p = p / p.sum()
    assert (counts[p == 0] == 0).all()
    wanted = p[p > 0] * counts.sum()
    return float(((counts[p > 0] - wanted) ** 2 / wanted).sum())


POSITIONS = [Row(seed=11, position=i) for i in range(DRAWS)]
SEEDS = [Row(seed=i * 2**33 + 5, position=3) for i in range(DRAWS)]


@pytest.mark.parametrize("rows", [POSITIONS, SEEDS], ids=["positions", "seeds"])
def test_tokens_come_as_often_as_their_probability_says(rows: list[Row]) -> None:
    assert chi_square(draws(LOGITS, rows), P) < CHI_SQUARE_LIMIT


def test_neighbouring_positions_are_independent() -> None:
    chosen = sample(np.tile(LOGITS[:3], (DRAWS, 1)), inputs(POSITIONS, 3))
    pairs = np.bincount(chosen[:-1:2] * 3 + chosen[1::2], minlength=9).astype(np.float32)
    assert chi_square(pairs, np.outer(P[:3], P[:3]).ravel()) < CHI_SQUARE_LIMIT


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_temperature_sharpens_and_flattens(temperature: float) -> None:
    rows = [Row(temperature, seed=2, position=i) for i in range(DRAWS)]
    assert chi_square(draws(LOGITS, rows), P ** (1 / temperature)) < CHI_SQUARE_LIMIT


@pytest.mark.parametrize(
    ("limits", "left"),
    [
        ({"top_k": 3}, [0, 2, 4]),
        ({"top_k": 8}, range(8)),
        ({"top_k": 100}, range(8)),
        ({"top_p": 0.59}, [0, 2]),
        ({"top_p": 0.61}, [0, 2, 4]),
        ({"min_p": 0.3}, [0, 2, 4]),
        ({"top_k": 3, "top_p": 0.6}, [0, 2]),  # top-p counts what top-k has left: 0.4 / 0.75 < 0.6
        ({"top_p": 0.61, "min_p": 0.4}, [0, 2]),
        ({"temperature": 0.5, "top_p": 0.78}, [0, 2]),  # of the probabilities at this temperature: 0.68, 0.17, …
    ],
)
def test_who_survives_and_in_which_proportion(limits: dict[str, float], left: Sequence[int]) -> None:
    rows = [Row(seed=8, position=i, **limits) for i in range(DRAWS)]
    p = np.zeros(8)
    p[left] = P[left] ** (1 / limits.get("temperature", 1.0))
    assert chi_square(draws(LOGITS, rows), p) < CHI_SQUARE_LIMIT


@pytest.mark.parametrize("limits", [{"top_k": 1}, {"top_p": 1e-9}, {"top_p": 0.0}, {"min_p": 1.0}])
def test_the_strictest_limits_leave_the_best(limits: dict[str, float]) -> None:
    for position in range(20):
        assert draw([1.0, 4.0, 3.0], Row(position=position, **limits)) == 1


def test_ties_at_the_edge_of_top_k_go_to_the_lower_ids() -> None:
    rows = [Row(seed=1, position=i, top_k=2) for i in range(200)]
    counts = draws(np.array([0, 1, 1, 1], np.float32), rows)
    assert counts[1] > 0 and counts[2] > 0 and counts[0] == counts[3] == 0


def test_min_p_keeps_everything_as_good_as_the_best() -> None:
    rows = [Row(seed=1, position=i, min_p=1.0) for i in range(200)]
    counts = draws(np.array([0, 1, 1, 1], np.float32), rows)
    assert counts[0] == 0 and (counts[1:] > 0).all()


@pytest.mark.parametrize("row", [Row(0.0), Row(0.0, top_k=2, top_p=0.3, min_p=0.9, seed=99, position=7)])
def test_temperature_zero_is_greedy_and_ties_go_to_the_lower_id(row: Row) -> None:
    assert draw([1.0, 3.0, 3.0, 2.0], row) == 1
    assert draw([3.0, 3.0, 3.0], row) == 0


def test_the_noise_is_that_of_seed_position_and_token() -> None:
    row = Row(0.7, seed=2**40 + 17, position=12)
    noise = gumbel(token_words(row.seed, row.position, np.arange(8)))
    assert draw(LOGITS, row) == int(np.argmax(LOGITS.astype(np.float64) / np.float64(np.float32(0.7)) + noise))


def test_a_row_does_not_depend_on_the_others() -> None:
    rng = np.random.default_rng(3)
    logits = rng.normal(0, 2, (40, 50)).astype(np.float32)
    rows = [
        Row(float(rng.choice([0.0, 0.5, 1.3])), int(rng.integers(0, 9)), float(rng.choice([0.4, 1.0])),
            float(rng.choice([0.0, 0.1])), int(rng.integers(0, 2**63)), i, [Adjust(i, 2.0, -1.0)])
        for i in range(40)
    ]  # fmt: skip
    together = sample(logits, inputs(rows, 45))
    assert together.tolist() == [draw(logits[i], rows[i], 45) for i in range(40)]
    order = rng.permutation(40)
    np.testing.assert_array_equal(sample(logits[order], inputs([rows[i] for i in order], 45)), together[order])


def test_no_rows() -> None:
    assert sample(np.zeros((0, 9), np.float32), inputs([], 9)).shape == (0,)


def test_padding_is_never_drawn() -> None:
    """151552 rows against 151365 tokens in GLM-4.5: the tail's logits are whatever training left there."""
    logits = np.array([0.0, 0.0, 9.0, 9.0], np.float32)
    assert {draw(logits, Row(seed=s), vocab_size=2) for s in range(50)} == {0, 1}
    assert draw(logits, Row(0.0), vocab_size=2) == 0


def test_forbidden_tokens_are_never_drawn() -> None:
    bans = [Adjust(0, bias=NEVER), Adjust(2, bias=NEVER)]
    rows = [Row(seed=s, adjust=bans) for s in range(300)]
    counts = draws(LOGITS, rows)
    assert counts[0] == counts[2] == 0 and counts[4] > 0


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_when_every_token_is_forbidden_it_is_the_first(temperature: float) -> None:
    row = Row(temperature, top_k=2, top_p=0.5, min_p=0.1, adjust=[Adjust(i, bias=NEVER) for i in range(3)])
    assert draw([1.0, 2.0, 3.0], row) == 0


def test_adjustments_scale_first_and_then_add() -> None:
    logits = np.array([2.0, -2.0, 0.0, 5.0, 7.0], np.float32)
    row = Row(adjust=[Adjust(0, 4.0, 1.0), Adjust(1, 4.0, 1.0), Adjust(2, 4.0, 1.0), Adjust(4, bias=-0.5)])
    found = adjusted(logits, inputs([row], 5), 0)
    assert found.dtype == np.float32 and found.tolist() == [1.5, -7.0, 1.0, 5.0, 6.5]
    assert logits.tolist() == [2.0, -2.0, 0.0, 5.0, 7.0]


def test_each_row_has_its_own_adjustments() -> None:
    rows = [Row(0.0, adjust=[Adjust(1, bias=5.0)]), Row(0.0), Row(0.0, adjust=[Adjust(2, bias=5.0), Adjust(0, 9.0)])]
    assert sample(np.tile(np.float32([2, 1, 0]), (3, 1)), inputs(rows, 3)).tolist() == [1, 0, 2]


def test_an_adjustment_can_change_who_ties() -> None:
    assert draw([3.0, 1.0, 3.0], Row(0.0, adjust=[Adjust(0, bias=-1.0), Adjust(1, bias=2.0)])) == 1


@given(
    arrays(np.float64, st.integers(1, 30), elements=st.floats(-50, 50, width=32)),
    st.integers(0, 40),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_survivors_are_a_best_first_beginning_of_the_order(
    scaled: np.ndarray, top_k: int, top_p: float, min_p: float
) -> None:
    ids = survivors(scaled, top_k, top_p, min_p).tolist()
    order = sorted(range(len(scaled)), key=lambda i: (-scaled[i], i))
    assert 1 <= len(ids) <= (top_k or len(scaled)) and ids == order[: len(ids)]
