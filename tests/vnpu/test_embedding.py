"""Tables of rows and their gradients against PyTorch's on the CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as nn
from tests.vnpu.against_cpu import agree, gradients, same, strided
from tests.vnpu.support import called
from torch import Tensor

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("index_type", (torch.int64, torch.int32))
@pytest.mark.parametrize("shape", [(4,), (2, 3), (), (0,)])
def test_rows(shape: tuple[int, ...], index_type: torch.dtype, dtype: torch.dtype) -> None:
    weight, places = torch.randn(5, 3).to(dtype), torch.randint(0, 5, shape, dtype=index_type)
    agree(lambda w, i: nn.embedding(i, w), weight, places, runs="Embedding" if 0 not in shape else ())


def test_a_row_that_is_not_there_is_refused() -> None:
    with pytest.raises(RuntimeError, match="out of range"):
        nn.embedding(torch.tensor([5]).npu(), torch.randn(5, 3).npu())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("settings", [{}, {"padding_idx": 1}, {"padding_idx": -1}, {"scale_grad_by_freq": True}])
def test_the_gradient_of_rows(settings: dict[str, Any], dtype: torch.dtype) -> None:
    weight, places = torch.randn(5, 3).to(dtype), torch.tensor([[1, 1, 4], [0, 1, 2]])
    agree(
        lambda w, i: gradients(lambda w: nn.embedding(i, w, **settings), w),
        weight,
        places,
        runs={"Embedding", "EmbeddingDenseBackward"},
    )


@pytest.mark.parametrize("norm", [1.0, 2.0])
def test_rows_with_a_limit(norm: float) -> None:
    def limited(w: Tensor, i: Tensor) -> Tensor:
        return torch.embedding_renorm_(w, i, 0.5, norm)

    agree(limited, torch.randn(5, 3), torch.tensor([[1, 1], [4, 0]]), runs="EmbeddingRenorm")


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("settings", [{}, {"padding_idx": 1}, {"include_last_offset": True}])
def test_bags(settings: dict[str, Any], mode: str) -> None:
    weight, places, starts = torch.randn(5, 3), torch.tensor([0, 1, 1, 4, 2]), torch.tensor([0, 2, 2, 5])
    starts = starts if settings.get("include_last_offset") else starts[:3]
    agree(lambda w, i, o: nn.embedding_bag(i, w, o, mode=mode, **settings), weight, places, starts, runs="EmbeddingBag")


def test_bags_with_weights() -> None:
    weight, places, starts = torch.randn(5, 3), torch.tensor([0, 1, 1, 4]), torch.tensor([0, 3])
    agree(
        lambda w, i, o, s: nn.embedding_bag(i, w, o, mode="sum", per_sample_weights=s),
        weight,
        places,
        starts,
        torch.rand(4),
        runs="EmbeddingBag",
    )


@pytest.mark.parametrize("mode", [0, 1, 2])
@pytest.mark.parametrize("padding", [-1, 1])
def test_what_the_gradient_of_bags_needs(padding: int, mode: int) -> None:
    weight, places, starts = torch.randn(5, 3), torch.tensor([0, 1, 1, 4, 2]), torch.tensor([0, 2, 2])
    args = (False, mode, False, None, False, padding)
    with called() as names:
        got = torch._embedding_bag(strided(weight), places.npu(), starts.npu(), *args)
    assert "EmbeddingBag" in names
    for actual, expected in zip(got, torch._embedding_bag(weight, places, starts, *args), strict=True):
        same(actual, expected)
