"""Data and plain calculations that the tests of quantised operators share."""

from __future__ import annotations

import torch

BF16 = torch.bfloat16


def int8(*shape: int) -> torch.Tensor:
    return torch.randint(-128, 128, shape, dtype=torch.int8)


def int4(*shape: int) -> torch.Tensor:
    return torch.randint(-8, 8, shape, dtype=torch.int8)


def packed(values: torch.Tensor) -> torch.Tensor:
    """Eight 4-bit integers to an int32, the first in the lowest bits."""
    words = values.long().view(*values.shape[:-1], -1, 8) & 0xF
    joined = sum(words[..., i] << (4 * i) for i in range(8))
    assert isinstance(joined, torch.Tensor)
    return torch.where(joined >= 1 << 31, joined - (1 << 32), joined).to(torch.int32)


def unpacked(words: torch.Tensor) -> torch.Tensor:
    """The 4-bit integers of int32 words."""
    halves = torch.stack([(words.long() >> (4 * i)) & 0xF for i in range(8)], -1).flatten(-2)
    return torch.where(halves > 7, halves - 16, halves)


def exact(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The product of integers, in float64, which holds it."""
    return a.double() @ b.double()


def near(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-2) -> None:
    torch.testing.assert_close(actual.cpu().double(), expected.double(), rtol=tolerance, atol=tolerance)


def off_by_one(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Rounded values: equal, but for a few that lay between two integers."""
    difference = (actual.cpu().double() - expected.double()).abs()
    assert difference.max() <= 1
    assert (difference > 0).double().mean() < 0.01
