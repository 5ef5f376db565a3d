"""Rows of a table: Embedding, its gradient, EmbeddingBag, EmbeddingRenorm."""

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


@op("EmbeddingRenorm")
def embedding_renorm(self: Tensor, indices: Tensor, max_norm: float, norm_type: float) -> None:
    """Rows at `indices` scaled down to at most `max_norm`, in place."""
    torch.embedding_renorm_(self, indices.long(), max_norm, norm_type)


@op("EmbeddingBag")
def embedding_bag(
    weight: Tensor,
    indices: Tensor,
    offsets: Tensor,
    scale_grad_by_freq: bool,
    mode: int,
    sparse: bool,
    per_sample_weights: Tensor | None,
    include_last_offset: bool,
    padding_idx: int,
    out: Tensor,
    offset2bag: Tensor,
    bag_size: Tensor,
    max_indices: Tensor,
) -> None:
    """Sums (mode 0), means (1) or maxima (2) of the rows of each bag; and what the gradient needs.

    op-plugin makes the three further outputs larger than PyTorch in some modes; what is over is zero.
    """
    results = torch.ops.aten._embedding_bag(
        weight,
        indices,
        offsets.to(indices.dtype),
        scale_grad_by_freq,
        mode,
        sparse,
        per_sample_weights,
        include_last_offset,
        padding_idx,
    )
    write(out, results[0])
    if offset2bag.numel():
        write(offset2bag, _bags(len(indices), offsets, include_last_offset))
    for target, result in ((bag_size, results[2]), (max_indices, results[3])):
        _fill(target, result)


def _bags(count: int, offsets: Tensor, include_last_offset: bool) -> Tensor:
    """For each index, the number of its bag."""
    starts = offsets[:-1] if include_last_offset else offsets
    return torch.searchsorted(starts.contiguous().long(), torch.arange(count), right=True) - 1


def _fill(target: Tensor, result: Tensor) -> None:
    """As many rows of the result as there is room for; zero elsewhere."""
    target.zero_()
    rows = min(len(target), len(result))
    target[:rows].copy_(result[:rows])
