"""Documented limits that several attention operators share."""

from __future__ import annotations

import torch
from torch import Tensor

from gallium.vnpu import soc
from gallium.vnpu.registry import Illegal

TRAINING_CHIPS = ("910B", "910_93", "950")


def need_chip(page: str, *families: str) -> None:
    """Raise Illegal unless this chip has the operator."""
    chip = soc.current()
    if chip.family not in families:
        raise Illegal("the chip", chip.name, f"of family {', '.join(families)} ({page} page of op-plugin)")


def need_float(page: str, **tensors: Tensor | None) -> None:
    """Raise Illegal unless all are of one floating-point type of 16 or 32 bits."""
    dtype = None
    for name, x in tensors.items():
        if x is None:
            continue
        dtype = dtype or x.dtype
        if x.dtype != dtype or dtype not in (torch.float16, torch.bfloat16, torch.float32):
            legal = f"float16, bfloat16 or float32, all of one type ({page} page of op-plugin)"
            raise Illegal(name, x, legal)


def need_range(page: str, name: str, value: int, low: int, high: int) -> None:
    """Raise Illegal unless low <= value <= high."""
    if not low <= value <= high:
        raise Illegal(name, value, f"from {low} to {high} ({page} page of op-plugin)")


def need_groups(page: str, heads: int, kv_heads: int) -> None:
    """Raise Illegal unless the key's heads divide the query's."""
    if kv_heads <= 0 or heads % kv_heads:
        raise Illegal(
            "the number of heads", heads, f"a multiple of the {kv_heads} of the key ({page} page of op-plugin)"
        )
