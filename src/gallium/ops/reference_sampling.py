"""The definition of `sample`: how one token is drawn from one row of logits, the same on every machine.

Order: adjustments (repetition scale, then bias; float32) -> ids from `vocab_size` on forbidden -> temperature
0 takes the first largest logit. Otherwise, in float64: logits / temperature -> top-k -> top-p -> min-p -> add
Gumbel noise, a pure function of (seed, position, token id) -> the largest wins. All ties go to the lower id.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gallium.ops.handles import FloatArray, IntArray, SamplerInputs
from gallium.ops.philox import gumbel, token_words


def sample(logits: FloatArray, how: SamplerInputs) -> IntArray:
    """One token id per row of `[rows, vocab]` -> int32 `[rows]`."""
    return np.array([sample_row(adjusted(logits[r], how, r), how, r) for r in range(len(logits))], np.int32)


def adjusted(row: FloatArray, how: SamplerInputs, r: int) -> FloatArray:
    """A copy of one row with penalties and biases applied, padding cut off; float32 `[vocab_size]`."""
    row = row[: how.vocab_size].copy()
    mine = slice(how.adjust_start[r], how.adjust_start[r + 1])
    ids, scale, bias = how.adjust_ids[mine], how.adjust_scale[mine], how.adjust_bias[mine]
    old = row[ids]
    row[ids] = np.where(old > 0, old / scale, old * scale) + bias
    return row


def sample_row(row: FloatArray, how: SamplerInputs, r: int) -> int:
    """Draw from one adjusted row."""
    if how.temperature[r] == 0 or row.max() == -np.inf:  # every token forbidden: id 0, as for the greedy case
        return int(np.argmax(row))
    scaled = row.astype(np.float64) / np.float64(how.temperature[r])
    ids = survivors(scaled, int(how.top_k[r]), float(how.top_p[r]), float(how.min_p[r]))
    ids = np.sort(ids)  # argmax then breaks ties towards the lower id
    noise = gumbel(token_words(int(how.seed[r]), int(how.position[r]), ids))
    return int(ids[np.argmax(scaled[ids] + noise)])


def survivors(scaled: NDArray[np.float64], top_k: int, top_p: float, min_p: float) -> NDArray[np.int64]:
    """Ids that may be drawn, best first; the best always survives. `scaled` are logits / temperature `[vocab]`."""
    ids = np.argsort(-scaled, kind="stable")
    if top_k > 0:
        ids = ids[:top_k]
    relative = np.exp(scaled[ids] - scaled[ids[0]])  # p / p_max
    if top_p < 1:
        p = relative / relative.sum()
        before = np.concatenate(([0.0], np.cumsum(p)[:-1]))
        keep = max(1, int((before < top_p).sum()))  # a tiny top_p is 0 in float32
        ids, relative = ids[:keep], relative[:keep]
    if min_p > 0:
        ids = ids[relative >= min_p]
    return ids
