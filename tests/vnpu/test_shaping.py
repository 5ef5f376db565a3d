"""Joining, splitting, repeating and rearranging, and new tensors, against PyTorch's on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch_npu
from tests.vnpu.against_cpu import agree, gradients, same, strided
from tests.vnpu.support import called
from torch import Tensor

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8, torch.bool)
Function = Callable[..., Any]

CASES: list[tuple[str, Function]] = [
    ("Cat", lambda x: torch.cat([x, x[:1], x[1:]])),
    ("Cat", lambda x: torch.cat((x, x[..., :2]), -1)),
    ("Cat", lambda x: torch.cat((torch.empty(0, device=x.device, dtype=x.dtype), x), 1)),
    ("Stack", lambda x: torch.stack([x, x.flip(0)])),
    ("Stack", lambda x: torch.stack([x, x], -1)),
    ("Repeat", lambda x: x.repeat(2, 1, 3)),
    ("Repeat", lambda x: x.repeat(2, 1, 1, 2)),
    ("RepeatInterleaveIntWithDim", lambda x: x.repeat_interleave(3, 1)),
    ("RepeatInterleaveIntWithDim", lambda x: x.repeat_interleave(2, -1)),
    ("RepeatInterleaveInt", lambda x: x.repeat_interleave(2)),
    ("RepeatInterleaveWithDim", lambda x: x.repeat_interleave(torch.tensor([2, 0, 1], device=x.device), 0)),
    ("RepeatInterleaveWithDim", lambda x: x.repeat_interleave(torch.tensor([2], device=x.device), 1)),
    ("RepeatInterleave", lambda x: x[0, 0].repeat_interleave(torch.tensor([2, 0, 1, 3], device=x.device))),
    ("Flip", lambda x: x.flip(0, -1)),
    ("Roll", lambda x: x.roll(2, 1)),
    ("Roll", lambda x: x.roll((1, -1), (0, -1))),
    ("Roll", lambda x: x.roll(5)),
    ("Triu", lambda x: x.triu(1)),
    ("Triu", lambda x: x.triu(-1)),
    ("Tril", lambda x: x.tril()),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", range(len(CASES)))
def test_rearranging(case: int, dtype: torch.dtype) -> None:
    name, function = CASES[case]
    agree(function, torch.randint(0, 9, (3, 2, 4)).to(dtype), runs=name)


def test_rearranging_nothing() -> None:
    x = torch.empty(3, 0)
    agree(lambda x: torch.cat([x, x], 0), x, runs=())
    agree(lambda x: x.repeat(2, 3), x, runs=())
    agree(lambda x: x.flip(0), x, runs=())
    agree(lambda x: x.repeat_interleave(2, 0), x, runs=())


def test_joining_of_different_types() -> None:
    x = torch.randn(2, 3)
    agree(lambda x: torch.cat([x, x.bfloat16(), x.int()]), x, runs="Cat")
    agree(lambda x: torch.stack([x.half(), x.half()]), x, runs="Stack")


def test_repeating_places() -> None:
    agree(torch.repeat_interleave, torch.tensor([2, 0, 3]), runs="RepeatInterleaveTensor")
    agree(torch.repeat_interleave, torch.tensor([1, 1], dtype=torch.int32), runs="RepeatInterleaveTensor")


@pytest.mark.parametrize("repeats", [2, [2, 0, 1], [3]])
def test_the_gradient_of_repeating(repeats: int | list[int]) -> None:
    def repeated(x: Tensor) -> Tensor:
        times = repeats if isinstance(repeats, int) else torch.tensor(repeats, device=x.device)
        return torch.repeat_interleave(x, times, 1)

    runs = {"RepeatInterleaveGrad"} if repeats == [2, 0, 1] else ()
    agree(lambda x: gradients(repeated, x), torch.randn(2, 3, 4), runs=runs)


def test_the_gradient_of_windows() -> None:
    agree(lambda x: gradients(lambda x: x.unfold(1, 3, 2), x), torch.randn(2, 7, 3), runs="UnfoldGrad")


def test_channels_dealt_out() -> None:
    agree(lambda x: torch.channel_shuffle(x, 3), torch.randn(2, 6, 2, 2), runs="ChannelShuffle")


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
def test_chunks_side_by_side(dtype: torch.dtype) -> None:
    tensors = [torch.randn(5, 2).to(dtype), torch.randn(3).to(dtype)]
    expected = torch._chunk_cat(tensors, 0, 2)
    with called() as names:
        got = torch._chunk_cat([x.npu() for x in tensors], 0, 2)
        wide = torch._chunk_cat([x.npu() for x in tensors], 0, 2, out=torch.empty(expected.shape).npu())
    assert "ChunkCat" in names
    same(got, expected)
    same(wide, expected.float())


def test_many_pieces() -> None:
    sizes = [1, 2, 0] * 11
    x = torch.randn(2, 70000)
    sizes[-1] = 70000 - sum(sizes)
    outs = [torch.empty(2, n).npu() for n in sizes]
    with called() as names:
        torch.split_with_sizes_copy(x.npu(), sizes, 1, out=outs)
    assert "SplitWithSize" in names
    for got, expected in zip(outs, x.split(sizes, 1), strict=True):
        same(got, expected)


def test_query_key_and_value_of_a_projection() -> None:
    x, bias = torch.randn(2, 3, 24), torch.randn(24)
    agree(lambda x, b: torch._transform_bias_rescale_qkv(x, b, 2), x, bias, runs="TransformBiasRescaleQkv")


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16, torch.int32, torch.bool))
def test_casting(dtype: torch.dtype) -> None:
    x = torch.tensor([[0.0, 1.5], [-2.5, 3.0]])
    with called() as names:
        got = torch_npu.npu_dtype_cast(strided(x), dtype)
    assert "Cast" in names
    same(got, x.to(dtype))


NEW: list[tuple[str, Function]] = [
    ("Arange", lambda d, t: torch.arange(7, device=d, dtype=t)),
    ("Arange", lambda d, t: torch.arange(9, 2, -3, device=d, dtype=t)),
    ("Range", lambda d, t: torch.range(1, 9, 2, device=d, dtype=t)),
    (
        "Range",
        lambda d, t: torch.range(0, 6, 2.5, device=d, dtype=t) if t.is_floating_point else torch.range(3, 3, device=d),
    ),
    ("Linspace", lambda d, t: torch.linspace(0, 10, 6, device=d, dtype=t)),
    ("Linspace", lambda d, t: torch.linspace(3, 3, 1, device=d, dtype=t)),
    ("LogSpace", lambda d, t: torch.logspace(0, 4, 5, base=2, out=torch.empty(5, device=d, dtype=t))),
    ("Eye", lambda d, t: torch.eye(3, device=d, dtype=t)),
    ("Eye", lambda d, t: torch.eye(2, 4, device=d, dtype=t)),
]


@pytest.mark.filterwarnings("ignore:torch.range is deprecated")
@pytest.mark.parametrize("dtype", (torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32))
@pytest.mark.parametrize("case", range(len(NEW)))
def test_new_tensors(case: int, dtype: torch.dtype) -> None:
    name, function = NEW[case]
    with called() as names:
        got = function("npu", dtype)
    assert name in names
    same(got, function("cpu", dtype))


def test_a_range_of_fractions() -> None:
    same(torch.arange(0, 1, 0.3, device="npu"), torch.arange(0, 1, 0.3))
    same(torch.arange(0, device="npu"), torch.arange(0))
    out = torch.empty(4, 2, dtype=torch.int64).npu()[:, 1]
    same(torch.arange(3, 7, out=out), torch.arange(3, 7))


def test_one_hot() -> None:
    x = torch.tensor([[0, 2], [1, 3]])
    agree(torch.nn.functional.one_hot, x, runs="OneHot")
    agree(lambda x: torch.nn.functional.one_hot(x, 6), x, runs="OneHot")
