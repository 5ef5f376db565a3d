"""Reductions, scans, statistics and norms against PyTorch's on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.vnpu.against_cpu import agree, same
from tests.vnpu.support import called

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
INTEGERS = (torch.int64, torch.int32, torch.int8, torch.uint8, torch.bool)
Function = Callable[..., Any]

FLOAT_CASES: list[tuple[str, Function]] = [
    ("ReduceSum", lambda x: x.sum()),
    ("ReduceSum", lambda x: x.sum((0, -1), keepdim=True)),
    ("ReduceSum", lambda x: x.sum(1, dtype=torch.float32)),
    ("ReduceNansum", lambda x: torch.nansum(x.masked_fill(x > 1, float("nan")), (1, 2))),
    ("Mean", lambda x: x.mean()),
    ("Mean", lambda x: x.mean(-1, keepdim=True)),
    ("Mean", lambda x: x.mean((0, 1), dtype=torch.float32)),
    ("Std", lambda x: x.std()),
    ("Std", lambda x: x.std((0, 2), correction=0, keepdim=True)),
    ("VarCorrection", lambda x: x.var(1, correction=2)),
    ("VarCorrection", lambda x: x.var()),
    ("VarMean", lambda x: torch.var_mean(x, -1)),
    ("VarMean", lambda x: torch.var_mean(x)),
    ("StdMeanCorrection", lambda x: torch.std_mean(x, (0, 1), keepdim=True)),
    ("LogSumExp", lambda x: torch.logsumexp(x, (0, -1))),
    ("LogSumExp", lambda x: torch.logsumexp(x, 1, keepdim=True)),
    ("LinalgVectorNorm", lambda x: torch.linalg.vector_norm(x)),
    ("LinalgVectorNorm", lambda x: torch.linalg.vector_norm(x, 1, -1, keepdim=True)),
    ("LinalgVectorNorm", lambda x: torch.linalg.vector_norm(x, float("inf"), (0, 1))),
    ("LinalgVectorNorm", lambda x: torch.linalg.vector_norm(x, 2.5, 0, dtype=torch.float32)),
    ("Renorm", lambda x: torch.renorm(x, 2, -2, 1.5)),
    ("Prod", lambda x: x.prod()),
    ("ProdDim", lambda x: x.prod(-1, keepdim=True)),
    ("ProdDim", lambda x: x.prod(0, dtype=torch.float32)),
    ("Cumprod", lambda x: torch.cumprod(x, -1)),
    ("Cumsum", lambda x: torch.cumsum(x, 1)),
    ("Cumsum", lambda x: torch.cumsum(x, -2, dtype=torch.float32)),
]
ANY_CASES: list[tuple[str, Function]] = [
    ("ReduceSum", lambda x: x.sum((1, 2))),
    ("All", lambda x: (x > 0).all()),
    ("All", lambda x: torch.all(x, -1, keepdim=True)),
    ("Any", lambda x: (x > 1).any(1)),
    ("Any", lambda x: torch.any(x)),
    ("Amax", lambda x: torch.amax(x)),
    ("Amax", lambda x: torch.amax(x, (0, -1), keepdim=True)),
    ("Amin", lambda x: torch.amin(x, 1)),
    ("Max", lambda x: x.max()),
    ("Min", lambda x: x.min()),
    ("MaxDim", lambda x: x.max(-1, keepdim=True)),
    ("MinDim", lambda x: x.min(0)),
    ("Aminmax", lambda x: torch.aminmax(x)),
    ("Aminmax", lambda x: torch.aminmax(x, dim=-1, keepdim=True)),
    ("Cumsum", lambda x: torch.cumsum(x, 0)),
    ("Cummax", lambda x: torch.cummax(x, -1)),
    ("Cummin", lambda x: torch.cummin(x, 1)),
]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("case", range(len(FLOAT_CASES)))
def test_of_floats(case: int, dtype: torch.dtype) -> None:
    name, function = FLOAT_CASES[case]
    agree(function, torch.randn(3, 5, 4).to(dtype), runs=name)


@pytest.mark.parametrize("dtype", (*FLOATS, *INTEGERS))
@pytest.mark.parametrize("case", range(len(ANY_CASES)))
def test_of_any_type(case: int, dtype: torch.dtype) -> None:
    name, function = ANY_CASES[case]
    agree(function, (torch.randn(3, 5, 4) * 3).to(dtype), runs=name)


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.int32))
def test_where_the_largest_is(dtype: torch.dtype) -> None:
    x = torch.randperm(60).reshape(3, 5, 4).to(dtype)
    agree(lambda x: torch.argmax(x), x, runs="ArgMax")
    agree(lambda x: torch.argmax(x, -1, keepdim=True), x, runs="ArgMax")
    agree(lambda x: torch.argmin(x, 1), x, runs="ArgMin")
    agree(lambda x: torch.argmin(x), x, runs="ArgMin")


@pytest.mark.filterwarnings("ignore:_aminmax is deprecated")
def test_smallest_and_largest_of_old() -> None:
    agree(lambda x: torch._aminmax(x), torch.randn(3, 5), runs="AminmaxAll")
    agree(lambda x: torch._aminmax(x, 1, True), torch.randn(3, 5), runs="AminmaxDim")


def test_products_of_integers_are_wide() -> None:
    x = torch.randint(1, 9, (3, 6), dtype=torch.int32)
    agree(lambda x: x.prod(), x, runs="Prod")
    agree(lambda x: torch.cumprod(x, 1), x, runs="Cumprod")


def test_numbers_that_are_none() -> None:
    x = torch.tensor([[1.0, float("nan"), 3.0], [float("-inf"), 2.0, float("inf")]])
    for name, function in (("Amax", lambda x: torch.amax(x, 1)), ("MaxDim", lambda x: x.max(1)), ("Max", torch.max)):
        agree(function, x, runs=name)
    agree(lambda x: torch.cummax(x, 1), x, runs="Cummax")
    agree(lambda x: torch.logsumexp(x, 0), x, runs="LogSumExp")


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("Mean", lambda x: x.mean(1)),
        ("All", lambda x: x.bool().all(1)),
        ("Any", lambda x: x.bool().any()),
        ("ProdDim", lambda x: x.prod(1)),
        ("LogSumExp", lambda x: torch.logsumexp(x, 1)),
        ("LinalgVectorNorm", lambda x: torch.linalg.vector_norm(x, dim=1)),
    ],
)
def test_of_nothing(name: str, function: Function) -> None:
    agree(function, torch.empty(3, 0), runs=name)


def test_outputs_that_are_given() -> None:
    x, out = torch.randn(4, 6).npu(), torch.zeros(6, 4, dtype=torch.float64).npu().t()
    with called() as names:
        torch.cumsum(x, 0, dtype=torch.float64, out=out)
    same(out, torch.cumsum(x.cpu(), 0, dtype=torch.float64))
    assert "Cumsum" in names
    out = torch.zeros(4).npu()
    torch.mean(x, 1, out=out)
    same(out, x.cpu().mean(1))


def test_the_old_norm() -> None:
    x = torch.randn(3, 4)
    agree(lambda x: torch.ops.aten.norm(x, 3, [1]), x, runs="Norm")
    agree(lambda x: torch.ops.aten.norm(x, 2, [0], True, dtype=torch.float32), x.bfloat16(), runs="Norm")


def test_whether_tensors_are_equal() -> None:
    x = torch.randn(3, 4)
    agree(torch.equal, x, x.clone(), runs="Equal")
    agree(torch.equal, x, x + 1, runs="Equal")


@pytest.mark.parametrize("dtype", FLOATS)
def test_whether_numbers_are_close(dtype: torch.dtype) -> None:
    x = torch.tensor([1.0, float("nan"), float("inf"), 3.0]).to(dtype)
    y = torch.tensor([1.01, float("nan"), float("inf"), 4.0]).to(dtype)
    agree(lambda x, y: torch.isclose(x, y, rtol=0.05), x, y, runs="IsClose")
    agree(lambda x, y: torch.isclose(x, y, rtol=0, atol=2, equal_nan=True), x, y, runs="IsClose")
