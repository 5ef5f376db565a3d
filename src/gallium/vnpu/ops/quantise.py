"""Floats to integers and back with given or measured scales, by row, by group, by channel or for the whole tensor."""

from __future__ import annotations

import torch
from torch import Tensor

from gallium.vnpu.checks import FLOATS, SINCE_910B, check_choice, check_dims, check_dtype, check_family, check_shape
from gallium.vnpu.quantisation import (
    PRODUCES,
    Matrix,
    Quantised,
    group_ends,
    integers,
    largest,
    packed_scale,
    symmetric,
    write_quantised,
)
from gallium.vnpu.refusals import Illegal, only
from gallium.vnpu.registry import op
from gallium.vnpu.tensors import Blocked, dense
from gallium.vnpu.writing import write

REDUCED = {"pertoken": (-1,), "perchannel": (-2,), "pertensor": None}  # dimensions that one scale covers
ROUNDING = {"round": torch.round, "floor": torch.floor, "ceil": torch.ceil, "trunc": torch.trunc}


@op("DynamicQuant")
def dynamic_quant(input: Tensor, smooth_scales: Tensor | None, y: Quantised, scale: Tensor) -> None:
    """round(x / scale), scale = max |x| / limit for each row: docs of op-plugin, torch_npu.npu_dynamic_quant."""
    _symmetric_into(_smoothed(input, smooth_scales, None), (-1,), y, scale)


@op("DynamicQuantV2", unused={"dst_type": PRODUCES})
def dynamic_quant_grouped(
    input: Tensor,
    smooth_scales: Tensor | None,
    group_index: Tensor | None,
    dst_type: int,
    y: Quantised,
    scale: Tensor,
    offset: Tensor | None,
) -> None:
    """DynamicQuant with one smoothing vector per group of rows, and with offsets if there is room for them."""
    _dynamic(input, smooth_scales, group_index, offset is None, "pertoken", y, scale, offset)


@op("DynamicQuantV3", unused={"dst_type": PRODUCES})
def dynamic_quant_by_mode(
    input: Tensor,
    smooth_scales: Tensor | None,
    group_index: Tensor | None,
    dst_type: int,
    is_symmetrical: bool,
    quant_mode: str,
    y: Quantised,
    scale: Tensor,
    offset: Tensor | None,
) -> None:
    """DynamicQuantV2 by row (pertoken), by column (perchannel) or for the whole tensor (pertensor)."""
    _dynamic(input, smooth_scales, group_index, is_symmetrical, quant_mode, y, scale, offset)


@op("DynamicQuantV4", unused={"dst_type": PRODUCES})
def dynamic_quant_with_limit(
    input: Tensor,
    smooth_scales: Tensor | None,
    group_index: Tensor | None,
    dst_type: int,
    is_symmetrical: bool,
    quant_mode: str,
    dst_type_max: float,
    y: Quantised,
    scale: Tensor,
    offset: Tensor | None,
) -> None:
    """DynamicQuantV3; dst_type_max is for hifloat8."""
    only("dst_type_max", dst_type_max, 0.0)
    _dynamic(input, smooth_scales, group_index, is_symmetrical, quant_mode, y, scale, offset)


@op("AscendQuant", unused={"y_dtype": PRODUCES})
def ascend_quant(
    self: Tensor | Blocked,
    scales: Tensor,
    zero_points: Tensor | None,
    sqrt_mode: bool,
    round_mode: str,
    y_dtype: int,
    y: Quantised,
) -> None:
    """x * scale + offset along the last dimension: docs of op-plugin, torch_npu.npu_quantize with div_mode False."""
    _scaled(self, scales, zero_points, sqrt_mode, round_mode, -1, y)


@op("AscendQuantV3", unused={"y_dtype": PRODUCES})
def ascend_quant_along(
    self: Tensor | Blocked,
    scales: Tensor,
    zero_points: Tensor | None,
    sqrt_mode: bool,
    round_mode: str,
    y_dtype: int,
    axis: int,
    y: Quantised,
) -> None:
    """AscendQuant along the last dimension (axis -1) or the one before it (-2)."""
    check_choice("axis", axis, (-1, -2))
    _scaled(self, scales, zero_points, sqrt_mode, round_mode, axis, y)


@op("AscendAntiQuant", unused={"y_dtype": PRODUCES})
def ascend_anti_quant(
    x: Matrix, scale: Tensor, offset: Tensor | None, y_dtype: int, sqrt_mode: bool, result: Tensor
) -> None:
    """(x + offset) * scale: docs of op-plugin, torch_npu.npu_anti_quant."""
    values = integers(x).float()
    check_dims("scale", scale, 1, 1)
    if scale.numel() not in (1, values.shape[-1]):
        raise Illegal("the length of scale", scale.numel(), f"1 or the last dimension of x, {values.shape[-1]}")
    factor = scale.float() ** 2 if sqrt_mode else scale.float()
    write(result, (values if offset is None else values + offset.float()) * factor)


@op("Quantize", unused={"output_dtype": PRODUCES})
def quantize(
    self: Tensor, scales: Tensor, zero_points: Tensor | None, output_dtype: int, axis: int, result: Tensor
) -> None:
    """x / scale + zero point along the axis: docs of op-plugin, torch_npu.npu_quantize with div_mode True."""
    scaled = self.float() / _along(scales, self, axis)
    if zero_points is not None:
        scaled = scaled + _along(zero_points, self, axis)
    if isinstance(result, Tensor) and result.dtype == torch.int32:  # here whole 32-bit integers, not eight small ones
        write(result, scaled.double().round().clamp(-(2**31), 2**31 - 1))
    else:
        write_quantised(result, scaled)


@op("GroupQuant", unused={"dst_type": PRODUCES})
def group_quant(
    x: Tensor, scale: Tensor, group_index: Tensor, offset: Tensor | None, dst_type: int, out: Quantised
) -> None:
    """x * scale + offset with one scale vector per group of rows: docs of op-plugin, torch_npu.npu_group_quant."""
    check_family("npu_group_quant", *SINCE_910B)
    check_dims("x", x, 2, 2)
    check_shape("scale", scale, (len(group_index), x.shape[1]))
    ends = group_ends(group_index, 0, x.shape[0], len(scale))
    if not ends or ends[-1] != x.shape[0]:
        raise Illegal("group_index", ends, f"ending with the number of rows, {x.shape[0]}")
    scaled = x.float() * _by_group(scale.float(), ends)
    write_quantised(out, scaled if offset is None else scaled + offset.float())


@op("FakeQuantPerChannelAffineCachemask")
def fake_quant_per_channel(
    self: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    axis: int,
    quant_min: int,
    quant_max: int,
    out: Tensor,
    mask: Tensor,
) -> None:
    """Rounding to the grid of a quantised type, and where nothing was clamped."""
    forward = torch.ops.aten.fake_quantize_per_channel_affine_cachemask
    result, kept = forward(self.float(), scale.float(), zero_point.int(), axis, quant_min, quant_max)
    write(out, result)
    write(mask, kept)


@op("FakeQuantPerTensorAffineCachemask")
def fake_quant_per_tensor(
    self: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    fake_enabled: float,
    quant_min: int,
    quant_max: int,
    out: Tensor,
    mask: Tensor,
) -> None:
    """As the one above, with one scale; with fake_enabled below 1 the input passes through."""
    forward = torch.ops.aten._fake_quantize_per_tensor_affine_cachemask_tensor_qparams
    enabled = torch.tensor([int(fake_enabled >= 1)])
    result, kept = forward(self.float(), scale.float(), zero_point.int(), enabled, quant_min, quant_max)
    write(out, result)
    write(mask, kept)


@op("FlatQuant")
def flat_quant(
    x: Tensor, kronecker_p1: Tensor, kronecker_p2: Tensor, clip_ratio: float, out: Quantised, scale: Tensor
) -> None:
    """P1 @ (x @ P2), quantised to int4 with scale = max |.| / (7 clip_ratio) for each matrix (op-plugin's test of
    npu_kronecker_quant)."""
    _flat(x, kronecker_p1, kronecker_p2, clip_ratio, out, scale)


@op("FlatQuantV2")
def flat_quant_with_limit(
    x: Tensor,
    kronecker_p1: Tensor,
    kronecker_p2: Tensor,
    clip_ratio: float,
    dst_type_max: float,
    out: Quantised,
    scale: Tensor,
) -> None:
    """FlatQuant; dst_type_max is for 4-bit floats."""
    only("dst_type_max", dst_type_max, 0.0)
    _flat(x, kronecker_p1, kronecker_p2, clip_ratio, out, scale)


@op("TransQuantParamV2")
def trans_quant_param(scale: Tensor, offset: Tensor | None, result: Tensor) -> None:
    """A scale and an offset packed into one 64-bit word; `packed_scale` says how."""
    trans_quant_param_rounded(scale, offset, 0, result)


@op("TransQuantParamV3")
def trans_quant_param_rounded(scale: Tensor, offset: Tensor | None, round_mode: int, result: Tensor) -> None:
    """TransQuantParamV2, which cuts the scale off (round_mode 0) or rounds it (1)."""
    check_dtype("scale", scale, (torch.float32,))
    check_dims("scale", scale, 1, 2)
    check_choice("round_mode", round_mode, (0, 1))
    write(result, packed_scale(scale, offset, round_mode).expand(result.shape).to(result.dtype))


def _dynamic(
    x: Tensor,
    smooth_scales: Tensor | None,
    group_index: Tensor | None,
    is_symmetrical: bool,
    quant_mode: str,
    y: Quantised,
    scale: Tensor,
    offset: Tensor | None,
) -> None:
    check_choice("quant_mode", quant_mode, REDUCED, "pertoken, perchannel or pertensor")
    dims = REDUCED[quant_mode] or tuple(range(x.dim()))
    smoothed = _smoothed(x, smooth_scales, group_index)
    if is_symmetrical:
        _symmetric_into(smoothed, dims, y, scale)
        return
    if offset is None:
        raise Illegal("offset", None, "given where the quantisation is not symmetrical")
    high, low = smoothed.amax(dims, keepdim=True), smoothed.amin(dims, keepdim=True)
    limit = largest(y)
    step = (high - low) / (2 * limit + 1)
    safe = torch.where(step == 0, 1.0, step)
    shift = limit - high / safe
    write_quantised(y, smoothed / safe + shift)
    write(scale, step.reshape(scale.shape))
    write(offset, shift.reshape(offset.shape))


def _symmetric_into(x: Tensor, dims: tuple[int, ...], y: Quantised, scale: Tensor) -> None:
    scaled, measured = symmetric(x, largest(y), dims)
    write_quantised(y, scaled)
    write(scale, measured.reshape(scale.shape))


def _smoothed(x: Tensor, smooth_scales: Tensor | None, group_index: Tensor | None) -> Tensor:
    """x in float32, times the smoothing vector of its group of rows."""
    check_family("npu_dynamic_quant", *SINCE_910B)
    check_dtype("x", x, FLOATS)
    check_dims("x", x, 2, 8)
    if smooth_scales is None:
        if group_index is not None:
            raise Illegal("group_index", group_index, "left out without smooth_scales")
        return x.float()
    if group_index is None:
        check_shape("smooth_scales", smooth_scales, x.shape[-1:])
        return x.float() * smooth_scales.float()
    rows = x.shape[:-1].numel()
    check_shape("smooth_scales", smooth_scales, (len(group_index), x.shape[-1]))
    ends = group_ends(group_index, 0, rows, len(smooth_scales))
    if not ends or ends[-1] != rows:
        raise Illegal("group_index", ends, f"ending with the number of rows, {rows}")
    return x.float() * _by_group(smooth_scales.float(), ends).view(x.shape)


def _by_group(vectors: Tensor, ends: list[int]) -> Tensor:
    """A vector for each row: group i has the rows from ends[i - 1] to ends[i]."""
    stops = torch.tensor(ends)
    return vectors.repeat_interleave(stops.diff(prepend=torch.zeros(1, dtype=torch.int64)), 0)


def _scaled(
    blocked_or_not: Tensor | Blocked,
    scales: Tensor,
    zero_points: Tensor | None,
    sqrt_mode: bool,
    round_mode: str,
    axis: int,
    y: Quantised,
) -> None:
    check_choice("round_mode", round_mode, ROUNDING, "round, floor, ceil or trunc")
    x = dense(blocked_or_not)
    factor = _along(scales, x, axis)
    scaled = x.float() * (factor**2 if sqrt_mode else factor)
    if zero_points is not None:
        scaled = scaled + _along(zero_points, x, axis)
    write_quantised(y, ROUNDING[round_mode](scaled))


def _along(values: Tensor, x: Tensor, axis: int) -> Tensor:
    """The values in float32, shaped to broadcast along the axis of x."""
    if values.dim() > 1 or values.numel() == 1:
        return values.float()
    axis %= x.dim()
    if values.numel() != x.shape[axis]:
        raise Illegal("the length of scales", values.numel(), f"1 or dimension {axis} of the input, {x.shape[axis]}")
    return values.float().view([-1 if dim == axis else 1 for dim in range(x.dim())])


def _flat(x: Tensor, p1: Tensor, p2: Tensor, clip_ratio: float, out: Quantised, scale: Tensor) -> None:
    check_dims("x", x, 3, 3)
    if not 0 < clip_ratio <= 1:
        raise Illegal("clip_ratio", clip_ratio, "above 0 and at most 1")
    turned = p1.float() @ (x.float() @ p2.float())
    scaled, measured = symmetric(turned, largest(out) * clip_ratio, (-2, -1))
    write_quantised(out, scaled)
    write(scale, measured.reshape(scale.shape))
