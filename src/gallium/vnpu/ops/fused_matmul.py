"""Matrix products fused with what follows: TransposeBatchMatMul, FusedMatmul."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from gallium.vnpu.ops.matmul import CUBE_MATH, product
from gallium.vnpu.registry import Illegal, Unsupported, op, refuse_given
from gallium.vnpu.tensors import Blocked, dense
from gallium.vnpu.writing import write

Matrix = Tensor | Blocked

_PAGE = "op-plugin docs, npu_transpose_batchmatmul"


@op("TransposeBatchMatMul", "TransposeBatchMatMulWeightNz", cube=True, unused=CUBE_MATH)
def transpose_batch_matmul(
    input: Tensor,
    weight: Matrix,
    bias: Tensor | None,
    scale: Tensor | None,
    perm_x1: tuple[int, ...],
    perm_x2: tuple[int, ...],
    perm_y: tuple[int, ...],
    cube_math_type: int,
    batch_split_factor: int,
    out: Tensor,
) -> None:
    """Batched product of permuted inputs, with the batch second in the output (docs: npu_transpose_batchmatmul).

    With a split factor f the output is `[f, M, B * N / f]`: the row of each m, `[B * N]`, cut into f pieces.
    """
    refuse_given(scale=scale)
    if bias is not None:
        raise Illegal("bias", bias, f"left out ({_PAGE})")
    for name, value, legal in (
        ("perm_x1", perm_x1, ((0, 1, 2), (1, 0, 2))),
        ("perm_x2", perm_x2, ((0, 1, 2), (0, 2, 1))),
        ("perm_y", perm_y, ((1, 0, 2),)),
    ):
        if tuple(value) not in legal:
            raise Illegal(name, list(value), f"one of {legal} ({_PAGE})")
    a, b = input.permute(perm_x1), dense(weight).permute(perm_x2)
    _check_sizes(a, b, batch_split_factor)
    if batch_split_factor == 1:
        if out.shape != (a.shape[1], a.shape[0], b.shape[2]):
            raise Illegal("the output's shape", list(out.shape), f"[M, B, N] ({_PAGE})")
        torch.bmm(a, b, out=out.transpose(0, 1))
        return
    rows = torch.matmul(a, b).transpose(0, 1).reshape(a.shape[1], batch_split_factor, -1)
    write(out, rows.transpose(0, 1))


def _check_sizes(a: Tensor, b: Tensor, split: int) -> None:
    k, n = b.shape[1:]
    if k % 16 or n % 16:
        raise Illegal("the sizes (K, N)", (k, n), f"multiples of 16 ({_PAGE})")
    if not 1 <= a.shape[0] < 65536 or max(k, n) >= 65536:
        raise Illegal("the sizes (B, K, N)", (a.shape[0], k, n), f"from 1 to 65535 ({_PAGE})")
    if split < 1 or n % split:
        raise Illegal("batch_split_factor", split, f"a divisor of N = {n} ({_PAGE})")


# What follows the product. 16cast32 asks for a float32 output of 16-bit inputs.
_ALONE: dict[str, Callable[[Tensor], Tensor] | None] = {
    "": None,
    "16cast32": None,
    "gelu_erf": torch.nn.functional.gelu,
    "gelu_tanh": partial(torch.nn.functional.gelu, approximate="tanh"),
}
_WITH_X3: dict[str, Callable[..., Tensor]] = {"add": torch.add, "mul": torch.mul}


@op("FusedMatmul", cube=True, unused=CUBE_MATH)
def fused_matmul(
    x: Tensor,
    x2: Matrix,
    bias: Tensor | None,
    x3: Tensor | None,
    fused_op_type: str,
    cube_math_type: int,
    out: Tensor,
) -> None:
    """A product, then the named operation (op-plugin's kernel and tests of npu_fused_matmul)."""
    refuse_given(bias=bias)
    if fused_op_type not in _ALONE and fused_op_type not in _WITH_X3:
        raise Unsupported("fused_op_type", fused_op_type, ", ".join(map(repr, (*_ALONE, *_WITH_X3))))
    if (x3 is not None) != (fused_op_type in _WITH_X3):
        raise Illegal("x3", x3, "given with fused_op_type add and mul, and with no other")
    product(out, x, dense(x2))
    if x3 is not None:
        _WITH_X3[fused_op_type](out, x3, out=out)
    elif after := _ALONE[fused_op_type]:
        out.copy_(after(out))
