"""`sample` on the device: the definition of ops/reference_sampling.py for all rows at once, noise included."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from gallium.ops.handles import SamplerInputs

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)  # added to the two key words after each round
_LOW = 0xFFFFFFFF
_ROUNDS = 10


def noise_words(seed: torch.Tensor, position: torch.Tensor, vocab: int) -> torch.Tensor:
    """The Philox4x32-10 word of every token id, as `ops.philox.token_words`: int64 `[rows]` twice -> `[rows, vocab]`.

    32-bit words are kept in int64. A product of two may pass 2^63: it wraps, and its bits are still the right ones.
    """
    groups = torch.arange(-(-vocab // 4), device=seed.device)
    c1 = groups.expand(len(seed), -1)
    c0 = (position & _LOW)[:, None].expand_as(c1)
    c2 = c3 = torch.zeros_like(c1)
    k0, k1 = (seed & _LOW)[:, None], ((seed >> 32) & _LOW)[:, None]
    for _ in range(_ROUNDS):
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((p1 >> 32) & _LOW) ^ c1 ^ k0,
            p1 & _LOW,
            ((p0 >> 32) & _LOW) ^ c3 ^ k1,
            p0 & _LOW,
        )
        k0, k1 = (k0 + _WEYL[0]) & _LOW, (k1 + _WEYL[1]) & _LOW
    return torch.stack((c0, c1, c2, c3), dim=-1).flatten(1)[:, :vocab]


def gumbel(words: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Standard Gumbel noise `-ln(-ln u)`, u = (word + 0.5) / 2^32.

    In float32 an u near 1 has lost its last bits; there `ln u` is taken from 1 - u, which has all that count.
    """
    u = (words.to(dtype) + 0.5) * 2.0**-32
    if dtype == torch.float64:
        return -torch.log(-torch.log(u))
    rest = ((_LOW - words).to(dtype) + 0.5) * 2.0**-32  # 1 - u
    return -torch.log(-torch.where(words > _LOW // 2, torch.log1p(-rest), torch.log(u)))


def adjusted(logits: torch.Tensor, how: SamplerInputs) -> torch.Tensor:
    """float32 `[rows, vocab_size]` with penalties and biases applied, padding cut off."""
    rows = logits[:, : how.vocab_size].float().clone()
    if len(how.adjust_ids):
        owner = np.repeat(np.arange(len(rows)), np.diff(how.adjust_start))
        at = _to(owner * how.vocab_size + how.adjust_ids.astype(np.int64), rows)
        scale, bias = _to(how.adjust_scale, rows), _to(how.adjust_bias, rows)
        values = rows.view(-1)
        old = values[at]
        values[at] = torch.where(old > 0, old / scale, old * scale) + bias
    return rows


def survivors(scaled: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor, min_p: torch.Tensor) -> torch.Tensor:
    """Boolean `[rows, vocab]`: the ids that may be drawn; limits are `[rows, 1]`, `top_k` the vocabulary where off."""
    best, ids = torch.sort(scaled, dim=-1, descending=True, stable=True)
    rank = torch.arange(best.shape[1], device=best.device)
    kept = rank < top_k
    relative = torch.exp(best - best[:, :1]).masked_fill(~kept, 0)  # p / p_max
    p = relative / relative.sum(dim=-1, keepdim=True)
    before = torch.cumsum(p, dim=-1).roll(1, dims=-1)
    before[:, 0] = 0
    kept &= (top_p >= 1) | (before < top_p) | (rank == 0)
    kept &= (min_p <= 0) | (relative >= min_p)
    return torch.zeros_like(kept).scatter(-1, ids, kept)


def sample(logits: torch.Tensor, how: SamplerInputs, dtype: torch.dtype) -> torch.Tensor:
    """One token id per row of `[rows, vocab]` -> int32 `[rows]`. What is done depends on `how` alone: no waiting.

    `dtype` is that of scaled logits and noise: float64 where the device has it.
    """
    rows = adjusted(logits, how)
    if not len(rows):
        return torch.zeros(0, dtype=torch.int32, device=logits.device)
    tokens = rows.argmax(dim=-1)
    drawn = np.flatnonzero(how.temperature != 0)
    if len(drawn):
        at = _to(drawn, rows)
        tokens = tokens.index_copy(0, at, _draw(rows.index_select(0, at), how, drawn, dtype))
    return tokens.int()


def _draw(rows: torch.Tensor, how: SamplerInputs, drawn: NDArray[np.int64], dtype: torch.dtype) -> torch.Tensor:
    """Draw from adjusted rows `[drawn, vocab_size]`, all of a temperature above 0 -> int64 `[drawn]`."""
    scaled = rows.to(dtype) / _to(how.temperature[drawn], rows).to(dtype)[:, None]
    top_k, top_p, min_p = how.top_k[drawn], how.top_p[drawn], how.min_p[drawn]
    seed = how.seed[drawn].view(np.int64)
    words = noise_words(_to(seed, rows), _to(how.position[drawn].astype(np.int64), rows), rows.shape[1])
    noisy = scaled + gumbel(words, dtype)
    if (top_k > 0).any() or (top_p < 1).any() or (min_p > 0).any():
        ranks = np.where(top_k > 0, top_k, rows.shape[1]).astype(np.int64)
        limits = (_to(array, rows)[:, None] for array in (ranks, top_p, min_p))
        k, p, m = limits
        noisy = noisy.masked_fill(~survivors(scaled, k, p.to(dtype), m.to(dtype)), -torch.inf)
    return noisy.argmax(dim=-1)


def _to(array: NDArray[np.generic], like: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(like.device)
