"""Manifold-constrained hyper-connections (mHC): the mappings before and after a layer, and Sinkhorn's iteration.

Pages of op-plugin: torch_npu.npu_mhc_pre, npu_mhc_post, npu_mhc_sinkhorn; for the gradients its docstrings and tests.
`streams` is n, the number of residual streams; rows are all tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gallium.vnpu.checks import (
    HALVES,
    SINCE_910B,
    check_choice,
    check_dims,
    check_dtype,
    check_family,
    check_not_empty,
    check_shape,
)
from gallium.vnpu.refusals import Illegal
from gallium.vnpu.registry import op
from gallium.vnpu.writing import write

STREAMS = (4, 6, 8)
WIDEST, WIDTH_MULTIPLE = 16384, 16
MOST_ITERATIONS = 100
ROOM = 8  # floats that the two outputs of MhcSinkhorn for its gradient have for each row of a matrix
PRECISION = {"inner_precise": "chooses the precision of the cube unit, which is not emulated"}


@op("MhcPre")
def mhc_pre(
    x: Tensor,
    phi: Tensor,
    alpha: Tensor,
    bias: Tensor,
    gamma: Tensor | None,
    norm_eps: float,
    hc_eps: float,
    h_in: Tensor,
    h_post: Tensor,
    h_res: Tensor,
    inv_rms: Tensor | None,
    h_mix: Tensor | None,
    h_pre: Tensor | None,
) -> None:
    """The layer's input and the two mappings for after it. Without a third alpha there is no h_res: it is 0."""
    _pre(x, phi, alpha, bias, gamma, norm_eps, hc_eps, (h_in, h_post, h_res, inv_rms, h_mix, h_pre))


@op("MhcPreV2", unused=PRECISION)
def mhc_pre_with_precision(
    x: Tensor,
    phi: Tensor,
    alpha: Tensor,
    bias: Tensor,
    gamma: Tensor | None,
    norm_eps: float,
    hc_eps: float,
    inner_precise: int,
    h_in: Tensor,
    h_post: Tensor,
    h_res: Tensor,
    inv_rms: Tensor | None,
    h_mix: Tensor | None,
    h_pre: Tensor | None,
) -> None:
    """MhcPre."""
    _pre(x, phi, alpha, bias, gamma, norm_eps, hc_eps, (h_in, h_post, h_res, inv_rms, h_mix, h_pre))


@op("MhcPreBackward")
def mhc_pre_backward(
    x: Tensor,
    phi: Tensor,
    alpha: Tensor,
    grad_h_in: Tensor,
    grad_h_post: Tensor,
    grad_h_res: Tensor,
    inv_rms: Tensor,
    h_mix: Tensor,
    h_pre: Tensor,
    h_post: Tensor,
    gamma: Tensor | None,
    grad_x_post: Tensor | None,
    hc_eps: float,
    grad_x: Tensor,
    grad_phi: Tensor,
    grad_alpha: Tensor,
    grad_bias: Tensor,
    grad_gamma: Tensor,
) -> None:
    """The gradients of MhcPre; grad_x_post, that of x from MhcPost, is added to grad_x."""
    given = grad_h_in, grad_h_post, grad_h_res, inv_rms, h_mix, h_pre, h_post, gamma, grad_x_post
    _pre_backward(x, phi, alpha, given, hc_eps, (grad_x, grad_phi, grad_alpha, grad_bias, grad_gamma))


@op("MhcPreBackwardV2", unused=PRECISION)
def mhc_pre_backward_with_precision(
    x: Tensor,
    phi: Tensor,
    alpha: Tensor,
    grad_h_in: Tensor,
    grad_h_post: Tensor,
    grad_h_res: Tensor,
    inv_rms: Tensor,
    h_mix: Tensor,
    h_pre: Tensor,
    h_post: Tensor,
    gamma: Tensor | None,
    grad_x_post: Tensor | None,
    hc_eps: float,
    inner_precise: int,
    grad_x: Tensor,
    grad_phi: Tensor,
    grad_alpha: Tensor,
    grad_bias: Tensor,
    grad_gamma: Tensor,
) -> None:
    """MhcPreBackward."""
    given = grad_h_in, grad_h_post, grad_h_res, inv_rms, h_mix, h_pre, h_post, gamma, grad_x_post
    _pre_backward(x, phi, alpha, given, hc_eps, (grad_x, grad_phi, grad_alpha, grad_bias, grad_gamma))


@op("MhcPost")
def mhc_post(x: Tensor, h_res: Tensor | None, h_out: Tensor, h_post: Tensor, out: Tensor) -> None:
    """h_resᵀ x + h_post h_outᵀ: the streams after a layer. Without h_res the streams are not mixed."""
    _check_post(x, h_res, h_out, h_post)
    mixed = x.float() if h_res is None else h_res.transpose(-1, -2) @ x.float()
    write(out, mixed + h_post[..., None] * h_out[..., None, :].float())


@op("MhcPostBackward")
def mhc_post_backward(
    grad_y: Tensor,
    x: Tensor,
    h_res: Tensor | None,
    h_out: Tensor,
    h_post: Tensor,
    grad_x: Tensor,
    grad_h_res: Tensor,
    grad_h_out: Tensor,
    grad_h_post: Tensor,
) -> None:
    """The gradients of MhcPost; without h_res its gradient is zero."""
    _check_post(x, h_res, h_out, h_post)
    grad = grad_y.float()
    write(grad_x, grad if h_res is None else h_res @ grad)
    if h_res is None:
        grad_h_res.zero_()
    else:
        write(grad_h_res, x.float() @ grad.transpose(-1, -2))
    write(grad_h_out, (h_post[..., None] * grad).sum(-2))
    write(grad_h_post, (grad * h_out[..., None, :].float()).sum(-1))


@op("MhcSinkhorn")
def mhc_sinkhorn(
    x: Tensor, eps: float, num_iters: int, out: Tensor, norm_out: Tensor | None, sum_out: Tensor | None
) -> None:
    """softmax + eps, then columns and rows divided by their sums + eps in turn, columns first and last.

    norm_out and sum_out hold every step, for MhcSinkhornBackward alone to read: how they lie in memory is not
    documented. Here sum_out begins with eps, in the place of a sum that does not exist.
    """
    check_family("MhcSinkhorn", "950")
    check_dtype("x", x, (torch.float32,))
    check_dims("x", x, 3, 4)
    check_not_empty("x", x)
    if x.shape[-1] not in STREAMS or x.shape[-2] != x.shape[-1]:
        raise Illegal("the shape of x", list(x.shape), f"square matrices of {STREAMS} rows")
    if not 1 <= num_iters <= MOST_ITERATIONS:
        raise Illegal("num_iters", num_iters, f"1 to {MOST_ITERATIONS}")
    y = torch.softmax(x, -1) + eps
    norms, sums = [y], [torch.full_like(y[..., 0], eps)]
    for step in range(1, 2 * num_iters):
        total = y.sum(-2 if step % 2 else -1, keepdim=True) + eps
        y = y / total
        norms.append(y)
        sums.append(total.flatten(-2))
    write(out, y)
    n = x.shape[-1]
    if norm_out is not None and sum_out is not None:
        kept = torch.stack(norms).reshape(2 * num_iters, -1, n, n)
        norm_out.view(2 * num_iters, -1, n, ROOM)[..., :n] = kept
        sum_out.view(2 * num_iters, -1, ROOM)[..., :n] = torch.stack(sums).reshape(2 * num_iters, -1, n)


@op("MhcSinkhornBackward")
def mhc_sinkhorn_backward(grad_y: Tensor, norm: Tensor, total: Tensor, out: Tensor) -> None:
    """The gradient of MhcSinkhorn from the steps that it kept."""
    check_family("MhcSinkhornBackward", "950")
    n = grad_y.shape[-1]
    matrices = grad_y.numel() // (n * n)
    norms = norm.view(-1, matrices, n, ROOM)[..., :n]
    sums = total.view(-1, matrices, ROOM)[..., :n]
    grad = grad_y.reshape(matrices, n, n)
    for step in range(len(norms) - 1, 0, -1):
        dim = -2 if step % 2 else -1
        grad = (grad - (grad * norms[step]).sum(dim, keepdim=True)) / sums[step].unsqueeze(dim)
    soft = norms[0] - sums[0][..., None]  # sum_out begins with eps
    write(out, (soft * (grad - (grad * soft).sum(-1, keepdim=True))).view(out.shape))


def _check_pre(x: Tensor, phi: Tensor, alpha: Tensor) -> tuple[int, int]:
    """Streams and width."""
    check_family("MhcPre", "950")
    check_dtype("x", x, HALVES)
    check_dims("x", x, 3, 4)
    streams, width = x.shape[-2:]
    check_choice("the streams of x", streams, STREAMS)
    if width > WIDEST or width % WIDTH_MULTIPLE:
        raise Illegal("the last dimension of x", width, f"a multiple of {WIDTH_MULTIPLE}, at most {WIDEST}")
    for name, tensor in (("phi", phi), ("alpha", alpha)):
        check_dtype(name, tensor, (torch.float32,))
    rows = 2 * streams + (streams * streams if alpha.numel() == 3 else 0)
    check_shape("phi", phi, (rows, streams * width))
    return streams, width


Outputs = tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]


def _pre(
    x: Tensor,
    phi: Tensor,
    alpha: Tensor,
    bias: Tensor,
    gamma: Tensor | None,
    norm_eps: float,
    hc_eps: float,
    outputs: Outputs,
) -> None:
    streams, width = _check_pre(x, phi, alpha)
    check_shape("bias", bias, (phi.shape[0],))
    check_shape("gamma", gamma, (streams, width))
    wide = x.float()
    flat = wide.reshape(-1, streams * width)
    inverse = torch.rsqrt(flat.square().mean(-1, keepdim=True) + norm_eps)
    mixed = (flat if gamma is None else flat * gamma.reshape(-1)) @ phi.T
    sizes = [streams, streams, phi.shape[0] - 2 * streams]
    pre, post, res = torch.split(mixed * inverse, sizes, -1)
    bias_pre, bias_post, bias_res = torch.split(bias, sizes)
    before = torch.sigmoid(alpha[0] * pre + bias_pre) + hc_eps
    h_in, h_post, h_res, inv_rms, h_mix, h_pre = outputs
    write(h_in, (before[..., None] * wide.reshape(-1, streams, width)).sum(-2).view(h_in.shape))
    write(h_post, (2 * torch.sigmoid(alpha[1] * post + bias_post)).view(h_post.shape))
    if alpha.numel() == 3:
        write(h_res, (alpha[2] * res + bias_res).view(h_res.shape))
    else:
        h_res.zero_()
    for place, value in ((inv_rms, inverse), (h_mix, mixed), (h_pre, before)):
        if place is not None:
            write(place, value.view(place.shape))


def _pre_backward(
    x: Tensor,
    phi: Tensor,
    alpha: Tensor,
    given: tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None],
    hc_eps: float,
    outputs: tuple[Tensor, Tensor, Tensor, Tensor, Tensor],
) -> None:
    grad_h_in, grad_h_post, grad_h_res, inv_rms, h_mix, h_pre, h_post, gamma, grad_x_post = given
    streams, width = _check_pre(x, phi, alpha)
    check_shape("alpha", alpha, (3,))
    wide = x.float().reshape(-1, streams, width)
    flat, inverse, mixed = wide.flatten(1), inv_rms.reshape(-1, 1), h_mix.reshape(-1, phi.shape[0])
    before, post = h_pre.reshape(-1, streams), h_post.reshape(-1, streams)
    grad_in = grad_h_in.float().reshape(-1, 1, width)
    gate = before - hc_eps
    grad_pre = (grad_in * wide).sum(-1) * gate * (1 - gate)
    grad_post = grad_h_post.reshape(-1, streams) * post * (1 - post / 2)
    grad_res = grad_h_res.reshape(-1, streams * streams)
    grads = [grad_pre, grad_post, grad_res]
    sizes = [g.shape[1] for g in grads]
    normal = torch.split(mixed * inverse, sizes, -1)
    scaled = torch.cat([a * g for a, g in zip(alpha, grads, strict=True)], -1)
    grad_mixed = scaled * inverse
    grad_flat = grad_mixed @ phi
    weighted = flat if gamma is None else flat * gamma.reshape(-1)
    grad_inverse = (scaled * mixed).sum(-1, keepdim=True)
    total = grad_flat if gamma is None else grad_flat * gamma.reshape(-1)
    total = total - grad_inverse * inverse.pow(3) * flat / flat.shape[1]
    total = total + (before[..., None] * grad_in).flatten(1)
    grad_x, grad_phi, grad_alpha, grad_bias, grad_gamma = outputs
    total = total.view(grad_x.shape)
    write(grad_x, total if grad_x_post is None else total + grad_x_post.float())
    write(grad_phi, grad_mixed.T @ weighted)
    write(grad_alpha, torch.stack([(g * v).sum() for g, v in zip(grads, normal, strict=True)]))
    write(grad_bias, torch.cat(grads, -1).sum(0))
    write(grad_gamma, (grad_flat * flat).sum(0).view(streams, width))


def _check_post(x: Tensor, h_res: Tensor | None, h_out: Tensor, h_post: Tensor) -> None:
    # Only the 950 takes no h_res: op-plugin's docstring of npu_mhc_post.
    check_family("MhcPost", *(SINCE_910B if h_res is not None else ("950",)))
    check_dtype("x", x, HALVES)
    check_dims("x", x, 3, 4)
    *rows, streams, width = x.shape
    check_shape("h_res", h_res, (*rows, streams, streams))
    check_shape("h_out", h_out, (*rows, width))
    check_shape("h_post", h_post, (*rows, streams))
    for name, tensor in (("h_res", h_res), ("h_post", h_post)):
        check_dtype(name, tensor, (torch.float32,))
