"""Microscaled formats (OCP MX): blocks of 32 small floats, each block with a scale that is a power of two (e8m0)."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor

from gallium.vnpu.quantisation import LARGEST_FP8, write_quantised
from gallium.vnpu.refusals import Unsupported, only
from gallium.vnpu.tensors import Opaque

BLOCK, PAIR = 32, 2  # scales are stored in pairs, the last of an odd number with a 0
BIAS = 127  # of e8m0
# How the exponent of the scale follows from the largest value of the block. FLOOR: that of the largest value less that
# of the format's largest (OCP Microscaling Formats 1.0, 6.3). FIT: the least with which no value overflows. op-plugin's
# tests of the operators show both: test_npu_swiglu_mx_quant, test_npu_swiglu_backward_mx_quant_with_dual_axis.
FLOOR, FIT = 0, 1
E2M1 = "float4_e2m1"
E2M1_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)

MxOutput = Tensor | Opaque


def quantise_mx(y: MxOutput, scales: Tensor, values: Tensor, axis: int, scale_alg: int) -> None:
    """Write the float32 values in blocks along axis -1 or -2.

    scales: [..., pairs of blocks, 2], for axis -2 [..., pairs of blocks, columns, 2].
    """
    largest = _largest(y)
    only("scale_alg", scale_alg, *((FLOOR, FIT) if isinstance(y, Tensor) else (FLOOR,)))
    along = values.movedim(axis, -1)
    length = along.shape[-1]
    padded = torch.nn.functional.pad(along, (0, -length % (PAIR * BLOCK)))
    blocks = padded.reshape(*along.shape[:-1], -1, BLOCK)
    most = blocks.abs().amax(-1)
    if scale_alg == FLOOR:
        exponent = torch.frexp(most).exponent - torch.frexp(torch.tensor(largest)).exponent
    else:
        share = torch.frexp(most / largest)
        exponent = share.exponent - (share.mantissa == 0.5).int()
    exponent = torch.where(most == 0, -BIAS, exponent).clamp(-BIAS, BIAS)
    pairs = (exponent + BIAS).to(torch.uint8).reshape(*most.shape[:-1], -1, PAIR)
    scales.view(torch.uint8).copy_(pairs if axis == -1 else pairs.movedim(-2, -3))
    scaled = torch.ldexp(blocks, -exponent[..., None]).reshape(padded.shape)[..., :length].movedim(-1, axis)
    if isinstance(y, Tensor):
        write_quantised(y, scaled)
    else:
        codes = e2m1_codes(scaled).reshape(-1, 2)
        y.storage[: len(codes)] = codes[:, 0] | (codes[:, 1] << 4)


def e2m1_codes(values: Tensor) -> Tensor:
    """uint8 codes of 4-bit floats: the nearest value, on a tie the one with an even code, saturating."""
    middles = torch.tensor([math.fsum(pair) / 2 for pair in pairwise(E2M1_VALUES)])
    size = values.abs()
    index = torch.bucketize(size, middles)
    tie = size == middles[index.clamp(max=len(middles) - 1)]
    index += tie & (index % 2 == 1)
    return (index + 8 * torch.signbit(values)).to(torch.uint8)


def _largest(y: MxOutput) -> float:
    if isinstance(y, Tensor) and y.dtype in LARGEST_FP8:
        return LARGEST_FP8[y.dtype]
    if isinstance(y, Opaque) and y.type_name == E2M1:
        return E2M1_VALUES[-1]
    name = y.dtype if isinstance(y, Tensor) else getattr(y, "type_name", type(y).__name__)
    raise Unsupported("the output's type", name, f"float8_e4m3fn, float8_e5m2, {E2M1}")
