"""`sample`: the same token as the definition, whatever the limits, penalties and ties; its noise included."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from tests.conformance.cases import normal, pair
from tests.conformance.targets import Target
from tests.ops.sampling_rows import Adjust, Row, inputs

TEMPERATURES = (0.0, 0.3, 1.0, 2.0)
TOP_K = (0, 1, 7, 300)
TOP_P = (1.0, 0.9, 0.3, 0.0)
MIN_P = (0.0, 0.05, 1.0)
FORBIDDEN = -np.inf


def mixed_rows(vocab: int) -> list[Row]:
    """Every combination of limits, each with its own seed, position and adjustments."""
    rng = np.random.default_rng(vocab)
    rows = []
    for limits in itertools.product(TEMPERATURES, TOP_K, TOP_P, MIN_P):
        ids = rng.choice(vocab, min(vocab, 4), replace=False)
        adjust = [Adjust(int(i), float(rng.choice([1, 1.3, 0.5])), float(rng.choice([0, -1.5, 3]))) for i in ids]
        adjust[0] = Adjust(int(ids[0]), 1.0, FORBIDDEN)
        rows.append(Row(*limits, int(rng.integers(0, 2**64, dtype=np.uint64)), int(rng.integers(0, 2**31)), adjust))
    return rows


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("vocab", [2, 63, 64, 65, 3001])
def test_every_combination_of_limits(target: Target, vocab: int, ties: bool) -> None:
    p, rows = pair(target), mixed_rows(vocab)
    logits = normal(vocab, len(rows), vocab + 5, scale=3)  # with five columns of padding
    p.check("sample", p.tensors(np.round(logits) if ties else logits), inputs(rows, vocab))


def test_padding_is_never_drawn(target: Target) -> None:
    p = pair(target)
    logits = np.zeros((40, 70), np.float32)
    logits[:, 50:] = 100.0
    got, _ = p.check("sample", p.tensors(logits), inputs([Row(seed=s) for s in range(20)] + [Row(0.0)] * 20, 50))
    assert p.ours.download(got).max() < 50


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_every_token_forbidden(target: Target, temperature: float) -> None:
    p = pair(target)
    row = Row(temperature, 3, 0.5, 0.1, adjust=[Adjust(i, bias=FORBIDDEN) for i in range(9)])
    got, _ = p.check("sample", p.tensors(normal(1, 1, 9)), inputs([row], 9))
    assert p.ours.download(got).tolist() == [0]


def test_no_rows(target: Target) -> None:
    p = pair(target)
    got, _ = p.check("sample", p.tensors(np.zeros((0, 9), np.float32)), inputs([], 9))
    assert got.shape == (0,)
