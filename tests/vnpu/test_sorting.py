"""Sorting, ranks, distinct values and bins against PyTorch's on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.vnpu.against_cpu import agree, same
from tests.vnpu.support import called

from gallium.vnpu.refusals import Unsupported
from gallium.vnpu.registry import operators

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
INTEGERS = (torch.int64, torch.int32, torch.int8, torch.uint8)
Function = Callable[..., Any]

CASES: list[tuple[str, Function]] = [
    ("Sort", lambda x: torch.sort(x)),
    ("Sort", lambda x: torch.sort(x, 0, descending=True)),
    ("Sort", lambda x: torch.sort(x, dim=1, stable=True)),
    ("Sort", lambda x: torch.argsort(x, -2)),
    ("TopkV2", lambda x: torch.topk(x, 3)),
    ("TopkV2", lambda x: torch.topk(x, 2, 1, largest=False)),
    ("TopkV2", lambda x: torch.topk(x, 4, sorted=False)[0].sort()[0]),
    ("Kthvalue", lambda x: torch.kthvalue(x, 2)),
    ("Kthvalue", lambda x: torch.kthvalue(x, 1, 0, keepdim=True)),
    ("Median", lambda x: torch.median(x)),
    ("MedianDim", lambda x: torch.median(x, 1, keepdim=True)),
    ("NanMedian", lambda x: torch.nanmedian(x)),
    ("NanMedianDim", lambda x: torch.nanmedian(x, -1)),
]
DISTINCT: list[tuple[str, Function]] = [
    ("Unique2", lambda x: torch.unique(x)),
    ("Unique2", lambda x: torch.unique(x, return_inverse=True)),
    ("Unique2", lambda x: torch.unique(x, return_counts=True)),
    ("Unique2", lambda x: torch.unique(x, return_inverse=True, return_counts=True)),
    ("Unique", lambda x: torch._unique(x, return_inverse=True)),
    ("UniqueConsecutive", lambda x: torch.unique_consecutive(x, return_inverse=True)),
    ("UniqueConsecutive", lambda x: torch.unique_consecutive(x, return_counts=True)),
    ("UniqueConsecutive", lambda x: torch.unique_consecutive(x, return_inverse=True, return_counts=True, dim=0)),
    ("UniqueDim", lambda x: torch.unique(x, dim=0)),
    ("UniqueDim", lambda x: torch.unique(x, return_inverse=True, return_counts=True, dim=1)),
]


@pytest.mark.parametrize("dtype", (*FLOATS, *INTEGERS))
@pytest.mark.parametrize("case", range(len(CASES)))
def test_ranks(case: int, dtype: torch.dtype) -> None:
    name, function = CASES[case]
    agree(function, torch.randperm(60).reshape(3, 4, 5).to(dtype), runs=name)


def test_the_older_topk_and_what_the_newer_one_refuses() -> None:
    """torch_npu calls the older one only where the newer one is missing: the bodies alone."""
    x, values, indices = torch.randn(3, 5), torch.empty(3, 2), torch.empty(3, 2, dtype=torch.int64)
    operators()["Topk"].body(x, 2, 1, True, True, values, indices)
    for got, expected in zip((values, indices), torch.topk(x, 2), strict=True):
        torch.testing.assert_close(got, expected)
    with pytest.raises(Unsupported, match="mode = 0"):
        operators()["TopkV2"].body(x, 2, 1, True, True, 0, values, indices)


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.int64, torch.uint8, torch.bool))
@pytest.mark.parametrize("case", range(len(DISTINCT)))
def test_distinct_values(case: int, dtype: torch.dtype) -> None:
    name, function = DISTINCT[case]
    agree(function, torch.randint(0, 3, (4, 6)).sort(0)[0].to(dtype), runs=name)


def test_distinct_values_of_nothing() -> None:
    agree(lambda x: torch.unique(x, return_inverse=True, return_counts=True), torch.empty(0), runs="Unique2")


def test_ties_keep_their_order_when_sorting_is_stable() -> None:
    x = torch.tensor([2, 1, 2, 1, 0, 2, 1])
    agree(lambda x: torch.sort(x, stable=True), x, runs="Sort")
    agree(lambda x: torch.sort(x, stable=True, descending=True), x, runs="Sort")


def test_no_number_comes_last() -> None:
    x = torch.tensor([3.0, float("nan"), 1.0, float("-inf"), float("inf")])
    agree(torch.sort, x, runs="Sort")
    agree(lambda x: torch.topk(x, 2), x, runs="TopkV2")
    agree(torch.median, x, runs="Median")
    agree(torch.nanmedian, x, runs="NanMedian")


def test_outputs_that_are_given() -> None:
    x = torch.randn(4, 5)
    values, indices = torch.empty(4, 2).npu(), torch.empty(4, 2, dtype=torch.int64).npu()
    with called() as names:
        torch.topk(x.npu(), 2, out=(values, indices))
    assert "TopkV2" in names
    for got, expected in zip((values, indices), torch.topk(x, 2), strict=True):
        same(got, expected)


@pytest.mark.parametrize("dtype", (*FLOATS, *INTEGERS))
def test_histogram(dtype: torch.dtype) -> None:
    x = torch.tensor([-1, 0, 1, 1, 2, 5, 7, 9, 10, 11]).clamp(min=0 if dtype == torch.uint8 else -1).to(dtype)

    def counts(x: torch.Tensor) -> torch.Tensor:
        return torch.histc(x if x.device.type == "npu" else x.double(), 5, 0, 10).to(x.dtype)

    agree(counts, x, runs="Histc")


def test_histogram_of_the_whole_range() -> None:
    agree(lambda x: torch.histc(x, 4), torch.randn(50), runs="Histc")


@pytest.mark.parametrize("dtype", INTEGERS)
def test_counts(dtype: torch.dtype) -> None:
    x = torch.tensor([0, 3, 3, 1, 5]).to(dtype)
    agree(torch.bincount, x, runs="Bincount")
    agree(lambda x: torch.bincount(x, minlength=9), x, runs="Bincount")
    for weights in (torch.rand(5), torch.rand(5, dtype=torch.float64), torch.tensor([1, 2, 3, 4, 5])):
        agree(torch.bincount, x, weights, runs="Bincount")


@pytest.mark.filterwarnings("ignore:torch.searchsorted")
@pytest.mark.parametrize("dtype", (*FLOATS, *INTEGERS))
def test_places_in_a_sorted_sequence(dtype: torch.dtype) -> None:
    steps, x = torch.tensor([1, 3, 3, 6]).to(dtype), torch.tensor([[0, 1, 3], [4, 6, 7]]).to(dtype)
    for settings in ({}, {"right": True}, {"out_int32": True}, {"side": "right"}):
        agree(lambda s, x, k=settings: torch.searchsorted(s, x, **k), steps, x, runs="SearchSorted")
        agree(lambda s, k=settings: torch.searchsorted(s, 3, **k), steps, runs="SearchSorteds")
    agree(lambda x, s: torch.bucketize(x, s, right=True), x, steps, runs="SearchSorted")


@pytest.mark.filterwarnings("ignore:torch.searchsorted")
def test_places_in_several_sequences_given_their_order() -> None:
    sequence, x = torch.randn(2, 5), torch.randn(2, 3)
    agree(
        lambda s, o, x: torch.searchsorted(s, x, sorter=o),
        sequence,
        sequence.argsort(1),
        x,
        runs="SearchSorted",
    )
