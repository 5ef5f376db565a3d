"""Integers with scales: exact integer products, 4-bit packing, rounding into a quantised type, and packed scales."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from gallium.vnpu.refusals import Illegal, Unsupported
from gallium.vnpu.tensors import Blocked, Packed4, dense, unpack4
from gallium.vnpu.writing import write

Matrix = Tensor | Blocked | Packed4
Quantised = Tensor | Packed4

INT4_PER_INT32 = 8
INT4_RANGE = (-8, 7)
LARGEST_FP8 = {torch.float8_e4m3fn: 448.0, torch.float8_e5m2: 57344.0}
INTEGERS = {torch.int8: (-128, 127), torch.uint8: (0, 255)}
# Every partial sum of 1024 products of 8-bit integers is a whole number up to 2**24, which float32 holds exactly.
EXACT_IN_FLOAT32 = 1024
SCALE_BITS = 0xFFFFE000  # of a packed scale: the high 19 bits of a float32
SCALE_FLAG = 1 << 46
OFFSET_SHIFT, OFFSET_BITS = 37, 0x1FF
OFFSET_RANGE = (-256, 255)

PRODUCES = "chooses the output's type, which arrives allocated in it"


def holds_int4(x: Matrix) -> bool:
    """Whether the elements are 4-bit integers: of that type, or eight to an int32, as torch_npu passes them."""
    return isinstance(x, Packed4) or x.dtype == torch.int32


def integers(x: Matrix) -> Tensor:
    """The matrix as int8. An int32 is eight 4-bit integers along the dimension that lies densely in memory."""
    values = dense(x)
    if values.dtype != torch.int32:
        return values
    if values.dim() >= 2 and values.stride(-1) != 1 and values.stride(-2) == 1:
        return _unpacked(values.transpose(-1, -2)).transpose(-1, -2)
    return _unpacked(values)


def _unpacked(words: Tensor) -> Tensor:
    packed = words.contiguous().view(torch.uint8)
    return unpack4(packed.reshape(-1)).view(*words.shape[:-1], words.shape[-1] * INT4_PER_INT32)


def packed_int4(values: Tensor) -> Tensor:
    """uint8 of half the length: two 4-bit integers to a byte, the first in the low half."""
    pairs = values.to(torch.int8).reshape(*values.shape[:-1], -1, 2).view(torch.uint8)
    return (pairs[..., 0] & 0xF) | (pairs[..., 1] << 4)


def integer_product(a: Tensor, b: Tensor) -> Tensor:
    """`a @ b` of 8-bit integers in int32, exactly, as torch.matmul broadcasts it.

    In float32, a thousand products at a time: torch._int_mm gives the same and takes up to 50 times as long on CPUs.
    """
    depth = a.shape[-1]
    if depth <= EXACT_IN_FLOAT32:
        return (a.float() @ b.float()).to(torch.int32)
    total: Tensor | None = None
    for start in range(0, depth, EXACT_IN_FLOAT32):
        part = slice(start, start + EXACT_IN_FLOAT32)
        product = (a[..., part].float() @ b[..., part, :].float()).to(torch.int32)
        total = product if total is None else total.add_(product)
    assert total is not None
    return total


def largest(out: Quantised) -> float:
    """The largest value of a quantised type; an int32 output is eight 4-bit integers."""
    if isinstance(out, Packed4) or out.dtype == torch.int32:
        return INT4_RANGE[1]
    if out.dtype in LARGEST_FP8:
        return LARGEST_FP8[out.dtype]
    if out.dtype in INTEGERS:
        return INTEGERS[out.dtype][1]
    raise Unsupported("the output's type", out.dtype, "int8, uint8, int4, float8_e4m3fn, float8_e5m2")


def write_quantised(out: Quantised | object, values: Tensor) -> None:
    """Round to the nearest, ties to even, saturate, and write; an int32 output takes eight 4-bit integers a word."""
    if isinstance(out, Packed4):
        _write_packed(out, values)
        return
    if isinstance(out, Blocked):
        _write_blocks(out, values)
        return
    if not isinstance(out, Tensor):
        raise Unsupported("the output's type", getattr(out, "type_name", type(out).__name__), "int8, int4, fp8")
    if out.dtype == torch.int32:
        words = packed_int4(values.round().clamp(*INT4_RANGE)).contiguous().view(torch.int32)
        write(out, words)
    elif out.dtype in LARGEST_FP8:
        limit = LARGEST_FP8[out.dtype]
        write(out, values.float().clamp(-limit, limit))
    elif out.dtype in INTEGERS:
        write(out, values.round().clamp(*INTEGERS[out.dtype]))
    else:
        largest(out)


def _write_blocks(out: Blocked, values: Tensor) -> None:
    """4-bit integers, eight to an int32, as a blocked matrix."""
    if out.dtype != torch.int32:
        raise Unsupported("the type of a blocked output", out.dtype, "int32, of eight 4-bit integers")
    words = packed_int4(values.round().clamp(*INT4_RANGE)).contiguous().view(torch.int32)
    if words.shape != out.shape:
        raise Illegal("the output's shape", list(out.shape), str(list(words.shape)))
    *batch, n1, m1, m0, n0 = out.storage.shape
    padded = torch.nn.functional.pad(words, (0, n1 * n0 - words.shape[-1], 0, m1 * m0 - words.shape[-2]))
    out.storage.copy_(padded.view(*batch, m1, m0, n1, n0).movedim(-2, -4))


def _write_packed(out: Packed4, values: Tensor) -> None:
    if out.blocked is not None or out.offset or tuple(values.shape) != tuple(out.shape) or values.shape[-1] % 2:
        raise Unsupported("an int4 output", list(out.shape), "contiguous ones with an even last dimension")
    bytes_ = packed_int4(values.round().clamp(*INT4_RANGE)).reshape(-1)
    out.storage[: bytes_.numel()].copy_(bytes_)


def symmetric(x: Tensor, limit: float, dims: int | tuple[int, ...] = -1) -> tuple[Tensor, Tensor]:
    """x / scale, not yet rounded, and scale = max |x| / limit, with its dimensions kept. A row of zeros stays zero."""
    scale = x.abs().amax(dims, keepdim=True) / limit
    return x / torch.where(scale == 0, 1.0, scale), scale


def group_ends(group_list: Tensor, list_type: int, rows: int, groups: int) -> list[int]:
    """Where each of the groups ends. list_type 0: the list has the ends, 1: the sizes, 2: pairs of group and size."""
    if list_type == 0:
        ends = group_list.tolist()
    elif list_type == 1:
        ends = group_list.cumsum(0).tolist()
    else:
        raise Unsupported("group_list_type", list_type, "0 and 1")
    if len(ends) != groups:
        raise Illegal("the length of group_list", len(ends), f"the number of groups, {groups}")
    if ends and (min(ends) < 0 or ends[-1] > rows or any(a > b for a, b in pairwise(ends))):
        raise Illegal("group_list", ends, f"not falling, and at most the number of rows, {rows}")
    return [int(end) for end in ends]


def packed_scale(scale: Tensor, offset: Tensor | None, round_mode: int) -> Tensor:
    """int64 words with a scale and an offset inside: docs of op-plugin, torch_npu.npu_trans_quant_param.

    Bits 0 to 31 are the float32 without its low 13 bits (19 bits stay); bit 46 is set; bits 37 to 45 are the offset,
    rounded, as a 9-bit integer. With round_mode 1 the 19 bits are rounded to the nearest instead of cut off.
    """
    bits = scale.contiguous().view(torch.int32).long() & 0xFFFFFFFF
    if round_mode == 1:
        half = 1 << 12
        bits = bits + half - 1 + ((bits >> 13) & 1)
    word = (bits & SCALE_BITS) | SCALE_FLAG
    if offset is not None:
        whole = offset.float().round().clamp(*OFFSET_RANGE).long()
        word = (word & (SCALE_FLAG | 0xFFFFFFFF)) | ((whole & OFFSET_BITS) << OFFSET_SHIFT)
    return word


def unpacked_scale(scale: Tensor) -> tuple[Tensor, Tensor | None]:
    """Scale and offset in float32; a scale of a floating type has no offset inside."""
    if scale.dtype not in (torch.int64, torch.uint64):
        return scale.float(), None
    word = scale.contiguous().view(torch.int64)
    low = torch.where(word & 0x80000000 != 0, (word & 0xFFFFFFFF) - (1 << 32), word & 0xFFFFFFFF)
    offset = (word >> OFFSET_SHIFT) & OFFSET_BITS
    offset = torch.where(offset > OFFSET_RANGE[1], offset - (OFFSET_BITS + 1), offset)
    return low.to(torch.int32).view(torch.float32), offset.float()


def given(x: Tensor | None) -> Tensor | None:
    """The tensor; None for an empty one, which torch_npu passes for some optional inputs that were left out."""
    return None if x is None or x.numel() == 0 else x


def dequantised(
    product: Tensor, scale: Tensor, per_row: Tensor | None, bias: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """`(product + bias) * scale * per_row` in float32 for a bias of integers, else `product * scale * per_row + bias`.

    scale: one, or one per column; per_row: one per row. Second result: the offset that a packed scale holds.
    """
    factor, offset = unpacked_scale(scale)
    whole = bias is not None and bias.dtype == torch.int32
    result = (product + bias if whole and bias is not None else product).float() * factor
    if per_row is not None:
        result = result * per_row.float().reshape(-1, 1)
    return (result if whole or bias is None else result + bias.float()), offset


def grouped_product(x: Tensor, weight: Tensor, scale: Tensor, offset: Tensor | None) -> Tensor:
    """The sum over the groups of the inner dimension of `(x_g @ (weight_g - offset_g)) * scale_g`, in float32.

    scale and offset: [groups, columns]. Rounded once per group, as op-plugin's tests calculate it.
    """
    factor, _ = unpacked_scale(scale)
    groups, depth = factor.shape[0], x.shape[-1]
    size, odd = divmod(depth, groups)
    if odd:
        raise Illegal("the number of groups of a scale", groups, f"a divisor of the inner dimension, {depth}")
    total = x.new_zeros((x.shape[0], weight.shape[-1]), dtype=torch.float32)
    for group in range(groups):
        part = slice(group * size, (group + 1) * size)
        block = weight[part] if offset is None else (weight[part].float() - offset[group].float())
        product = integer_product(x[:, part], block) if offset is None else x[:, part].float() @ block
        total += product.float() * factor[group]
    return total


def msd_product(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """8-bit rows times a 4-bit weight as the chip does it: from products of 4-bit halves, `x // 16` and `x % 16 - 8`.

    Their sum is `x - 8`; the caller's bias gives the rest back (op-plugin's tests of A8W4). scale: [groups, columns].
    """
    return grouped_product(x.to(torch.int16) - 8, weight, scale, None) + bias.float()
