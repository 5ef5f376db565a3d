"""Root-mean-square normalisation, its gradient, and its fusion with an addition before it."""

from __future__ import annotations

from functools import cache, lru_cache

import torch
from torch import Tensor

from gallium.vnpu import soc
from gallium.vnpu.checks import FLOATS, check_not_empty, check_same_dtype, check_shape
from gallium.vnpu.refusals import Illegal
from gallium.vnpu.registry import op
from gallium.vnpu.writing import write

# Limits: docs of op-plugin, torch_npu.npu_rms_norm and torch_npu.npu_add_rms_norm.
OLD_FAMILIES = ("910", "310P")  # no mix of dtypes
FEWEST_BYTES_310P = 32  # of the last dimension


@op("RmsNorm")
def rms_norm(x: Tensor, gamma: Tensor, epsilon: float, y: Tensor, rstd: Tensor) -> None:
    """y = x / rms(x) * gamma over the trailing dimensions, as many as gamma has; rstd = 1 / rms(x), in float32."""
    scaled_by_rstd(x, reciprocal_rms(x, gamma, epsilon, rstd), gamma, y)


@op("GemmaRmsNorm")
def gemma_rms_norm(x: Tensor, gamma: Tensor, epsilon: float, y: Tensor, rstd: Tensor) -> None:
    """RmsNorm with 1 + gamma in gamma's place (op-plugin's test_npu_gemma_rms_norm)."""
    scaled_by_rstd(x, reciprocal_rms(x, gamma, epsilon, rstd), gamma.float() + 1, y)


@op("AddRmsNorm")
def add_rms_norm(x1: Tensor, x2: Tensor, gamma: Tensor, epsilon: float, y: Tensor, rstd: Tensor, x: Tensor) -> None:
    """x = x1 + x2 in their dtype, then RmsNorm of x."""
    add_residual(x1, x2, gamma, x)
    scaled_by_rstd(x, reciprocal_rms(x, gamma, epsilon, rstd), gamma, y)


@op("InplaceAddRmsNorm")
def inplace_add_rms_norm(x1: Tensor, x2: Tensor, gamma: Tensor, epsilon: float, rstd: Tensor) -> None:
    """AddRmsNorm that puts y into x1 and the sum into x2."""
    add_residual(x1, x2, gamma, x2)
    scaled_by_rstd(x2, reciprocal_rms(x2, gamma, epsilon, rstd), gamma, x1)


@op("AddRmsNormCast")
def add_rms_norm_cast(
    x1: Tensor, x2: Tensor, gamma: Tensor, epsilon: float, y1: Tensor, y2: Tensor, rstd: Tensor, x: Tensor
) -> None:
    """AddRmsNorm that gives y twice: y1 in float32, y2 in the inputs' dtype."""
    add_residual(x1, x2, gamma, x)
    scaled_by_rstd(x, reciprocal_rms(x, gamma, epsilon, rstd), gamma, y1)
    write(y2, y1)


@op("RmsNormGrad")
def rms_norm_grad(dy: Tensor, x: Tensor, rstd: Tensor, gamma: Tensor, dx: Tensor, dgamma: Tensor) -> None:
    """The gradients of RmsNorm; dgamma in float32."""
    check_gamma(x, gamma)
    write(dx, input_gradient(dy, x, rstd, gamma, dgamma))


def input_gradient(dy: Tensor, x: Tensor, rstd: Tensor, gamma: Tensor, dgamma: Tensor) -> Tensor:
    """Write dgamma and return dx in float32."""
    check_shape("dy", dy, x.shape)
    dims, kept = _plan(soc.current().family, x.dtype, x.shape, gamma.dtype, gamma.shape)
    spread = rstd.reshape(kept)
    normal = x * spread
    torch.sum((dy * normal).reshape(-1, *gamma.shape), 0, out=dgamma)
    grad = dy.float() * gamma
    along = (grad * normal).mean(dims, keepdim=True)
    return grad.addcmul_(normal, along, value=-1).mul_(spread)


def reciprocal_rms(x: Tensor, gamma: Tensor, epsilon: float, out: Tensor | None = None) -> Tensor:
    """1 / sqrt(mean(x²) + epsilon) in float32, with a 1 for each normalised dimension; written to `out` if given."""
    dims, kept = _plan(soc.current().family, x.dtype, x.shape, gamma.dtype, gamma.shape)
    if out is None:
        out = torch.empty(kept)
    elif out.shape != kept:
        raise Illegal("the shape of rstd", list(out.shape), str(list(kept)))
    if gamma.numel() == 0:
        return out.fill_(torch.nan)
    torch.linalg.vector_norm(x, 2, dims, True, dtype=torch.float32, out=out)
    return torch.addcmul(_scalar(epsilon), out, out, value=1 / gamma.numel(), out=out).rsqrt_()


def scaled_by_rstd(x: Tensor, rstd: Tensor, gamma: Tensor, y: Tensor) -> None:
    """y = x * rstd * gamma, computed in float32."""
    if x.dtype == torch.float32:
        torch.mul(x, rstd, out=y).mul_(gamma)
    else:
        y.copy_(x.float().mul_(rstd).mul_(gamma.float()))  # widened first: kernels of mixed types are slower


def add_residual(x1: Tensor, x2: Tensor, gamma: Tensor, out: Tensor) -> None:
    """out = x1 + x2, after the checks that all fusions with an addition share."""
    check_not_empty("x1", x1)
    check_shape("x2", x2, x1.shape)
    check_same_dtype("x2", x2, "x1", x1)
    check_same_dtype("gamma", gamma, "x1", x1)
    check_gamma(x1, gamma)
    torch.add(x1, x2, out=out)


def check_gamma(x: Tensor, gamma: Tensor) -> None:
    """Raise Illegal unless gamma has the trailing dimensions of x and a legal dtype beside it."""
    _plan(soc.current().family, x.dtype, x.shape, gamma.dtype, gamma.shape)


@lru_cache(4096)  # the checks take longer than the smallest normalisation
def _plan(
    family: str, x_type: torch.dtype, x: torch.Size, gamma_type: torch.dtype, gamma: torch.Size
) -> tuple[tuple[int, ...], torch.Size]:
    """The dimensions that are normalised together, and the shape of rstd. Raises Illegal."""
    if x_type not in FLOATS:
        raise Illegal("the dtype of x", x_type, " or ".join(map(str, FLOATS)))
    outer = len(x) - len(gamma)
    if outer < 0 or gamma != x[outer:]:
        raise Illegal("the shape of gamma", list(gamma), f"the last dimensions of x, {list(x)}")
    mixes = family not in OLD_FAMILIES
    if gamma_type != x_type and not (mixes and gamma_type == torch.float32):
        raise Illegal("the dtype of gamma", gamma_type, f"{x_type}{' or torch.float32' if mixes else ''}")
    if family == "310P" and 0 < x[-1] * x_type.itemsize < FEWEST_BYTES_310P:
        raise Illegal("the last dimension", x[-1], f"at least {FEWEST_BYTES_310P} bytes long on {family}")
    return tuple(range(-len(gamma), 0)), torch.Size((*x[:outer], *(1 for _ in gamma)))


@cache
def _scalar(value: float) -> Tensor:
    return torch.tensor(value)
