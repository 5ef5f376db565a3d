"""Rows of a table: Embedding and its gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from gallium.vnpu.registry import op
from gallium.vnpu.writing import into, write


@op("Embedding")
def embedding(weight: Tensor, indices: Tensor, out: Tensor) -> None:
    """The rows of `weight` at `indices`."""
    if out.is_contiguous():
        into(torch.index_select, out.view(-1, weight.shape[-1]), weight, 0, indices.reshape(-1))
    else:
        write(out, torch.nn.functional.embedding(indices, weight))


@op("EmbeddingDenseBackward")
def embedding_dense_backward(
    grad_output: Tensor, indices: Tensor, num_weights: int, padding_idx: int, scale_grad_by_freq: bool, out: Tensor
) -> None:
    """Sums of gradients per row; none for the row `padding_idx`, of which -1 is none (and comes unsigned: 2^64 - 1)."""
    padding = padding_idx - (1 << 64) if padding_idx >= 1 << 63 else padding_idx
    args = (grad_output, indices.long(), num_weights, padding, scale_grad_by_freq)
    write(out, torch.ops.aten.embedding_dense_backward(*args))
