"""Checkpoint tensors onto the device: read a few rows at a time, converted on the way, stacked by rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch

from gallium.errors import BackendError, OutOfMemory
from gallium.ops.handles import FloatArray, Weight

CHUNK = 1 << 22  # elements that are decoded to float32 at a time


def host_tensor(array: FloatArray) -> torch.Tensor:
    """A float32 CPU tensor over the array; over a copy if it is read-only, which torch would warn of."""
    contiguous = np.ascontiguousarray(array, np.float32)
    return torch.from_numpy(contiguous if contiguous.flags.writeable else contiguous.copy())


def empty(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Uninitialised memory for weights. Raises OutOfMemory."""
    try:
        return torch.empty(shape, dtype=dtype, device=device)
    except (torch.OutOfMemoryError, RuntimeError) as cause:
        size = torch.Size(shape).numel() * dtype.itemsize / 2**30
        raise OutOfMemory(
            f"no memory on {device} for {size:.2f} GiB of weights: choose a smaller model, or spread it with --tp."
        ) from cause


class Chunk(NamedTuple):
    """Some rows of a part, decoded."""

    part: Weight
    rows: slice  # their place in the whole
    values: torch.Tensor  # float32 on the host


def decoded(parts: Sequence[Weight]) -> Iterator[Chunk]:
    """The rows of all parts, in order, some at a time."""
    at = 0
    for part in parts:
        step = max(1, CHUNK // max(1, int(np.prod(part.shape[1:]))))
        for start in range(0, part.shape[0], step):
            values = host_tensor(part.float32(start, min(start + step, part.shape[0])))
            yield Chunk(part, slice(at + start, at + start + len(values)), values)
        at += part.shape[0]


def fill(target: torch.Tensor, parts: Sequence[Weight]) -> None:
    """Write the rows of all parts, in order, into `target` `[rows, ...]`. Raises BackendError on an overflow."""
    for part, rows, values in decoded(parts):
        piece = target[rows]
        piece.copy_(values)
        if target.dtype == torch.float16 and not bool(torch.isfinite(piece).all()):
            raise BackendError(
                f"{part.name} has values beyond 65504, which float16 cannot hold: choose --precision bfloat16 "
                "or float32."
            )


def stacked(parts: Sequence[Weight], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """All rows of all parts, in order -> `[rows, ...]`."""
    target = empty((sum(part.shape[0] for part in parts), *parts[0].shape[1:]), dtype, device)
    fill(target, parts)
    return target


def stacked_each(groups: Sequence[Sequence[Weight]], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """One stack per group, all of one shape -> `[groups, rows, ...]`."""
    rows = sum(part.shape[0] for part in groups[0])
    target = empty((len(groups), rows, *groups[0][0].shape[1:]), dtype, device)
    for place, parts in zip(target, groups, strict=True):
        fill(place, parts)
    return target
