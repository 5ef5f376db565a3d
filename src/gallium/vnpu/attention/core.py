"""The attention itself: tiles of scores in float32 that fit the cache of a CPU, and the statistics of the softmax.

Every operator comes here with views [B, N, S, D]. out = softmax(scale * q k^T + bias, over the keys that are seen) v.
A query that sees no key gets zeros, a sum of 0 and the lowest float32 as its maximum.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from gallium.vnpu.attention.visibility import Visible

LOWEST = torch.finfo(torch.float32).min
ROWS = 64  # queries of a tile, at most; both are measured, not computed
TILE = 1 << 18  # scores of a tile, about


@dataclass(frozen=True)
class Attention:
    """One computation for all sequences of a batch, which share lengths and limits.

    query [B, N, Sq, D], key [B, Nkv, Skv, D], value [B, Nkv, Skv, Dv]; N is a multiple of Nkv.
    bias: added to the scaled scores after multiplication with bias_scale; broadcasts to [B, N, Sq, Skv].
    sink: [N], one more score per head that takes part in the softmax and has no value.
    keep: bool, broadcasts to [B, N, Sq, Skv]: probabilities that dropout keeps, with the share keep_prob.
    weight_scale: the exponentials are multiplied with it and rounded to int8 before they meet the values.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    scale: float
    visible: Visible = field(default_factory=Visible)
    bias: Tensor | None = None
    bias_scale: float = 1.0
    sink: Tensor | None = None
    keep: Tensor | None = None
    keep_prob: float = 1.0
    weight_scale: float | None = None

    @property
    def group(self) -> int:
        """How many heads of the query share one of the key."""
        return self.query.shape[1] // self.key.shape[1]

    @property
    def full_shape(self) -> tuple[int, int, int, int]:
        """[B, N, Sq, Skv]."""
        batch, heads, queries, _ = self.query.shape
        return batch, heads, queries, self.key.shape[2]


class Heads(NamedTuple):
    """A part of the work: some sequences and some heads of the key."""

    batch: slice
    kv: slice

    def of_queries(self, x: Tensor, kv_heads: int) -> Tensor:
        """The part of [B or 1, N or 1, ..] as [b, kv, group, ..]."""
        part = x if x.shape[0] == 1 else x[self.batch]
        return part.unsqueeze(1) if x.shape[1] == 1 else torch.unflatten(part, 1, (kv_heads, -1))[:, self.kv]

    def of_keys(self, x: Tensor) -> Tensor:
        """The part of [B, Nkv, ..] in float32, contiguous."""
        return x[self.batch, self.kv].to(torch.float32).contiguous()


def attend(work: Attention, out: Tensor, maximum: Tensor | None = None, total: Tensor | None = None) -> None:
    """Write the output [B, N, Sq, Dv] and, if asked for, the softmax's maximum and sum, [B, N, Sq, copies]."""
    kv_heads = work.key.shape[1]
    for heads in head_parts(work):
        key, value = heads.of_keys(work.key), heads.of_keys(work.value)
        out_part = heads.of_queries(out, kv_heads)
        sink = sink_of(work, heads)
        for rows in row_parts(work):
            columns, scores = scores_of(work, heads, key, rows)
            top = highest(scores, sink)
            scores.sub_(top).exp_()
            scores_sum = scores.sum(-1, keepdim=True)
            if sink is not None:
                scores_sum += (sink - top).exp_()
            weights = _weights(work, heads, scores, rows, columns)
            part = torch.matmul(weights.flatten(2, 3), value[:, :, columns.start : columns.stop])
            part = part.view(*scores.shape[:4], -1)
            out_part[..., rows.start : rows.stop, :] = part.div_((scores_sum + (scores_sum == 0)).mul_(work.keep_prob))
            if maximum is not None:
                heads.of_queries(maximum, kv_heads)[..., rows.start : rows.stop, :] = top
            if total is not None:
                heads.of_queries(total, kv_heads)[..., rows.start : rows.stop, :] = scores_sum


def log_sum_exp(maximum: Tensor, total: Tensor) -> Tensor:
    """log(sum) + max, the "softmax_lse" of inference; minus infinity where no key is seen."""
    return total.log() + maximum


def head_parts(work: Attention) -> Iterator[Heads]:
    """Parts of the batch and of the heads that fill a tile; one of the two is whole or single."""
    batch, kv_heads = work.query.shape[0], work.key.shape[1]
    per_head = max(1, work.group * min(ROWS, work.query.shape[2]) * work.key.shape[2])
    together = max(1, TILE // per_head)
    if together >= kv_heads:
        step = max(1, together // kv_heads)
        for first in range(0, batch, step):
            yield Heads(slice(first, min(first + step, batch)), slice(0, kv_heads))
        return
    for sequence in range(batch):
        for first in range(0, kv_heads, together):
            yield Heads(slice(sequence, sequence + 1), slice(first, min(first + together, kv_heads)))


def row_parts(work: Attention) -> Iterator[range]:
    """Ranges of queries for the tiles of one head part."""
    queries, per_row = work.query.shape[2], max(1, work.group * work.key.shape[2])
    step = min(ROWS, max(32, TILE // per_row))
    for first in range(0, queries, step):
        yield range(first, min(first + step, queries))


def scaled_query(work: Attention, heads: Heads, rows: range) -> Tensor:
    """[b, kv, group, rows, D] in float32, multiplied with the scale."""
    part = heads.of_queries(work.query, work.key.shape[1])[..., rows.start : rows.stop, :]
    return part.to(torch.float32) * work.scale


def scores_of(work: Attention, heads: Heads, key: Tensor, rows: range) -> tuple[range, Tensor]:
    """The keys that are computed for these queries, and their scores [b, kv, group, rows, keys], -inf where hidden."""
    columns = work.visible.columns(rows, key.shape[2])
    query = scaled_query(work, heads, rows)
    flat = torch.matmul(query.flatten(2, 3), key[:, :, columns.start : columns.stop].transpose(-1, -2))
    scores = flat.view(*query.shape[:4], len(columns))
    if work.bias is not None:
        bias = tile_of(work, heads, work.bias, rows, columns)
        scores.add_(bias, alpha=work.bias_scale)
    work.visible.hide(scores, rows, columns)
    if work.visible.hidden is not None:
        scores.masked_fill_(tile_of(work, heads, work.visible.hidden, rows, columns), -torch.inf)
    return columns, scores


def tile_of(work: Attention, heads: Heads, full: Tensor, rows: range, columns: range) -> Tensor:
    """The part of a tensor that broadcasts to [B, N, Sq, Skv], for scores [b, kv, group, rows, columns]."""
    if full.shape[2] != 1:
        full = full[:, :, rows.start : rows.stop]
    return heads.of_queries(full[..., columns.start : columns.stop], work.key.shape[1])


def sink_of(work: Attention, heads: Heads) -> Tensor | None:
    """The sink scores of these heads, [1, kv, group, 1, 1] in float32."""
    if work.sink is None:
        return None
    return heads.of_queries(work.sink.to(torch.float32)[None, :, None, None], work.key.shape[1])


def highest(scores: Tensor, sink: Tensor | None) -> Tensor:
    """The largest score of each query."""
    if scores.shape[-1] == 0:
        top = scores.new_full((*scores.shape[:-1], 1), LOWEST)
    else:
        top = scores.amax(-1, keepdim=True).clamp_(min=LOWEST)
    return top if sink is None else torch.maximum(top, sink)


def _weights(work: Attention, heads: Heads, exponentials: Tensor, rows: range, columns: range) -> Tensor:
    if work.keep is not None:
        exponentials.mul_(tile_of(work, heads, work.keep, rows, columns))
    if work.weight_scale is not None:
        exponentials.mul_(work.weight_scale).round_().clamp_(-128, 127)
    return exponentials
