"""Checks of arguments that many operators share: each raises Illegal with the parameter's name and what is legal."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence

import torch
from torch import Tensor

from gallium.vnpu import soc
from gallium.vnpu.refusals import Illegal

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
HALVES = (torch.float16, torch.bfloat16)
SINCE_910B = ("910B", "910_93", "950")  # the families that most fused operators need


def check_dtype(name: str, tensor: Tensor | None, allowed: Iterable[torch.dtype]) -> None:
    """The tensor is missing or of one of these types."""
    if tensor is not None and tensor.dtype not in allowed:
        raise Illegal(f"the dtype of {name}", tensor.dtype, " or ".join(map(str, allowed)))


def check_floating(name: str, tensor: Tensor) -> None:
    """The tensor holds floating-point numbers."""
    if not tensor.is_floating_point():
        raise Illegal(f"the dtype of {name}", tensor.dtype, "a floating-point type")


def check_same_dtype(name: str, tensor: Tensor | None, other_name: str, other: Tensor) -> None:
    """The tensor is missing or of the other's type."""
    if tensor is not None and tensor.dtype != other.dtype:
        raise Illegal(f"the dtype of {name}", tensor.dtype, f"that of {other_name}, {other.dtype}")


def check_dims(name: str, tensor: Tensor, low: int, high: int) -> None:
    """The tensor has between `low` and `high` dimensions."""
    if not low <= tensor.dim() <= high:
        raise Illegal(f"the number of dimensions of {name}", tensor.dim(), f"{low} to {high}")


def check_shape(name: str, tensor: Tensor | None, shape: Sequence[int]) -> None:
    """The tensor is missing or has this shape."""
    if tensor is not None and tuple(tensor.shape) != tuple(shape):
        raise Illegal(f"the shape of {name}", list(tensor.shape), str(list(shape)))


def check_not_empty(name: str, tensor: Tensor | None) -> None:
    """The tensor is missing or has elements."""
    if tensor is not None and tensor.numel() == 0:
        raise Illegal(f"the shape of {name}", list(tensor.shape), "without a 0: empty tensors are not taken")


def check_choice(name: str, value: object, allowed: Container[object], legal: str = "") -> None:
    """The value is one of these. `legal` says so in words."""
    if value not in allowed:
        raise Illegal(name, value, legal or f"one of {allowed}")


def check_family(operator: str, *families: str) -> None:
    """The chip's family is one of these."""
    chip = soc.current()
    if chip.family not in families:
        raise Illegal("the chip", chip.name, f"of family {' or '.join(families)}: {operator} exists only there")
