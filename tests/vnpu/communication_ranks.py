"""What the checks of operators that compute and communicate share: two ranks, their data, and the list of checks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

RANKS = 2
Check = Callable[[], None]
CHECKS: dict[str, Check] = {}
BF16 = torch.bfloat16


def check(function: Check) -> Check:
    CHECKS[function.__name__] = function
    return function


def rank() -> int:
    return int(dist.get_rank())


def hcom() -> str:
    group = dist.distributed_c10d._get_default_group()
    return str(group._get_backend(torch.device("npu")).get_hccl_comm_name(rank()))


def floats(*shape: int, of: int, dtype: torch.dtype = BF16) -> torch.Tensor:
    """Numbers that depend on the rank `of` (-1: the same on all)."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(50 + of)).to(dtype)


def ints(*shape: int, of: int) -> torch.Tensor:
    return torch.randint(-128, 128, shape, generator=torch.Generator().manual_seed(50 + of), dtype=torch.int8)


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual.cpu().double(), expected.double(), rtol=1e-2, atol=1e-2)


def refused(words: str, function: Callable[[], Any]) -> None:
    try:
        function()
    except RuntimeError as error:
        assert words in str(error), error
    else:
        raise AssertionError(f"not refused: {words}")
