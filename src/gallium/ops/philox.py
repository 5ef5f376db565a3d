"""Philox4x32-10, the counter-based random generator whose words become sampling noise on every backend.

The algorithm and its constants are those of Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy
as 1, 2, 3" (SC 2011); test vectors of the authors' Random123 library stand in `tests/ops/test_philox.py`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)  # added to the two key words after each round
_LOW = np.uint64(0xFFFFFFFF)
_HIGH = np.uint64(32)
_ROUNDS = 10


def philox4x32(counter: NDArray[np.uint32], key: tuple[int, int]) -> NDArray[np.uint32]:
    """Four random words per counter: uint32 `[n, 4]` -> uint32 `[n, 4]`. `key` is two 32-bit words."""
    c0, c1, c2, c3 = (counter[:, lane].astype(np.uint64) for lane in range(4))
    k0, k1 = key
    for _ in range(_ROUNDS):
        p0, p1 = _MULTIPLIERS[0] * c0, _MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (
            (p1 >> _HIGH) ^ c1 ^ np.uint64(k0),
            p1 & _LOW,
            (p0 >> _HIGH) ^ c3 ^ np.uint64(k1),
            p0 & _LOW,
        )
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + _WEYL[1]) & 0xFFFFFFFF
    return np.stack((c0, c1, c2, c3), axis=1).astype(np.uint32)


def token_words(seed: int, position: int, tokens: NDArray[np.int64]) -> NDArray[np.uint32]:
    """The word of each token id `[n]` -> uint32 `[n]`.

    Key: the 64-bit seed, low word first. Counter: (position, id // 4, 0, 0). Lane: id % 4.
    """
    counter = np.zeros((len(tokens), 4), np.uint32)
    counter[:, 0] = position & 0xFFFFFFFF
    counter[:, 1] = tokens >> 2
    words = philox4x32(counter, (seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF))
    picked: NDArray[np.uint32] = words[np.arange(len(tokens)), tokens & 3]
    return picked


def gumbel(words: NDArray[np.uint32]) -> NDArray[np.float64]:
    """Standard Gumbel noise `-ln(-ln u)` of random words, u = (word + 0.5) / 2^32; float64."""
    u = (words.astype(np.float64) + 0.5) * 2.0**-32
    noise: NDArray[np.float64] = -np.log(-np.log(u))
    return noise
