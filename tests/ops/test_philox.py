"""Philox4x32-10 against the known answers of Random123, and the noise that is made of its words."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from gallium.ops.philox import gumbel, philox4x32, token_words

ONES = 0xFFFFFFFF


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ONES,) * 4, (ONES, ONES), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),  # the digits of pi
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_known_answers(counter: Sequence[int], key: tuple[int, int], words: Sequence[int]) -> None:
    found = philox4x32(np.array([counter], np.uint32), key)
    assert found.dtype == np.uint32 and found.tolist() == [list(words)]


def test_counters_are_independent_rows() -> None:
    counters = np.random.default_rng(0).integers(0, 2**32, (50, 4), dtype=np.uint32)
    together = philox4x32(counters, (1, 2))
    alone = [philox4x32(counters[i : i + 1], (1, 2))[0] for i in range(50)]
    np.testing.assert_array_equal(together, alone)
    assert philox4x32(counters[:0], (1, 2)).shape == (0, 4)


@pytest.mark.parametrize(
    ("seed", "position", "token", "counter", "key"),
    [
        (0, 0, 0, (0, 0, 0, 0), (0, 0)),
        (5, 9, 7, (9, 1, 0, 0), (5, 0)),
        ((3 << 32) | 4, 70_000, 151_551, (70_000, 37_887, 0, 0), (4, 3)),
        (2**64 - 1, 2**31 - 1, 2**31 - 1, (2**31 - 1, 2**29 - 1, 0, 0), (ONES, ONES)),
    ],
)
def test_a_token_s_word(seed: int, position: int, token: int, counter: Sequence[int], key: tuple[int, int]) -> None:
    """Key: the seed, low word first. Counter: (position, token id // 4, 0, 0). Lane: token id % 4."""
    (word,) = token_words(seed, position, np.array([token]))
    assert word == philox4x32(np.array([counter], np.uint32), key)[0, token % 4]


def test_a_token_s_word_does_not_depend_on_the_other_tokens() -> None:
    ids = np.arange(1000)
    words = token_words(42, 3, ids)
    assert len(set(words.tolist())) > 990
    some = np.array([999, 4, 4, 0, 501])
    np.testing.assert_array_equal(token_words(42, 3, some), words[some])


def test_seed_and_position_change_every_word() -> None:
    ids = np.arange(1000)
    base = token_words(1, 1, ids)
    for seed, position in [(2, 1), (1, 2), (1 + 2**32, 1), (1, 1 + 2**16)]:
        assert (token_words(seed, position, ids) == base).sum() <= 1


def test_gumbel_noise_is_finite_and_rises_with_the_word() -> None:
    noise = gumbel(np.array([0, 1, 2**31, ONES - 1, ONES], np.uint32))
    assert noise.dtype == np.float64 and np.isfinite(noise).all() and (np.diff(noise) > 0).all()
    assert noise[2] == pytest.approx(-np.log(np.log(2)))


def test_gumbel_noise_has_the_moments_of_its_law() -> None:
    noise = gumbel(token_words(7, 0, np.arange(100_000)))
    assert noise.mean() == pytest.approx(np.euler_gamma, abs=0.02)
    assert noise.var() == pytest.approx(np.pi**2 / 6, abs=0.04)
