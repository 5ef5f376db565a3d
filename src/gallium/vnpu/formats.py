"""Conversion between the ordinary format and the blocked one (FRACTAL_NZ) of matrices."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import pad

from gallium.vnpu.tensors import Blocked, dense
from gallium.vnpu.writing import write


def convert(x: Tensor | Blocked, out: Tensor | Blocked) -> None:
    """Copy `x` to `out`, whatever the formats of both; values that fill up blocks are zero."""
    if isinstance(out, Blocked):
        out.storage.copy_(to_blocks(dense(x), out.storage.shape))
    else:
        write(out, dense(x))


def to_blocks(matrix: Tensor, storage_shape: tuple[int, ...]) -> Tensor:
    """`[..., M, N]` as `[..., N1, M1, M0, N0]`, zero-padded; the block size is that of the storage's shape."""
    *batch, n1, m1, m0, n0 = storage_shape
    rows, cols = matrix.shape[-2:]
    padded = pad(matrix, (0, n1 * n0 - cols, 0, m1 * m0 - rows))
    blocks = padded.reshape(*batch, m1, m0, n1, n0)
    order = [*range(len(batch)), *(len(batch) + i for i in (2, 0, 1, 3))]
    return blocks.permute(order)
