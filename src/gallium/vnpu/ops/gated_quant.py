"""Gated activations around quantisation: int32 or floats in, int8, int4 or 8-bit floats out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as nn
from torch import Tensor

from gallium.vnpu.checks import FLOATS, HALVES, check_choice, check_dims, check_dtype, check_family, check_shape
from gallium.vnpu.ops.gated import clipped_gate, halves
from gallium.vnpu.quantisation import Quantised, group_ends, largest, packed_int4, symmetric, write_quantised
from gallium.vnpu.refusals import Illegal, Unsupported, only
from gallium.vnpu.registry import op
from gallium.vnpu.writing import write

STATIC, DYNAMIC = "static", "dynamic"
INT8_CODE, INT4_CODE = 2, 29  # CANN's codes of the types
LIMITS = {INT8_CODE: (-128, 127), INT4_CODE: (-8, 7)}
ROUNDING = {"rint": torch.round, "floor": torch.floor, "ceil": torch.ceil, "trunc": torch.trunc}
WIDEST_GROUPED, GROUPED_MULTIPLE = 10_496, 64  # of DequantSwigluQuant's output, with group_index
LONGEST_ROW = 8192  # of SwiGluQuantV2's input


@op("SwiGluQuantV2")
def swiglu_quant(
    x: Tensor,
    smooth_scales: Tensor | None,
    offsets: Tensor | None,
    group_index: Tensor | None,
    activate_left: bool,
    quant_mode: str,
    group_list_type: int,
    output_type: int,
    y: Tensor,
    scale: Tensor,
) -> None:
    """SwiGlu, times a smoothing scale for each group, then quantised (docs of op-plugin: torch_npu.npu_swiglu_quant).

    static: plus offsets, rounded. dynamic: each row by its own factor limit / max |row|, and that factor is the scale
    (op-plugin's test_npu_swiglu_quant; not its reciprocal, as elsewhere). Rows after the last group are not computed.
    """
    check_dtype("x", x, FLOATS)
    check_choice("quant_mode", quant_mode, (STATIC, DYNAMIC))
    check_choice("output_type", output_type, LIMITS)
    if x.dim() < 2 or x.shape[-1] > LONGEST_ROW:
        raise Illegal("the shape of x", list(x.shape), f"of two or more dimensions, the last at most {LONGEST_ROW}")
    check_dtype("smooth_scales", smooth_scales, (torch.float32,))
    check_dtype("offsets", offsets, (torch.float32,))
    low, high = LIMITS[output_type]
    left, right = halves(x.reshape(-1, x.shape[-1]).float(), -1)
    values = nn.silu(left) * right if activate_left else left * nn.silu(right)
    out, factors = y.view(-1, y.shape[-1]), scale.view(-1)
    for group, rows in _groups(group_index, group_list_type, len(values)):
        part = values[rows] * _of_group(smooth_scales, group, values.shape[1], 1.0)
        if quant_mode == STATIC:
            part = part + _of_group(offsets, group, values.shape[1], 0.0)
        else:
            factor = high / part.abs().amax(-1)
            factors[rows] = factor
            part = part * torch.where(factor.isinf(), 0.0, factor)[:, None]
        whole = part.round().clamp(low, high)
        write(out[rows], packed_int4(whole).view(torch.int8) if output_type == INT4_CODE else whole)


@op("DequantSwigluQuant")
def dequant_swiglu_quant(
    x: Tensor,
    weight_scale: Tensor | None,
    activation_scale: Tensor | None,
    bias: Tensor | None,
    quant_scale: Tensor | None,
    quant_offset: Tensor | None,
    group_index: Tensor | None,
    activate_left: bool,
    quant_mode: str,
    y: Quantised,
    scale: Tensor,
) -> None:
    """DequantSwigluQuantV2 with the ordinary SwiGLU."""
    left, right = halves(_dequantised(x, weight_scale, activation_scale, bias, group_index), -1)
    values = nn.silu(left) * right if activate_left else left * nn.silu(right)
    _requantise(values, quant_scale, quant_offset, group_index, quant_mode, "rint", y, scale)


@op("DequantSwigluQuantV2")
def dequant_swiglu_quant_variants(
    x: Tensor,
    weight_scale: Tensor | None,
    activation_scale: Tensor | None,
    bias: Tensor | None,
    quant_scale: Tensor | None,
    quant_offset: Tensor | None,
    group_index: Tensor | None,
    activate_left: bool,
    quant_mode: str,
    dst_type: int,
    round_mode: str,
    activate_dim: int,
    swiglu_mode: int,
    clamp_limit: float,
    glu_alpha: float,
    glu_bias: float,
    y: Quantised,
    scale: Tensor,
) -> None:
    """Dequantise, SwiGLU, quantise (docs of op-plugin: torch_npu.npu_dequant_swiglu_quant).

    swiglu_mode 0: ordinary. 1: clipped, of even and odd columns. 2: clipped, of halves. Rows after the last group are
    not computed and keep what their memory held, as on the chip.
    """
    only("activate_dim", activate_dim, -1, x.dim() - 1)
    if isinstance(y, Tensor) and y.dtype == torch.int8:
        check_choice("dst_type", dst_type, (INT8_CODE,), "the code of y's type, int8")
    values = _dequantised(x, weight_scale, activation_scale, bias, group_index)
    if swiglu_mode == 1:
        values = clipped_gate(values[..., ::2], values[..., 1::2], glu_alpha, clamp_limit, glu_bias)
    else:
        left, right = halves(values, -1)
        gate, up = (left, right) if activate_left else (right, left)
        if swiglu_mode == 0:
            values = nn.silu(gate) * up
        else:
            only("swiglu_mode", swiglu_mode, 0, 1, 2)
            values = clipped_gate(gate, up, glu_alpha, clamp_limit, glu_bias)
    _requantise(values, quant_scale, quant_offset, group_index, quant_mode, round_mode, y, scale)


@op("GeluQuant", unused={"y_dtype": "chooses the output's type, which arrives allocated in it"})
def gelu_quant(
    x: Tensor,
    input_scale: Tensor | None,
    input_offset: Tensor | None,
    approximate: str,
    quant_mode: str,
    round_mode: str,
    y_dtype: int,
    y: Quantised,
    out_scale: Tensor | None,
) -> None:
    """gelu(x) * input_scale, then plus input_offset (static) or divided by max |row| / limit (dynamic), and rounded.

    From op-plugin's test_npu_gelu_quant, which has it on the 950 only.
    """
    check_family("GeluQuant", "950")
    check_dtype("self", x, FLOATS)
    check_choice("approximate", approximate, ("none", "tanh"))
    check_choice("quant_mode", quant_mode, (STATIC, DYNAMIC))
    only("round_mode", round_mode, "rint")
    values = nn.gelu(x.float(), approximate=approximate)
    if input_scale is not None:
        values = values * input_scale.float()
    elif quant_mode == STATIC:
        raise Unsupported("input_scale", None, "one, with quant_mode static")
    if quant_mode == STATIC:
        write_quantised(y, values if input_offset is None else values + input_offset.float())
        return
    scaled, factor = symmetric(values, largest(y))
    write_quantised(y, scaled)
    if out_scale is not None:
        write(out_scale, factor.squeeze(-1))


def _dequantised(
    x: Tensor,
    weight_scale: Tensor | None,
    activation_scale: Tensor | None,
    bias: Tensor | None,
    group_index: Tensor | None,
) -> Tensor:
    """x [tokens, 2 width] in float32, times the scales of its group and of its row."""
    check_dims("x", x, 2, 2)
    check_dtype("x", x, (torch.int32, *HALVES))
    if group_index is not None:
        check_dtype("group_index", group_index, (torch.int64,))
        width = x.shape[1] // 2
        if width > WIDEST_GROUPED or width % GROUPED_MULTIPLE:
            legal = f"a multiple of {GROUPED_MULTIPLE} and at most {WIDEST_GROUPED}, with group_index"
            raise Illegal("half of the last dimension of x", width, legal)
    if x.dtype != torch.int32:
        given = {"weight_scale": weight_scale, "activation_scale": activation_scale, "bias": bias}
        for name, tensor in given.items():
            if tensor is not None:
                raise Illegal(name, tensor, f"left out for an x of {x.dtype}")
        return x.float()
    if bias is not None:
        if group_index is not None:
            raise Illegal("bias", bias, "left out, with group_index")
        check_dtype("bias", bias, (torch.int32,))
        x = x + bias
    values = x.float()
    check_dtype("weight_scale", weight_scale, (torch.float32,))
    check_dtype("activation_scale", activation_scale, (torch.float32,))
    if weight_scale is not None:
        scales = weight_scale.reshape(-1, x.shape[1])
        for group, rows in _groups(group_index, 1, len(values)):
            values[rows] *= scales[group]
    return values if activation_scale is None else values * activation_scale.reshape(-1, 1)


def _requantise(
    values: Tensor,
    quant_scale: Tensor | None,
    quant_offset: Tensor | None,
    group_index: Tensor | None,
    quant_mode: str,
    round_mode: str,
    y: Quantised,
    scale: Tensor,
) -> None:
    """static: divided by quant_scale, plus quant_offset. dynamic: times quant_scale, then by max |row| / limit.

    op-plugin's test_npu_dequant_swiglu_quant; the scale of static quantisation is zero there.
    """
    check_choice("quant_mode", quant_mode, (STATIC, DYNAMIC))
    only("round_mode", round_mode, *ROUNDING)
    if not isinstance(y, Tensor) or y.dtype == torch.int32:
        raise Unsupported("y's type", getattr(y, "dtype", type(y).__name__), "int8, float8_e4m3fn, float8_e5m2")
    if y.dtype != torch.int8:
        only("round_mode", round_mode, "rint")
    if group_index is not None and quant_offset is not None:
        raise Illegal("quant_offset", quant_offset, "left out, with group_index")
    if quant_mode == STATIC:
        check_dtype("quant_scale", quant_scale, (torch.float32,))
    check_shape("scale", scale, values.shape[:-1])
    for group, rows in _groups(group_index, 1, len(values)):
        part, factor = values[rows], _of_group(quant_scale, group, values.shape[1], 1.0)
        if quant_mode == STATIC:
            part = part / factor + _of_group(quant_offset, group, values.shape[1], 0.0)
            scale[rows] = 0
        else:
            part, measure = symmetric(part * factor, largest(y))
            scale[rows] = measure.squeeze(-1)
        write_quantised(y[rows], ROUNDING[round_mode](part) if y.dtype == torch.int8 else part)


def _groups(group_index: Tensor | None, list_type: int, rows: int) -> Iterator[tuple[int, slice]]:
    """Each group that has rows, with them; all rows are one group without an index. list_type 0: ends, 1: counts."""
    ends: Sequence[int] = [rows]
    if group_index is not None:
        ends = group_ends(group_index, list_type, rows, group_index.numel())
    start = 0
    for group, end in enumerate(ends):
        if start < end:
            yield group, slice(start, end)
        start = end


def _of_group(values: Tensor | None, group: int, width: int, default: float) -> Tensor | float:
    """A row of [groups, width], an element of [groups], or the only row of [width]."""
    if values is None:
        return default
    if values.dim() == 2:
        return values[group].float()
    return (values if values.numel() == width and width > 1 else values[group]).float()


@op("SwigluGroupQuantGrad")
def swiglu_group_quant_grad(
    grad_y: Tensor,
    x: Tensor,
    weight: Tensor | None,
    y_origin: Tensor | None,
    group_index: Tensor | None,
    clamp_limit: float,
    grad_x: Tensor,
    grad_weight: Tensor | None,
) -> None:
    """The gradient of silu(min(left, limit)) * clamp(right, ±limit) * weight of the row; a limit of 0 is none.

    Rows after the last group get zero. op-plugin's test_npu_swiglu_group_quant_backward. (The forward function makes
    hifloat8, which PyTorch does not have.)
    """
    check_family("SwigluGroupQuantGrad", "950")
    check_dtype("x", x, FLOATS)
    used = None if group_index is None else int(group_index.sum())
    grad = grad_y.float()
    if weight is not None:
        if y_origin is None or grad_weight is None:
            raise Illegal("y_origin", None, "given, with weight")
        of_weight = (grad * y_origin).sum(-1, keepdim=True)
        if used is not None:
            of_weight.view(-1)[used:] = 0
        write(grad_weight, of_weight.view(grad_weight.shape))
        grad = grad * weight.float()
    left, right = halves(x.float(), -1)
    gate, up = (left.clamp(max=clamp_limit), right.clamp(-clamp_limit, clamp_limit)) if clamp_limit else (left, right)
    grad_left, grad_right = torch.ops.aten.silu_backward(grad * up, gate), grad * nn.silu(gate)
    if clamp_limit:
        grad_left, grad_right = grad_left * (left < clamp_limit), grad_right * (right.abs() < clamp_limit)
    both = torch.cat((grad_left, grad_right), -1)
    if used is not None:
        both.view(-1, both.shape[-1])[used:] = 0
    write(grad_x, both)
