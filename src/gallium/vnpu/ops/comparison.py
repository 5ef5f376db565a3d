"""Comparisons and logic: results are bool tensors, or 0 and 1 in place."""

from __future__ import annotations

import torch
from torch import Tensor

from gallium.vnpu.ops._factories import Number, binary, binary_inplace, register_all
from gallium.vnpu.registry import op, register
from gallium.vnpu.writing import into

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


@op("IsInTensorScalar", "IsInScalarTensor")
def is_in(
    elements: Tensor | Number, test_elements: Tensor | Number, assume_unique: bool, invert: bool, out: Tensor
) -> None:
    """Whether each element is (inverted: is not) among the test elements; one of the two is a number."""
    into(torch.isin, out, elements, test_elements, assume_unique=assume_unique, invert=invert)
