"""Softmax and its fused forms."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch_npu
from tests.vnpu.against_cpu import agree, gradients, same, strided
from tests.vnpu.support import called

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [-1, 0, 1])
def test_softmax(dim: int, dtype: torch.dtype) -> None:
    x = torch.randn(3, 4, 5).to(dtype)
    agree(lambda x: torch.softmax(x, dim), x, runs="Softmax")
    agree(lambda x: torch.log_softmax(x, dim), x, runs="LogSoftmax")
    agree(lambda x: gradients(lambda x: torch.softmax(x, dim), x), x, runs={"Softmax", "SoftmaxBackward"})
    agree(lambda x: gradients(lambda x: torch.log_softmax(x, dim), x), x, runs={"LogSoftmax", "LogSoftmaxBackward"})


@pytest.mark.parametrize("dtype", DTYPES)
def test_softmax_in_a_wider_type(dtype: torch.dtype) -> None:
    x = torch.randn(3, 4).to(dtype)
    agree(lambda x: torch.softmax(x, 1, dtype=torch.float32), x, runs="Softmax")
    agree(lambda x: gradients(lambda x: torch.softmax(x, 1, dtype=torch.float32), x), x, runs="SoftmaxBackward")
    agree(lambda x: gradients(lambda x: torch.log_softmax(x, 1, dtype=torch.float32), x), x, runs="LogSoftmaxBackward")


@pytest.mark.parametrize("dtype", DTYPES)
def test_softmax_in_place(dtype: torch.dtype) -> None:
    x, values, grad = torch.randn(2, 3, 4).to(dtype), torch.randn(2, 4, 5).to(dtype), torch.randn(2, 3, 5).to(dtype)
    device = strided(x)
    with called() as names:
        torch.ops.npu.npu_attn_softmax_(device)
    assert "Softmax" in names
    expected = torch.softmax(x, -1)
    same(device, expected)
    with called() as names:
        torch.ops.npu.npu_attn_softmax_backward_(device, grad.npu(), values.npu())
    assert "SoftmaxBackward" in names
    same(device, torch._softmax_backward_data(grad @ values.mT, expected, -1, dtype))


def test_softmax_of_nothing_and_of_one() -> None:
    agree(lambda x: torch.softmax(x, 1), torch.empty(0, 4), runs=())
    agree(lambda x: torch.softmax(x, 0), torch.tensor(3.0), runs="Softmax")
    agree(lambda x: torch.softmax(x, 0), torch.tensor([float("-inf"), 0.0, float("nan")]), runs="Softmax")


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_mask_and_a_bias(dtype: torch.dtype) -> None:
    x, mask, bias = torch.randn(1, 2, 3, 4, 4), torch.randn(1, 2, 1, 4, 4), torch.randn(1, 1, 3, 4, 4)
    x, mask, bias = (t.to(dtype) for t in (x, mask, bias))
    expected = torch.softmax(x.double() + mask.double() + bias.double(), -1).to(dtype)
    with called() as names:
        got = torch_npu.npu_masked_softmax_with_rel_pos_bias(strided(x), mask.npu(), bias.npu())
    assert "MaskedSoftmaxWithRelPosBias" in names
    same(got, expected)
    got = torch_npu.npu_masked_softmax_with_rel_pos_bias(x.npu(), None, bias.npu())
    same(got, torch.softmax(x.double() + bias.double(), -1).to(dtype))


def test_what_a_mask_and_a_bias_refuse() -> None:
    x = torch.randn(1, 2, 3, 4, 4).npu()
    for message, settings in (
        ("scale_value", {"scale_value": 0.5}),
        ("inner_precision_mode", {"inner_precision_mode": 1}),
    ):
        with pytest.raises(RuntimeError, match=message):
            torch_npu.npu_masked_softmax_with_rel_pos_bias(x, None, x, **settings)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_masked_softmax_of_pytorch(dtype: torch.dtype) -> None:
    x, mask = torch.randn(2, 3, 32, 64).to(dtype), torch.rand(2, 3, 32, 64) > 0.5
    with called() as names:
        got = torch._masked_softmax(strided(x), strided(mask), 3, 2)
    assert "ScaledMaskedSoftmax" in names
    same(got, torch.softmax(x.double().masked_fill(mask, float("-inf")), -1).to(dtype))


@pytest.mark.parametrize("shape", [(1, 1, 16, 32), (1, 1, 32, 48)])
def test_sizes_that_the_masked_softmax_refuses(shape: tuple[Any, ...]) -> None:
    with pytest.raises(RuntimeError, match="multiples of 32"):
        torch._masked_softmax(torch.randn(shape).npu(), torch.zeros(shape, dtype=torch.bool).npu(), 3, 2)
