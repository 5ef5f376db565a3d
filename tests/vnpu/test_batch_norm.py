"""Batch normalisation, its gradient and its synchronised parts against PyTorch's on the CPU and the formulas."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as nn
import torch_npu
from tests.vnpu.support import called
from torch import Tensor

LIMITS = {torch.float32: 5e-6, torch.float16: 3e-3, torch.bfloat16: 2e-2}
DTYPES = tuple(LIMITS)
SHAPES = [(6, 3), (4, 3, 5), (2, 3, 4, 5), (2, 3, 2, 4, 3)]


def near(actual: Tensor, expected: Tensor, dtype: torch.dtype = torch.float32, scale: float = 1) -> None:
    limit = scale * LIMITS[dtype]
    torch.testing.assert_close(actual.detach().cpu().double(), expected.detach().double(), rtol=limit, atol=limit)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_batch_norm_and_its_gradient(shape: tuple[int, ...], training: bool, dtype: torch.dtype) -> None:
    x, weight, bias = torch.randn(shape).to(dtype), torch.randn(3), torch.randn(3)
    running = torch.randn(3), torch.rand(3) + 0.5
    device = [t.npu().requires_grad_() for t in (x, weight, bias)]
    reference = [t.double().requires_grad_() for t in (x, weight, bias)]
    device_running = [t.npu() for t in running]
    reference_running = [t.double() for t in running]
    with called() as names:
        y = nn.batch_norm(device[0], *device_running, device[1], device[2], training, 0.3, 1e-4)
    assert "BatchNorm" in names
    expected = nn.batch_norm(reference[0], *reference_running, reference[1], reference[2], training, 0.3, 1e-4)
    near(y, expected, dtype)
    for actual, wanted in zip(device_running, reference_running, strict=True):
        near(actual, wanted, dtype)
    grad = torch.randn(shape).to(dtype)
    with called() as names:
        y.backward(grad.npu())
    assert "BatchNormBackward" in names
    expected.backward(grad.double())
    for actual, wanted in zip(device, reference, strict=True):
        near(actual.grad, wanted.grad, dtype, 20)


def test_batch_norm_without_weight_and_running_statistics() -> None:
    x = torch.randn(4, 3, 5)
    near(nn.batch_norm(x.npu(), None, None, training=True), nn.batch_norm(x, None, None, training=True))


def test_batch_norm_keeps_running_statistics_of_16_bits() -> None:
    x, mean, var = torch.randn(8, 3), torch.zeros(3).half().npu(), torch.ones(3).half().npu()
    nn.batch_norm(x.half().npu(), mean, var, training=True, momentum=0.5)
    near(mean, 0.5 * x.mean(0), torch.float16)
    near(var, 0.5 + 0.5 * x.var(0), torch.float16)


def statistics(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    dims = (0, *range(2, x.dim()))
    return x.mean(dims), 1 / torch.sqrt(x.var(dims, correction=0) + eps)


def per_channel(values: Tensor, x: Tensor) -> Tensor:
    return values.view(-1, *[1] * (x.dim() - 2))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES[2:])
def test_synchronised_forward(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, weight, bias = torch.randn(shape).to(dtype), torch.randn(3), torch.randn(3)
    with called() as names:
        mean, invstd = torch.batch_norm_stats(x.npu(), 1e-4)
        y = torch.batch_norm_elemt(x.npu(), weight.npu(), bias.npu(), mean, invstd, 1e-4)
    assert {"BatchNormStats", "BatchNormElemt"} <= names
    expected_mean, expected_invstd = statistics(x.double(), 1e-4)
    near(mean, expected_mean)
    near(invstd, expected_invstd)
    near(y, nn.batch_norm(x.double(), None, None, weight.double(), bias.double(), True, 0, 1e-4), dtype)


@pytest.mark.parametrize("shape", SHAPES)
def test_synchronised_backward_of_one_process_is_the_plain_one(shape: tuple[int, ...]) -> None:
    x, weight, dy = torch.randn(shape), torch.randn(3), torch.randn(shape)
    mean, invstd = statistics(x, 1e-5)
    count = torch.tensor([x.numel() // 3], dtype=torch.int32)
    device = [t.npu() for t in (dy, x, mean, invstd, weight)]
    with called() as names:
        sum_dy, sum_dy_xmu, grad_weight, grad_bias = torch.batch_norm_backward_reduce(*device, True, True, True)
        grad = torch.batch_norm_backward_elemt(*device, sum_dy, sum_dy_xmu, count.npu())
    assert {"BatchNormReduceBackward", "BatchNormElemtBackward"} <= names
    wide = [t.double().requires_grad_() for t in (x, weight, torch.zeros(3))]
    nn.batch_norm(wide[0], None, None, wide[1], wide[2], True, 0, 1e-5).backward(dy.double())
    for actual, expected in zip((grad, grad_weight, grad_bias), wide, strict=True):
        near(actual, expected.grad, scale=20)


def test_the_backward_sums_that_are_not_asked_for_are_missing() -> None:
    x, values = torch.randn(2, 3, 4).npu(), torch.rand(3).npu()
    outputs = torch.batch_norm_backward_reduce(x, x, values, values, values, False, True, False)
    assert [output is not None and output.numel() > 0 for output in outputs] == [False, False, True, False]


def test_statistics_of_two_processes() -> None:
    parts, counts = [torch.randn(4, 3, 5), 2 * torch.randn(2, 3, 5) + 1], torch.tensor([20.0, 10.0])
    both = torch.cat(parts)
    mean, invstd = (torch.stack(t) for t in zip(*(statistics(p, 1e-3) for p in parts), strict=True))
    running = torch.zeros(3).npu(), torch.ones(3).npu()
    with called() as names:
        actual = torch.batch_norm_gather_stats_with_counts(
            parts[0].npu(), mean.npu(), invstd.npu(), *running, 0.25, 1e-3, counts.npu()
        )
    assert "BatchNormGatherStatsWithCounts" in names
    for value, expected in zip(actual, statistics(both, 1e-3), strict=True):
        near(value, expected)
    near(running[0], 0.25 * both.mean((0, 2)))
    near(running[1], 0.75 + 0.25 * both.var((0, 2)))


def test_sums_of_two_processes() -> None:
    parts, counts = [torch.randn(4, 3, 5), torch.randn(2, 3, 5)], torch.tensor([20, 10], dtype=torch.int32)
    both = torch.cat(parts)
    with called() as names:
        sums = [torch_npu.batch_norm_reduce(p.npu(), 1e-5) for p in parts]
        total, squares = (torch.stack(t) for t in zip(*sums, strict=True))
        running = torch.zeros(3).npu(), torch.ones(3).npu()
        actual = torch_npu.batch_norm_gather_stats_update(
            parts[0].npu(), total, squares, *running, 0.25, 1e-3, counts.npu()
        )
    assert {"BatchNormReduce", "SyncBatchNormGatherStats"} <= names
    near(total[0], parts[0].sum((0, 2)))
    near(squares[1], parts[1].square().sum((0, 2)))
    for value, expected in zip(actual, statistics(both, 1e-3), strict=True):
        near(value, expected)
    near(running[0], 0.25 * both.mean((0, 2)))
    near(running[1], 0.75 + 0.25 * both.var((0, 2), correction=0))
