"""The gradient of attention, tile by tile, from the softmax's maximum and sum that the forward pass wrote."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gallium.vnpu.attention.core import (
    Attention,
    Heads,
    head_parts,
    row_parts,
    scaled_query,
    scores_of,
    sink_of,
    tile_of,
)


@dataclass(frozen=True)
class Forward:
    """What the forward pass left: output [B, N, Sq, Dv], maximum and sum of the softmax [B, N, Sq, 1]."""

    out: Tensor
    maximum: Tensor
    total: Tensor


@dataclass(frozen=True)
class Gradients:
    """Where the results go: views of the shapes of query, key, value; bias and sink in float32, to be added to."""

    query: Tensor
    key: Tensor
    value: Tensor
    bias: Tensor | None = None
    sink: Tensor | None = None


def attend_backward(work: Attention, forward: Forward, out_grad: Tensor, grads: Gradients) -> None:
    """Write the gradients of query, key and value, and add those of bias and sink.

    With P the probabilities, M the dropout mask over keep_prob and dP = M * (dO v^T): dv = (M * P)^T dO,
    dS = P * (dP - rowsum(dO * O)), dq = scale * dS k, dk = scale * dS^T q.
    """
    for heads in head_parts(work):
        key, value = heads.of_keys(work.key), heads.of_keys(work.value)
        key_grad, value_grad = torch.zeros_like(key), torch.zeros_like(value)
        for rows in row_parts(work):
            _tile(work, forward, out_grad, grads, heads, rows, key, value, key_grad, value_grad)
        grads.key[heads] = key_grad
        grads.value[heads] = value_grad


def _tile(
    work: Attention,
    forward: Forward,
    out_grad: Tensor,
    grads: Gradients,
    heads: Heads,
    rows: range,
    key: Tensor,
    value: Tensor,
    key_grad: Tensor,
    value_grad: Tensor,
) -> None:
    def rows_of(x: Tensor) -> Tensor:
        return heads.of_queries(x[:, :, rows.start : rows.stop], work.key.shape[1])

    columns, probabilities = scores_of(work, heads, key, rows)
    keys = slice(columns.start, columns.stop)
    top, total = rows_of(forward.maximum), rows_of(forward.total)
    probabilities.sub_(top).exp_().div_(total + (total == 0))
    dout = rows_of(out_grad).to(torch.float32)
    dot = (dout * rows_of(forward.out)).sum(-1, keepdim=True)
    flat_dout = dout.flatten(2, 3)
    scores_grad = torch.matmul(flat_dout, value[:, :, keys].transpose(-1, -2)).view(probabilities.shape)
    kept = probabilities
    if work.keep is not None:
        mask = tile_of(work, heads, work.keep, rows, columns) / work.keep_prob
        scores_grad.mul_(mask)
        kept = probabilities * mask
    value_grad[:, :, keys] += torch.matmul(kept.flatten(2, 3).transpose(-1, -2), flat_dout)
    scores_grad.sub_(dot).mul_(probabilities)
    if grads.bias is not None:
        into = tile_of(work, heads, grads.bias, rows, columns)
        into += scores_grad.sum_to_size(into.shape) * work.bias_scale
    flat = scores_grad.flatten(2, 3)
    query_grad = torch.matmul(flat, key[:, :, keys]).mul_(work.scale)
    rows_of(grads.query).copy_(query_grad.view(*probabilities.shape[:4], -1))
    query = scaled_query(work, heads, rows).flatten(2, 3)
    key_grad[:, :, keys] += torch.matmul(flat.transpose(-1, -2), query)
    sink = sink_of(work, heads)
    if sink is not None and grads.sink is not None:
        share = (sink - top).exp_().div_(total + (total == 0))
        torch.unflatten(grads.sink, 0, (work.key.shape[1], -1))[heads.kv] -= (share * dot).sum((0, 3, 4))
