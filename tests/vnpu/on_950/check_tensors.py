"""Operators that torch_npu calls on the 950 family only; run by tests/vnpu/test_on_950.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as nn
import torch_npu
from tests.vnpu.against_cpu import agree, same, strided
from tests.vnpu.support import called

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def test_the_chip() -> None:
    assert "Ascend950" in torch.npu.get_device_name()


@pytest.mark.filterwarnings("ignore:torch.searchsorted")
@pytest.mark.parametrize("right", [False, True])
def test_bins(right: bool) -> None:
    steps, x = torch.tensor([1, 3, 3, 6.0]), torch.tensor([[0, 1, 3], [4, 6, 7.0]])
    agree(lambda x, s: torch.bucketize(x, s, right=right), x, steps, runs="Bucketize")
    agree(lambda x, s: torch.bucketize(x, s, out_int32=True), x, steps, runs="Bucketize")


def test_filling_at_an_index_on_the_host() -> None:
    x = torch.randn(3, 4)
    agree(lambda x, i: torch.index_fill(x, 1, i, 7), x, torch.tensor([3, 1]), runs="IndexFillTensor")


def test_permuting_and_reshaping() -> None:
    x = torch.randn(2, 3, 4, 6)
    with called() as names:
        first = torch_npu.npu_confusion_transpose(strided(x), (0, 2, 1, 3), (2, 4, 18), True)
        last = torch_npu.npu_confusion_transpose(strided(x), (0, 2, 1), (2, 12, 6), False)
    assert "ConfusionTranspose" in names
    same(first, x.permute(0, 2, 1, 3).reshape(2, 4, 18))
    same(last, x.reshape(2, 12, 6).permute(0, 2, 1))


SLICES: list[tuple[Any, ...]] = [
    # expected, begin, end, strides, then the masks: begin, end, ellipsis, new axis, shrink axis
    (lambda x: x[1:3, 0:4:2], (1, 0), (3, 4), (1, 2), 0, 0, 0, 0, 0),
    (lambda x: x[:3, 1:], (9, 1), (3, 9), (1, 1), 1, 2, 0, 0, 0),
    (lambda x: x[-2:, :-1], (-2, 0), (9, -1), (1, 1), 0, 1, 0, 0, 0),
    (lambda x: x[..., 1:3], (0, 1), (0, 3), (1, 1), 0, 0, 1, 0, 0),
    (lambda x: x[2, ..., 1], (2, 0, 1), (3, 0, 2), (1, 1, 1), 0, 0, 2, 0, 5),
    (lambda x: x[:, None, 1:3], (0, 0, 1), (9, 0, 3), (1, 1, 1), 0, 0, 0, 2, 0),
    (lambda x: x[None, ..., None], (0, 0, 0), (0, 0, 0), (1, 1, 1), 0, 0, 2, 5, 0),
    (lambda x: x.flip(0)[::2], (9,), (-9,), (-2,), 1, 1, 0, 0, 0),
    (lambda x: x[2:2], (2,), (2,), (1,), 0, 0, 0, 0, 0),
    (lambda x: x[-1], (-1,), (0,), (1,), 0, 0, 0, 0, 1),
]


@pytest.mark.parametrize("case", range(len(SLICES)))
def test_slices(case: int) -> None:
    expected, *args = SLICES[case]
    x = torch.randn(5, 4, 3)
    with called() as names:
        got = torch_npu.npu_indexing(strided(x), *args)
    assert "StridedSlice" in names or got.numel() == 0
    same(got, expected(x))


@pytest.mark.parametrize("axis", [-1, 0, 1])
def test_one_hot_with_numbers_and_an_axis(axis: int) -> None:
    x = torch.tensor([[0, 2, 5], [1, 3, 0]])
    with called() as names:
        got = torch_npu.npu_one_hot(x.npu(), axis, 4, 3.5, -1.0)
    assert "OneHot" in names
    hot = torch.stack([torch.where(x == k, 3.5, -1.0) for k in range(4)], 2 if axis == -1 else axis)
    same(got, hot)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_masked_softmax(dtype: torch.dtype) -> None:
    x, mask = torch.randn(2, 3, 32, 64).to(dtype), torch.rand(2, 1, 32, 64) > 0.5
    leaf, reference = strided(x).detach().requires_grad_(), x.double().requires_grad_()
    with called() as names:
        got = torch_npu.npu_scaled_masked_softmax(leaf, mask.npu(), 0.5)
        got.backward(torch.ones_like(got).tril_())
    assert names >= {"ScaledMaskedSoftmax", "ScaledMaskedSoftmaxBackward"}
    expected = torch.softmax((reference * 0.5).masked_fill(mask, -10000.0), -1)
    expected.backward(torch.ones_like(expected).tril_())
    assert leaf.grad is not None and reference.grad is not None
    same(got, expected.to(dtype))
    same(leaf.grad, reference.grad.to(dtype))
    with pytest.raises(RuntimeError, match="fixed_triu_mask"):
        torch_npu.npu_scaled_masked_softmax(x.npu(), mask.npu(), 1.0, True)


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_bags(mode: str) -> None:
    weight, places, starts = torch.randn(5, 3), torch.tensor([0, 1, 1, 4, 2]), torch.tensor([0, 2, 2, 5])
    for last in (False, True):
        agree(
            lambda w, i, o, last=last: nn.embedding_bag(i, w, o, mode=mode, include_last_offset=last),
            weight,
            places,
            starts if last else starts[:3],
            runs="EmbeddingBag",
        )
