"""Weights as the integers or floats that Ascend's kernels take: read a few rows at a time, coded on the device."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch_npu
from torch import Tensor

from gallium.backends.torch.packing import decoded, empty, host_tensor
from gallium.ops.handles import Quantisation, Weight

INT4_GROUP = 32  # columns: the smallest group that npu_weight_quant_batchmatmul takes
INT4_PER_WORD = 8
INT4_UNITS = (INT4_PER_WORD, INT4_GROUP)  # of rows and columns


def filled_up(size: int, unit: int) -> int:
    """The next multiple of `unit`."""
    return -(-size // unit) * unit


def sizes(parts: Sequence[Weight]) -> tuple[int, int]:
    """`(out, in)` of all parts together."""
    return sum(part.shape[0] for part in parts), parts[0].shape[1]


def quantisation(part: Weight) -> Quantisation:
    """What makes numbers of the checkpoint's own integers; only asked of parts that have it."""
    assert part.quantisation is not None
    return part.quantisation


def int8_rows(
    parts: Sequence[Weight], device: torch.device, scale_dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Floats as int8 codes `[out, in]` and float32 scales `[out, 1]`: largest magnitude / 127 of each row.

    The scales are numbers that `scale_dtype` holds, so that nothing is lost where a kernel wants them in it.
    """
    height, width = sizes(parts)
    codes = empty((height, width), torch.int8, device)
    scale = empty((height, 1), torch.float32, device)
    for _, rows, values in decoded(parts):
        chunk = values.to(device)
        step = (chunk.abs().amax(1, keepdim=True) / 127).to(scale_dtype).float()
        scale[rows] = step
        codes[rows] = (chunk / torch.where(step == 0, 1.0, step)).round().clamp(-127, 127).to(torch.int8)
    return codes, scale


def integer_rows(parts: Sequence[Weight], device: torch.device) -> tuple[Tensor, Tensor]:
    """The checkpoint's own codes `[out, in]`, int8, and scales `[out, groups]`, float32."""
    codes, at = empty(sizes(parts), torch.int8, device), 0
    for part in parts:
        raw = part.raw().view(np.int8).reshape(part.shape)
        codes[at : at + part.shape[0]] = torch.from_numpy(raw if raw.flags.writeable else raw.copy()).to(device)
        at += part.shape[0]
    return codes, torch.cat([host_tensor(quantisation(part).scale) for part in parts]).to(device)


def int4_rows(parts: Sequence[Weight], device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Floats as packed int4 `[in, out / 8]`, scales and offsets `[in / 32, out]`: `(code + offset) * scale`.

    `in` and `out` are filled up to whole groups of 32 and words of 8.
    """
    height, width = (filled_up(size, unit) for size, unit in zip(sizes(parts), INT4_UNITS, strict=True))
    codes = torch.zeros((height, width), dtype=torch.int8, device=device)
    scale = torch.ones((height, width // INT4_GROUP), dtype=dtype, device=device)
    offset = torch.zeros_like(scale)
    for _, rows, values in decoded(parts):
        chunk = values.to(device)
        chunk = torch.cat((chunk, chunk[:, -1:].expand(-1, width - chunk.shape[1])), dim=1)
        groups = chunk.reshape(len(chunk), -1, INT4_GROUP)
        of_chunk, step, shift = four_bits(groups, dtype)
        codes[rows] = of_chunk.reshape(chunk.shape)
        scale[rows], offset[rows] = step, shift
    return packed4(codes), scale.t().contiguous(), offset.t().contiguous()


def four_bits(groups: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Groups `[rows, groups, 32]` as int8 codes of 4 bits, with a step and an offset in `dtype` each `[rows, groups]`.

    16 steps from the least to the largest number; then the line through what was rounded to them that fits best, once.
    Weights that lie on such a grid already, as those of Q4_K and Q4_1 do, keep it up to the rounding of both. A group
    of equal numbers has that number as its step.
    """
    least, most = groups.amin(2), groups.amax(2)
    step = torch.where(least == most, most.abs(), (most - least) / 15).to(dtype)
    step = torch.where(step == 0, 1.0, step)
    shift = (least / step.float() + 8).to(dtype)
    codes = _nearest(groups, step, shift)
    spread, middle = codes - codes.mean(2, keepdim=True), groups.mean(2, keepdim=True)
    slope = ((spread * (groups - middle)).sum(2) / spread.square().sum(2).clamp(min=1e-9)).to(dtype)
    fits = slope > 0
    better = torch.where(fits, slope, step)
    start = (middle.squeeze(2) / better.float() - codes.mean(2)).to(dtype)
    step, shift = better, torch.where(fits, start, shift)
    return _nearest(groups, step, shift).to(torch.int8), step, shift


def _nearest(groups: Tensor, step: Tensor, shift: Tensor) -> Tensor:
    return (groups / step.float().unsqueeze(2) - shift.float().unsqueeze(2)).round().clamp(-8, 7)


def packed4(codes: Tensor) -> Tensor:
    """Codes of 4 bits `[out, in]` as int32 words `[in, out / 8]`, in the order that the chip wants."""
    words: Tensor = torch_npu.npu_convert_weight_to_int4pack(codes.t().contiguous().to(torch.int32))
    return words


def float_bits(scale: Tensor) -> Tensor:
    """Float32 numbers as int64 with the same bits in the low half, the form in which W4A8 kernels take scales."""
    return scale.contiguous().view(torch.int32).long() & 0xFFFFFFFF


def eight_times_sums(codes: Tensor, scale: Tensor) -> Tensor:
    """`[out]`: 8 times the sum of each row's weights, from codes `[out, in]` and scales `[out, groups]`."""
    groups = codes.reshape(*codes.shape[:-1], scale.shape[-1], -1)
    return 8 * (groups.float().sum(-1) * scale).sum(-1)
