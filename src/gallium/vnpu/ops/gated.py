"""Gated activations: SwiGLU, its clipped form, GeGLU and GeluMul, with their gradients."""

from __future__ import annotations

import torch
import torch.nn.functional as nn
from torch import Tensor

from gallium.vnpu.checks import FLOATS, check_choice, check_dims, check_dtype, check_not_empty
from gallium.vnpu.refusals import Illegal
from gallium.vnpu.registry import op
from gallium.vnpu.writing import write

GELU = {0: "none", 1: "tanh"}  # GeGluV3's integer and GeluMul's word for the same choice
LONGEST_GELU_MUL_ROW, MOST_GELU_MUL_ROWS = 1024, 200_000


@op("SwiGlu")
def swiglu(x: Tensor, dim: int, out: Tensor) -> None:
    """out = silu(a) * b, where a and b are the halves of x along dim, computed in float32."""
    check_dtype("x", x, FLOATS)
    check_not_empty("x", x)  # docs of op-plugin: torch_npu.npu_swiglu
    gate, up = halves(x, dim)
    if x.dtype == torch.float32:
        torch.mul(nn.silu(gate), up, out=out)
    else:
        out.copy_(nn.silu(gate.float(), inplace=True).mul_(up))  # kernels of mixed types are slower


@op("SwiGluGrad")
def swiglu_grad(grad_output: Tensor, x: Tensor, dim: int, out: Tensor) -> None:
    """The gradient of SwiGlu."""
    check_dtype("x", x, FLOATS)
    gate, up = halves(x, dim)
    grad_gate, grad_up = halves(out, dim)
    wide = gate.float()
    torch.mul(nn.silu(wide), grad_output, out=grad_up)
    write(grad_gate, torch.ops.aten.silu_backward(grad_output * up.float(), wide))


@op("ClippedSwiglu")
def clipped_swiglu(
    x: Tensor,
    group_index: Tensor | None,
    dim: int,
    alpha: float,
    limit: float,
    bias: float,
    interleaved: bool,
    out: Tensor,
) -> None:
    """SwiGlu as GPT-OSS has it (docs of op-plugin: torch_npu.npu_clipped_swiglu).

    The dimensions before dim count as one; with group_index, only its first sum(group_index) rows are computed, and
    the rest of the output keeps what it held, as on the chip.
    """
    check_dtype("x", x, FLOATS)
    check_dims("x", x, 2, 8)
    dim %= x.dim()
    if not x.is_contiguous():
        raise Illegal("the strides of x", x.stride(), "those of a contiguous tensor (docs: npu_clipped_swiglu)")
    if x.shape[dim] % 2:
        raise Illegal(f"dimension {dim} of x", x.shape[dim], "even")
    rows, result = (t.view(t.shape[:dim].numel(), t.shape[dim:].numel()) for t in (x, out))
    if group_index is not None:
        check_dtype("group_index", group_index, (torch.int64,))
        used = max(0, int(group_index.sum()))
        rows, result = rows[:used], result[:used]
    gate, up = (rows[:, ::2], rows[:, 1::2]) if interleaved else halves(rows, 1)
    result.copy_(clipped_gate(gate.float(), up.float(), alpha, limit, bias))


def clipped_gate(gate: Tensor, up: Tensor, alpha: float, limit: float, bias: float) -> Tensor:
    """min(gate, limit) * sigmoid(alpha * that) * (clamp(up, ±limit) + bias)."""
    gate = gate.clamp(max=limit)
    return gate * torch.sigmoid(alpha * gate) * (up.clamp(-limit, limit) + bias)


@op("GeGluV3")
def geglu(x: Tensor, dim: int, approximate: int, activate_left: bool, out: Tensor, out_gelu: Tensor) -> None:
    """out = gelu(one half) * the other half; out_gelu = gelu(one half). The left half is activated if asked for."""
    check_dtype("x", x, FLOATS)
    check_choice("approximate", approximate, GELU, "0 (none) or 1 (tanh)")
    other, active = in_order(x, dim, activate_left)
    activated = nn.gelu(active.float(), approximate=GELU[approximate])
    write(out_gelu, activated)
    torch.mul(activated, other, out=out)


@op("GeGluV3Backward")
def geglu_backward(
    grad_output: Tensor,
    x: Tensor,
    gelu: Tensor,
    dim: int,
    approximate: int,
    activate_left: bool,
    grad_input: Tensor,
) -> None:
    """The gradient of GeGluV3's first output; gelu is its second."""
    check_dtype("x", x, FLOATS)
    check_choice("approximate", approximate, GELU, "0 (none) or 1 (tanh)")
    other, active = in_order(x, dim, activate_left)
    grad_other, grad_active = in_order(grad_input, dim, activate_left)
    torch.mul(gelu, grad_output, out=grad_other)
    grad = grad_output * other.float()
    write(grad_active, torch.ops.aten.gelu_backward(grad, active.float(), approximate=GELU[approximate]))


@op("GeluMul")
def gelu_mul(x: Tensor, approximate: str, out: Tensor) -> None:
    """out = gelu(left half) * right half (docs of op-plugin: torch_npu.npu_gelu_mul)."""
    check_dtype("x", x, FLOATS)
    check_choice("approximate", approximate, tuple(GELU.values()))
    check_dims("input", x, 2, 8)
    if x.shape[-1] > LONGEST_GELU_MUL_ROW:
        raise Illegal("the last dimension", x.shape[-1], f"at most {LONGEST_GELU_MUL_ROW} (docs: npu_gelu_mul)")
    if x.shape[:-1].numel() > MOST_GELU_MUL_ROWS:
        raise Illegal("the number of rows", x.shape[:-1].numel(), f"at most {MOST_GELU_MUL_ROWS} (docs: npu_gelu_mul)")
    active, other = halves(x, -1)
    torch.mul(nn.gelu(active.float(), approximate=approximate), other, out=out)


def halves(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """The two halves along dim. Raises Illegal if it is odd."""
    if x.shape[dim] % 2:
        raise Illegal(f"dimension {dim}", x.shape[dim], "even")
    left, right = x.chunk(2, dim)
    return left, right


def in_order(x: Tensor, dim: int, activate_left: bool) -> tuple[Tensor, Tensor]:
    """The half that is not activated, then the one that is."""
    left, right = halves(x, dim)
    return (right, left) if activate_left else (left, right)
