"""Comparisons and logic: results are bool tensors, or 0 and 1 in place."""

from __future__ import annotations

import torch
from torch import Tensor

from gallium.vnpu.ops._factories import Number, binary, binary_inplace, register_all, zero_dim
from gallium.vnpu.registry import op, register
from gallium.vnpu.writing import write

COMPARISONS = {"Eq": torch.eq, "Ne": torch.ne, "Lt": torch.lt, "Le": torch.le, "Gt": torch.gt, "Ge": torch.ge}

for _kind in ("Tensor", "Scalar"):
    _named = {f"{name}{_kind}": function for name, function in COMPARISONS.items()}
    register_all(_named, binary)
    register_all(_named, binary_inplace, prefix="Inplace")
# torch_npu computes `number >= tensor` by this one, with the two exchanged (op-plugin, GeKernelNpuOpApi).
register("LessScalar", binary(torch.le))

register_all({"LogicalAnd": torch.logical_and, "LogicalOr": torch.logical_or}, binary)
register_all({"LogicalAnd": torch.logical_and, "LogicalOr": torch.logical_or}, binary_inplace, prefix="Inplace")
register("LogicalXor", binary(torch.logical_xor))


@op("IsInTensorScalar")
def is_in(elements: Tensor, number: Number, assume_unique: bool, invert: bool, out: Tensor) -> None:
    """Whether each element is (inverted: is not) the number."""
    write(out, torch.isin(elements, zero_dim(number), assume_unique=assume_unique, invert=invert))


@op("IsInScalarTensor")
def number_is_in(number: Number, test_elements: Tensor, assume_unique: bool, invert: bool, out: Tensor) -> None:
    """Whether the number is (inverted: is not) among the elements."""
    write(out, torch.isin(zero_dim(number), test_elements, assume_unique=assume_unique, invert=invert))
