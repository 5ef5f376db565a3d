"""Layer normalisation, its gradient, and its fusion with an addition before it (AddLayerNorm, DeepNorm)."""

from __future__ import annotations

import torch
from torch import Tensor

from gallium.vnpu.checks import FLOATS, HALVES, check_dtype, check_shape
from gallium.vnpu.precision import cast
from gallium.vnpu.registry import Illegal, op, refuse_given
from gallium.vnpu.writing import write


@op("LayerNorm", "FastLayerNorm")
def layer_norm(
    x: Tensor,
    normalized_shape: tuple[int, ...],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    out: Tensor,
    mean: Tensor,
    rstd: Tensor,
) -> None:
    """torch.native_layer_norm, with mean and rstd in float32."""
    y, mean_value, rstd_value = torch.native_layer_norm(*_wide(x, normalized_shape, weight, bias), eps)
    if out.shape != y.shape:
        raise Illegal("the output's shape", list(out.shape), f"{list(y.shape)}")
    if mean.shape != mean_value.shape:  # of nothing
        mean_value, rstd_value = mean_value.reshape(mean.shape), rstd_value.reshape(rstd.shape)
    # One call, since three take longer than a small normalisation.
    torch._foreach_copy_((out, mean, rstd), (y, mean_value, rstd_value))


@op("LayerNormBackward")
def layer_norm_backward(
    grad_out: Tensor,
    x: Tensor,
    normalized_shape: tuple[int, ...],
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    output_mask: tuple[bool, ...],
    grad_input: Tensor | None,
    grad_weight: Tensor | None,
    grad_bias: Tensor | None,
) -> None:
    """The gradients that output_mask asks for; those of weight and bias in float32."""
    wide, shape, weight, bias = _wide(x, normalized_shape, weight, bias)
    grads = torch.ops.aten.native_layer_norm_backward(
        grad_out.to(wide.dtype), wide, shape, mean, rstd, weight, bias, list(output_mask)
    )
    for wanted, out, value in zip(output_mask, (grad_input, grad_weight, grad_bias), grads, strict=True):
        if wanted and out is not None:
            write(out, value)


@op("AddLayerNorm")
def add_layer_norm(
    x1: Tensor,
    x2: Tensor,
    gamma: Tensor,
    beta: Tensor,
    bias: Tensor | None,
    epsilon: float,
    additional_output: bool,
    y: Tensor,
    mean: Tensor,
    rstd: Tensor,
    x: Tensor,
) -> None:
    """LayerNorm of x1 + x2. The sum itself is an output only if additional_output asks for it."""
    refuse_given(bias=bias)  # torch_npu never gives it
    check_dtype("x1", x1, FLOATS)
    check_shape("x2", x2, x1.shape)
    total = x1 + x2 if x1.dtype == x2.dtype else x1.float() + x2
    layer_norm(total, tuple(gamma.shape), gamma, beta, epsilon, y, mean, rstd)
    if additional_output:
        write(x, total)


@op("AddLayerNormGrad")
def add_layer_norm_grad(
    dy: Tensor,
    x1: Tensor,
    x2: Tensor,
    rstd: Tensor,
    mean: Tensor,
    gamma: Tensor,
    d_sum: Tensor | None,
    dx: Tensor,
    dgamma: Tensor,
    dbeta: Tensor,
) -> None:
    """dx is the gradient of either input; d_sum is the gradient that reaches the sum from elsewhere."""
    grad = _sum_gradient(dy, x1.float() + x2, mean, rstd, gamma, dgamma, dbeta)
    write(dx, grad if d_sum is None else grad + d_sum)


@op("DeepNorm")
def deep_norm(
    x: Tensor,
    gx: Tensor,
    beta: Tensor,
    gamma: Tensor,
    alpha: float,
    epsilon: float,
    mean: Tensor,
    rstd: Tensor,
    y: Tensor,
) -> None:
    """LayerNorm of alpha * x + gx (op-plugin's test_npu_deep_norm)."""
    check_dtype("x", x, FLOATS)
    check_shape("gx", gx, x.shape)
    total = torch.add(gx.float(), x, alpha=alpha)
    layer_norm(total, tuple(gamma.shape), gamma.float(), beta.float(), epsilon, y, mean, rstd)


@op("DeepNormGrad")
def deep_norm_grad(
    dy: Tensor,
    x: Tensor,
    gx: Tensor,
    gamma: Tensor,
    mean: Tensor,
    rstd: Tensor,
    alpha: float,
    dx: Tensor,
    dgx: Tensor,
    dbeta: Tensor,
    dgamma: Tensor,
) -> None:
    """The gradients of DeepNorm."""
    grad = _sum_gradient(dy, torch.add(gx.float(), x, alpha=alpha), mean, rstd, gamma, dgamma, dbeta)
    write(dgx, grad)
    write(dx, grad * alpha)


def _sum_gradient(
    dy: Tensor, total: Tensor, mean: Tensor, rstd: Tensor, gamma: Tensor, dgamma: Tensor, dbeta: Tensor
) -> Tensor:
    """Write dgamma and dbeta; return the gradient of the normalised sum, in float32."""
    check_dtype("dy", dy, FLOATS)
    gamma = gamma.float()
    grad, grad_gamma, grad_beta = torch.ops.aten.native_layer_norm_backward(
        dy.float(), total, gamma.shape, mean, rstd, gamma, torch.zeros_like(gamma), [True, True, True]
    )
    write(dgamma, grad_gamma)
    write(dbeta, grad_beta)
    return grad  # type: ignore[no-any-return]


def _wide(
    x: Tensor, shape: tuple[int, ...], weight: Tensor | None, bias: Tensor | None
) -> tuple[Tensor, tuple[int, ...], Tensor | None, Tensor | None]:
    """Arguments with which PyTorch's kernel keeps mean and rstd in float32: it does if the weight is float32."""
    if (
        x.dtype == torch.float32
        and (weight is None or weight.dtype == x.dtype)
        and (bias is None or bias.dtype == x.dtype)
    ):
        return x, shape, weight, bias
    if x.dtype in HALVES and weight is None:
        x = x.float()
    dtype = torch.float32 if x.dtype in HALVES else x.dtype
    return x, shape, cast(weight, dtype), cast(bias, dtype)
