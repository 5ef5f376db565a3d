"""How much an operator call moves and computes: bytes of its tensors, and operations where a formula is known."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor

from gallium.vnpu.tensors import Blocked, Opaque, Packed4

Formula = Callable[[Sequence[Any]], int]


def tensors_of(args: Sequence[Any]) -> Iterator[Any]:
    """All tensors among the arguments, those in lists too."""
    for value in args:
        if isinstance(value, Tensor | Blocked | Packed4 | Opaque):
            yield value
        elif isinstance(value, tuple):
            yield from (item for item in value if isinstance(item, Tensor | Blocked | Packed4 | Opaque))


def bytes_of(args: Sequence[Any]) -> int:
    """Bytes of all tensors of a call, inputs and outputs."""
    return sum(_bytes(x) for x in tensors_of(args))


def _bytes(x: Any) -> int:
    if isinstance(x, Tensor):
        return x.numel() * x.element_size()
    return int(x.storage.numel() * x.storage.element_size())


def describe(args: Sequence[Any]) -> str:
    """Types and shapes of a call's tensors, such as "float32[2, 3] float32[3, 4]"."""
    return " ".join(f"{_type(x)}{list(x.shape)}" for x in tensors_of(args))


def _type(x: Any) -> str:
    if isinstance(x, Packed4):
        return "int4"
    if isinstance(x, Opaque):
        return x.type_name
    name = str(x.dtype).removeprefix("torch.")
    return f"{name}(NZ)" if isinstance(x, Blocked) else name


def _product(args: Sequence[Any]) -> int:
    """2 M N K for the first two matrices of a call."""
    matrices = [x for x in tensors_of(args) if len(x.shape) >= 2]
    if len(matrices) < 2:
        return 0
    left, right = matrices[0].shape, matrices[1].shape
    return int(2 * math.prod(left) * right[-1] if len(left) >= len(right) else 2 * left[-2] * math.prod(right))


def _added_product(args: Sequence[Any]) -> int:
    """2 M N K where the first tensor is added to the product of the next two."""
    return _product(list(tensors_of(args))[1:])


def _convolution(args: Sequence[Any]) -> int:
    """2 x outputs x inputs that each output reads; the output is the last tensor."""
    found = list(tensors_of(args))
    return int(2 * math.prod(found[-1].shape) * math.prod(found[1].shape[1:]))


def _attention(args: Sequence[Any]) -> int:
    """4 x query elements x keys per query: scores and mixing, as if nothing were masked."""
    query, key = list(tensors_of(args))[:2]
    positions = math.prod(key.shape[:-1]) // max(query.shape[0], 1) if len(query.shape) > 2 else key.shape[0]
    heads = key.shape[1] if len(key.shape) == 4 else 1
    return int(4 * math.prod(query.shape) * max(positions // heads, 1))


_PRODUCTS = ["Matmul", "Mm", "BatchMatMul", "MatmulWeightNz", "BatchMatMulWeightNz", "Mv", "Dot"]
_PRODUCTS += ["TransposeBatchMatMul", "QuantMatmulV5", "QuantMatmulWeightNz"]
_PRODUCTS += ["WeightQuantBatchMatmulV2", "WeightQuantBatchMatmulV3", "WeightQuantBatchMatmulNz"]
_ADDED_PRODUCTS = ["Addmm", "Baddbmm", "Addbmm", "Addmv", "AddmmWeightNz", "InplaceAddmm"]
_ATTENTION = ["FlashAttentionScore", "FlashAttentionScoreV2", "FlashAttentionScoreV3", "FlashAttentionScoreV4"]

FORMULAS: dict[str, Formula] = {
    **dict.fromkeys(_PRODUCTS, _product),
    **dict.fromkeys(_ADDED_PRODUCTS, _added_product),
    **dict.fromkeys(("Convolution", "ConvDepthwise2d"), _convolution),
    **dict.fromkeys(_ATTENTION, _attention),
}
"""Operators whose work is more than one operation per element."""


def operations_of(name: str, args: Sequence[Any]) -> int:
    """Floating-point operations of a call: by formula, else one per element of the largest tensor."""
    if name in FORMULAS:
        return FORMULAS[name](args)
    return max((math.prod(x.shape) for x in tensors_of(args)), default=0)
