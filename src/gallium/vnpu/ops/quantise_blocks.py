"""Quantisation by blocks of a matrix, with a maximum for the next step, and after a rotation."""

from __future__ import annotations

import torch
from torch import Tensor

from gallium.vnpu import soc
from gallium.vnpu.checks import (
    FLOATS,
    HALVES,
    SINCE_910B,
    check_choice,
    check_dims,
    check_dtype,
    check_family,
    check_same_dtype,
)
from gallium.vnpu.microscaling import BLOCK, MxOutput, quantise_mx
from gallium.vnpu.quantisation import PRODUCES, Quantised, group_ends, largest, symmetric, write_quantised
from gallium.vnpu.refusals import Illegal, Unsupported, only
from gallium.vnpu.registry import op
from gallium.vnpu.tensors import Packed4
from gallium.vnpu.writing import write

# Limits: docs of op-plugin, npu_dynamic_block_quant and npu_rotate_quant.
ROWS_950, COLUMNS_950 = (1, 128, 256, 512), (64, 128, 192, 256)
ROTATIONS, ROTATIONS_950 = range(16, 1025), (32, 64, 128)
ROTATED_WIDTHS = range(128, 16001, 8)


@op("DynamicBlockQuant", unused={"y_dtype": PRODUCES})
def dynamic_block_quant(
    x: Tensor,
    min_scale: float,
    round_mode: str,
    y_dtype: int,
    row_block_size: int,
    col_block_size: int,
    y: Quantised,
    scale: Tensor,
) -> None:
    """x / scale with scale = max |x| / limit of each block, at least min_scale: docs, npu_dynamic_block_quant."""
    _by_blocks(x, min_scale, round_mode, row_block_size, col_block_size, y, scale)


@op("DynamicBlockQuantV2", unused={"y_dtype": PRODUCES})
def dynamic_block_quant_v2(
    x: Tensor,
    min_scale: float,
    round_mode: str,
    y_dtype: int,
    row_block_size: int,
    col_block_size: int,
    dst_type_max: float,
    y: Quantised,
    scale: Tensor,
) -> None:
    """DynamicBlockQuant; dst_type_max is for hifloat8."""
    only("dst_type_max", dst_type_max, 0.0)
    _by_blocks(x, min_scale, round_mode, row_block_size, col_block_size, y, scale)


@op("QuantMax", unused={"dst_type": PRODUCES})
def quant_max(x: Tensor, scale: Tensor, round_mode: str, dst_type: int, y: Tensor, out_amax: Tensor) -> None:
    """x / scale in an 8-bit float, and max |x| (op-plugin's test of npu_quant_max)."""
    _check_quant_max(x, round_mode)
    write_quantised(y, x.float() / scale.float())
    write(out_amax, x.float().abs().amax().reshape(1))


@op("GroupedQuantMax", unused={"dst_type": PRODUCES})
def grouped_quant_max(
    x: Tensor, scale: Tensor, group_list: Tensor, round_mode: str, dst_type: int, y: Tensor, out_amax: Tensor
) -> None:
    """QuantMax for groups along the first dimension; group_list has their ends. An empty group's maximum is 0."""
    _check_quant_max(x, round_mode)
    if not isinstance(y, Tensor):
        raise Unsupported("the output's type", getattr(y, "type_name", "?"), "float8_e4m3fn, float8_e5m2")
    start = 0
    for group, end in enumerate(group_ends(group_list, 0, x.shape[0], len(scale))):
        part = x[start:end].float()
        write_quantised(y[start:end], part / scale[group].float())
        out_amax[group] = part.abs().amax() if part.numel() else 0
        start = end


@op("RotateQuant")
def rotate_quant(
    x: Tensor,
    rotation: Tensor,
    alpha: Tensor | None,
    axis: int,
    round_mode: str,
    scale_alg: int,
    dst_type_max: float,
    transpose_y: bool,
    y: MxOutput | Packed4,
    scale: Tensor,
) -> None:
    """The blocks of each row times a rotation, then quantised: docs of op-plugin, torch_npu.npu_rotate_quant.

    To integers by row, as DynamicQuant; on 950 to 8-bit floats as DynamicMxQuant, clipped to alpha times the largest
    magnitude of 32 neighbours.
    """
    check_family("npu_rotate_quant", *SINCE_910B)
    check_dtype("x", x, HALVES)
    check_same_dtype("rotation", rotation, "x", x)
    only("transpose_y", transpose_y, False)
    only("dst_type_max", dst_type_max, 0.0)
    check_choice("round_mode", round_mode, ("rint",))
    check_choice("axis", axis, (-1, x.dim() - 1))
    turned = _rotated(x, rotation)
    if soc.current().family != "950":
        if alpha is not None:
            raise Illegal("alpha", alpha, "None before 950")
        if not isinstance(y, Tensor | Packed4):
            raise Illegal("dst_dtype", y.type_name, "int8 or int4 before 950")
        check_choice("scale_alg", scale_alg, (0,))
        scaled, measured = symmetric(turned, largest(y))
        write_quantised(y, scaled)
        write(scale, measured.reshape(scale.shape))
        return
    if isinstance(y, Packed4):
        raise Illegal("dst_dtype", "int4", "a small float on 950")
    if alpha is not None and alpha.numel() and 0 < float(alpha[0]) < 1:
        blocks = turned.view(-1, BLOCK)
        limit = float(alpha[0]) * blocks.abs().amax(-1, keepdim=True)
        turned = blocks.clamp(-limit, limit).view(turned.shape)
    quantise_mx(y, scale, turned, -1, scale_alg)


def _by_blocks(
    x: Tensor, min_scale: float, round_mode: str, rows: int, columns: int, y: Quantised, scale: Tensor
) -> None:
    check_family("npu_dynamic_block_quant", *SINCE_910B)
    check_dtype("x", x, HALVES)
    check_dims("x", x, 2, 3)
    check_choice("round_mode", round_mode, ("rint",))
    new = soc.current().family == "950"
    check_choice("row_block_size", rows, ROWS_950 if new else (1,))
    check_choice("col_block_size", columns, COLUMNS_950 if new else (128,))
    if not new and (not isinstance(y, Tensor) or y.dtype != torch.int8):
        raise Illegal("dst_type", getattr(y, "dtype", "int4"), "int8 before 950")
    if min_scale < 0:
        raise Illegal("min_scale", min_scale, "0 or more")
    height, width = x.shape[-2:]
    down, across = -(-height // rows), -(-width // columns)
    padded = torch.nn.functional.pad(x.float(), (0, across * columns - width, 0, down * rows - height))
    blocks = padded.view(*x.shape[:-2], down, rows, across, columns)
    limit = largest(y)
    step = (blocks.abs().amax((-3, -1), keepdim=True) / limit).clamp(min=min_scale)
    scaled = (blocks / torch.where(step == 0, 1.0, step)).view(padded.shape)[..., :height, :width]
    write_quantised(y, scaled.clamp(-limit, limit))
    write(scale, step.reshape(scale.shape))


def _check_quant_max(x: Tensor, round_mode: str) -> None:
    check_family("npu_quant_max", "950")
    check_dtype("x", x, FLOATS)
    check_choice("round_mode", round_mode, ("rint",))


def _rotated(x: Tensor, rotation: Tensor) -> Tensor:
    """Blocks of the last dimension times the rotation, or each times its own; rounded to x's type, in float32."""
    size, width = rotation.shape[-1], x.shape[-1]
    new = soc.current().family == "950"
    check_choice("the size of rotation", size, ROTATIONS_950 if new else ROTATIONS)
    if width % size:
        raise Illegal("the last dimension of x", width, f"a multiple of the rotation's size, {size}")
    if not new:
        check_dims("x", x, 2, 2)
        check_choice("the last dimension of x", width, ROTATED_WIDTHS, "128 to 16000, a multiple of 8")
        check_dims("rotation", rotation, 2, 2)
    blocks = x.float().view(-1, width // size, 1, size)
    return (blocks @ rotation.float()).view(x.shape).to(x.dtype).float()
