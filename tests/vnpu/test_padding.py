"""Padding and its gradients against PyTorch's on the CPU."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as nn
from tests.vnpu.against_cpu import agree, gradients
from torch import Tensor

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
SHAPES = {1: (2, 3, 6), 2: (2, 3, 5, 6), 3: (2, 3, 4, 5, 6)}
PADS = {1: (2, 3), 2: (2, 3, 1, 0), 3: (2, 3, 1, 0, 2, 1)}


@pytest.mark.parametrize("dtype", (*DTYPES, torch.int64, torch.bool))
@pytest.mark.parametrize("pad", [(1, 2), (0, 0), (-1, 2), (2, -1, 0, 3), (-2, -1), (0, 0, 1, 1, 2, 0), (-3, -2)])
def test_constant(pad: tuple[int, ...], dtype: torch.dtype) -> None:
    x = torch.randint(0, 9, (2, 3, 5)).to(dtype)
    agree(lambda x: torch.constant_pad_nd(x, pad, 1), x, runs="ConstantPadNd" if sum(pad) != -5 else ())


def test_constant_around_nothing() -> None:
    agree(lambda x: torch.constant_pad_nd(x, (1, 2), 3.5), torch.empty(2, 0), runs="ConstantPadNd")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["reflect", "replicate"])
@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("batched", [True, False])
def test_from_within(batched: bool, dims: int, kind: str, dtype: torch.dtype) -> None:
    name = f"{'Reflection' if kind == 'reflect' else 'Replication'}Pad{dims}d"
    x = torch.randn(SHAPES[dims]).to(dtype)

    def padded(x: Tensor) -> Tensor:
        return nn.pad(x, PADS[dims], mode=kind)

    agree(padded, x if batched else x[0], runs=name)
    agree(lambda x: gradients(padded, x), x if batched else x[0], runs={name, f"{name}Backward"})
