"""RMS normalisation, with or without an addition before it, whose result is quantised."""

from __future__ import annotations

import torch
from torch import Tensor

from gallium.vnpu import soc
from gallium.vnpu.checks import HALVES, check_dims, check_dtype, check_family, check_same_dtype, check_shape
from gallium.vnpu.ops.rms_norm import add_residual, check_gamma, input_gradient, reciprocal_rms
from gallium.vnpu.quantisation import Matrix, Quantised, largest, symmetric, write_quantised
from gallium.vnpu.refusals import Illegal, only
from gallium.vnpu.registry import op
from gallium.vnpu.tensors import dense
from gallium.vnpu.writing import write

# Types of scale and zero point beside x: docs of op-plugin, torch_npu.npu_add_rms_norm_quant, for all chips before 950.
QUANT_DTYPES = {torch.float16: (torch.float32, torch.int32), torch.bfloat16: (torch.bfloat16, torch.bfloat16)}
FEWEST_ON_310P = 32  # elements of the last dimension


@op("AddRmsNormQuant")
def add_rms_norm_quant(
    x1: Tensor,
    x2: Tensor,
    gamma: Tensor,
    scales1: Tensor,
    scales2: Tensor | None,
    zero_points1: Tensor | None,
    zero_points2: Tensor | None,
    axis: int,
    epsilon: float,
    div_mode: bool,
    y1: Quantised,
    y2: Quantised,
    x: Tensor,
) -> None:
    """AddRmsNorm, quantised with given scales, once or twice (docs of op-plugin: torch_npu.npu_add_rms_norm_quant).

    Without scales2 the second output is not computed, and keeps what its memory held, as on the chip.
    """
    normal = _added_and_normalised(x1, x2, gamma, None, epsilon, x)
    _quantise_twice(normal, x1, axis, div_mode, (scales1, zero_points1, y1), (scales2, zero_points2, y2))


@op("AddRmsNormQuantV2")
def add_rms_norm_quant_with_beta(
    x1: Tensor,
    x2: Tensor,
    gamma: Tensor,
    scales1: Tensor,
    scales2: Tensor | None,
    zero_points1: Tensor | None,
    zero_points2: Tensor | None,
    beta: Tensor | None,
    axis: int,
    epsilon: float,
    div_mode: bool,
    y1: Quantised,
    y2: Quantised,
    x: Tensor,
    normalised: Tensor | None,
) -> None:
    """AddRmsNormQuant with a bias after the normalisation, and optionally the result before it is quantised."""
    normal = _added_and_normalised(x1, x2, gamma, beta, epsilon, x)
    _quantise_twice(normal, x1, axis, div_mode, (scales1, zero_points1, y1), (scales2, zero_points2, y2))
    if normalised is not None:
        write(normalised, normal)


@op("AddRmsNormDynamicQuantV2")
def add_rms_norm_dynamic_quant(
    x1: Tensor,
    x2: Tensor,
    gamma: Tensor,
    smooth_scale1: Tensor | None,
    smooth_scale2: Tensor | None,
    beta: Tensor | None,
    epsilon: float,
    output_mask: tuple[bool, ...] | None,
    y1: Quantised,
    y2: Quantised,
    x: Tensor,
    scale1: Tensor,
    scale2: Tensor,
) -> None:
    """AddRmsNorm, quantised with a scale for each row (docs of op-plugin: torch_npu.npu_add_rms_norm_dynamic_quant).

    Without output_mask the first output is computed, and the second if both smoothing scales are given.
    """
    check_dtype("x1", x1, HALVES)
    check_dims("x1", x1, 2, 8)
    check_dims("gamma", gamma, 1, 1)
    smooth = smooth_scale1, smooth_scale2
    wanted = tuple(output_mask) if output_mask else (True, smooth_scale1 is not None and smooth_scale2 is not None)
    if output_mask and (not any(wanted) or any(s is not None and not w for s, w in zip(smooth, wanted, strict=True))):
        raise Illegal("output_mask", output_mask, "true for at least one output and for each that has a smooth_scale")
    normal = _added_and_normalised(x1, x2, gamma, beta, epsilon, x)
    outputs = (y1, scale1), (y2, scale2)
    for needed, factor, (y, scale) in zip(wanted, smooth, outputs, strict=True):
        if not needed:
            continue
        check_shape("smooth_scale", factor, gamma.shape)
        check_same_dtype("smooth_scale", factor, "x1", x1)
        scaled, measure = symmetric(normal if factor is None else normal * factor, largest(y))
        write_quantised(y, scaled)
        write(scale, measure.squeeze(-1))


@op("RmsNormQuant")
def rms_norm_quant(
    x: Matrix, gamma: Tensor, beta: Tensor, scale: Tensor, offset: Tensor, epsilon: float, y: Quantised
) -> None:
    """RmsNorm with a bias, divided by the scale and moved by the offset.

    The formula on op-plugin's page of torch_npu.npu_rms_norm_quant has a product, but the page forbids a scale of 0;
    op-plugin's tests test_npu_rms_norm_quant and test__npu_quant_rms_norm divide, in all types.
    """
    values = dense(x)
    check_dims("gamma", gamma, 1, 2)
    check_shape("gamma", gamma, (*(1 for _ in gamma.shape[1:]), values.shape[-1]))
    check_shape("beta", beta, gamma.shape)
    check_shape("scale", scale, (1,))
    check_shape("offset", offset, (1,))
    for name, tensor in (("gamma", gamma), ("beta", beta)):
        check_same_dtype(name, tensor, "x", values)
    if soc.current().family != "950":
        check_dtype("x", values, HALVES)
        check_same_dtype("scale", scale, "x", values)
        check_dtype("offset", offset, (torch.int8,))
    normal = _normalised(values, gamma.reshape(-1), beta.reshape(-1), epsilon)
    write_quantised(y, normal / scale.float() + offset.float())


@op("RmsNormQuantV3")
def rms_norm_quant_with_rstd(
    x: Tensor,
    gamma: Tensor,
    scale: Tensor,
    offset: Tensor | None,
    beta: Tensor | None,
    epsilon: float,
    div_mode: bool,
    output_rstd: bool,
    y: Quantised,
    rstd: Tensor,
) -> None:
    """RmsNormQuant with a choice of division or product and, if asked for, 1 / rms (test_npu_rms_norm_quant_v2)."""
    check_family("RmsNormQuantV3", "950")
    spread = rstd if output_rstd else None
    normal = _normalised(x, gamma.reshape(-1), None if beta is None else beta.reshape(-1), epsilon, spread)
    write_quantised(y, _affine(normal, scale, offset, div_mode))


@op("RmsNormGradQuant")
def rms_norm_grad_quant(
    dy: Tensor,
    x: Tensor,
    rstd: Tensor,
    gamma: Tensor,
    scale: Tensor,
    offset: Tensor | None,
    quant_mode: str,
    div_mode: bool,
    dx: Quantised,
    dgamma: Tensor,
) -> None:
    """RmsNormGrad with a quantised dx (op-plugin's test_npu_rms_norm_backward_quant)."""
    check_family("RmsNormGradQuant", "950")
    only("quant_mode", quant_mode, "static")
    check_gamma(x, gamma)
    grad = input_gradient(dy, x, rstd, gamma, dgamma).to(dy.dtype).float()  # npu_quantize takes dx in dy's type
    write_quantised(dx, _affine(grad, scale, offset, div_mode))


def _added_and_normalised(
    x1: Tensor, x2: Tensor, gamma: Tensor, beta: Tensor | None, epsilon: float, x: Tensor
) -> Tensor:
    """Write x = x1 + x2; return its normalised values in float32."""
    check_dtype("x1", x1, HALVES)
    add_residual(x1, x2, gamma, x)
    if soc.current().family == "310P" and x1.shape[-1] < FEWEST_ON_310P:
        raise Illegal("the last dimension of x1", x1.shape[-1], f"at least {FEWEST_ON_310P} on 310P")
    check_same_dtype("beta", beta, "gamma", gamma)
    check_shape("beta", beta, gamma.shape)
    return _normalised(x, gamma, beta, epsilon)


def _normalised(x: Tensor, gamma: Tensor, beta: Tensor | None, epsilon: float, rstd: Tensor | None = None) -> Tensor:
    normal = torch.mul(x, reciprocal_rms(x, gamma, epsilon, rstd)).mul_(gamma)
    return normal if beta is None else normal.add_(beta)


def _affine(values: Tensor, scale: Tensor, offset: Tensor | None, div_mode: bool) -> Tensor:
    scaled = values / scale.float() if div_mode else values * scale.float()
    return scaled if offset is None else scaled + offset.float()


def _quantise_twice(
    normal: Tensor,
    x: Tensor,
    axis: int,
    div_mode: bool,
    *quantisers: tuple[Tensor | None, Tensor | None, Quantised],
) -> None:
    only("axis", axis, -1)
    for scale, offset, y in quantisers:
        if scale is None:
            if offset is not None:
                raise Illegal("zero_points2", offset, "left out, like scales2")
            continue
        if soc.current().family != "950":
            scale_type, offset_type = QUANT_DTYPES[x.dtype]
            check_dtype("scales", scale, (scale_type,))
            check_dtype("zero_points", offset, (offset_type,))
        write_quantised(y, _affine(normal, scale, offset, div_mode))
