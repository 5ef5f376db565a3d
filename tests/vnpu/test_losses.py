"""Losses and their gradients against PyTorch's on the CPU; fused ones against their formulas."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as nn
import torch_npu
from tests.vnpu.against_cpu import agree, gradients, same, strided
from tests.vnpu.support import called
from torch import Tensor

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
REDUCTIONS = ("none", "mean", "sum")
Function = Callable[..., Any]


def logs(*shape: int) -> Tensor:
    return torch.randn(shape).log_softmax(-1)


def odds(*shape: int) -> Tensor:
    return torch.rand(shape) * 0.9 + 0.05


OF_TWO: list[tuple[str, Function, Tensor, Tensor]] = [
    ("MseLoss", nn.mse_loss, torch.randn(3, 4), torch.randn(3, 4)),
    ("L1Loss", nn.l1_loss, torch.randn(3, 4), torch.randn(3, 4)),
    ("SmoothL1Loss", nn.smooth_l1_loss, torch.randn(3, 4), torch.randn(3, 4)),
    ("SmoothL1Loss", lambda x, y, **k: nn.smooth_l1_loss(x, y, beta=0.3, **k), torch.randn(3, 4), torch.randn(3, 4)),
    ("SoftMarginLoss", nn.soft_margin_loss, torch.randn(3, 4), torch.randn(3, 4).sign()),
    ("BinaryCrossEntropy", nn.binary_cross_entropy, odds(3, 4), odds(3, 4)),
    ("BinaryCrossEntropyWithLogits", nn.binary_cross_entropy_with_logits, torch.randn(3, 4), odds(3, 4)),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("case", range(len(OF_TWO)))
def test_losses_of_two_tensors(case: int, reduction: str, dtype: torch.dtype) -> None:
    name, function, x, y = OF_TWO[case]

    def loss(x: Tensor, y: Tensor) -> list[Tensor]:
        return gradients(lambda x: function(x, y, reduction=reduction), x)

    agree(loss, x.to(dtype), y.to(dtype), runs={name, f"{name}Backward"})


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_weights_of_binary_cross_entropy(reduction: str) -> None:
    x, y, weight, positive = odds(3, 4), odds(3, 4), torch.rand(4), torch.rand(4) + 1
    agree(
        lambda x, y, w: gradients(lambda x: nn.binary_cross_entropy(x, y, w, reduction=reduction), x),
        x,
        y,
        weight.expand(3, 4).clone(),
        runs={"BinaryCrossEntropy", "BinaryCrossEntropyBackward"},
    )
    agree(
        lambda x, y, w, p: gradients(
            lambda x: nn.binary_cross_entropy_with_logits(x, y, w, pos_weight=p, reduction=reduction), x
        ),
        x,
        y,
        weight,
        positive,
        runs={"BinaryCrossEntropyWithLogits", "BinaryCrossEntropyWithLogitsBackward"},
    )


@pytest.mark.parametrize("log_target", [False, True])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum", "batchmean"])
@pytest.mark.filterwarnings("ignore:reduction. 'mean' divides the total loss")
def test_divergence(reduction: str, log_target: bool) -> None:
    target = logs(3, 4) if log_target else logs(3, 4).exp()
    agree(
        lambda x, y: gradients(lambda x, y: nn.kl_div(x, y, reduction=reduction, log_target=log_target), x, y),
        logs(3, 4),
        target,
        runs={"KlDiv", "KlDivBackward", "KlDivTargetBackward"},
    )


def test_divergence_from_what_cannot_be() -> None:
    target = torch.tensor([[0.0, 0.5, 0.5]])
    agree(
        lambda x, y: gradients(lambda x: nn.kl_div(x, y, reduction="sum"), x), logs(1, 3), target, runs="KlDivBackward"
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("weighted", [False, True])
def test_likelihoods(weighted: bool, reduction: str, dtype: torch.dtype) -> None:
    x, weight = logs(4, 5).to(dtype), (torch.rand(5) + 0.5).to(dtype) if weighted else None
    target = torch.tensor([1, 0, 4, 2])

    def loss(x: Tensor, t: Tensor, w: Tensor | None) -> list[Tensor]:
        return gradients(lambda x: nn.nll_loss(x, t, w, ignore_index=2, reduction=reduction), x)

    agree(loss, x, target, weight, runs={"NLLLoss", "NLLLossBackward"})
    picture, places = logs(2, 3, 4, 5).permute(0, 3, 1, 2).contiguous().to(dtype), torch.randint(0, 5, (2, 3, 4))
    agree(loss, picture, places, weight, runs={"NLLLoss2d", "NLLLoss2dBackward"})


def test_the_total_weight_of_a_likelihood() -> None:
    x, target, weight = logs(4, 3), torch.tensor([1, 0, 2, 1]), torch.rand(3)
    agree(lambda x, t, w: torch.ops.aten.nll_loss_forward(x, t, w, 1, 2), x, target, weight, runs="NLLLoss")


@pytest.mark.parametrize("dtype", DTYPES)
def test_cross_entropy_of_pytorch(dtype: torch.dtype) -> None:
    x, target = torch.randn(4, 5).to(dtype), torch.tensor([1, -100, 4, 2])
    agree(
        lambda x, t: gradients(lambda x: nn.cross_entropy(x, t, label_smoothing=0.1), x),
        x,
        target,
        runs={"LogSoftmax", "NLLLoss", "NLLLossBackward", "LogSoftmaxBackward"},
    )


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_margins_of_several_labels(reduction: str) -> None:
    x, target = torch.randn(3, 5), torch.tensor([[1, 3, -1, 0, 0], [0, -1, 2, 2, 2], [-1, 0, 1, 2, 3]])
    agree(lambda x, t: nn.multilabel_margin_loss(x, t, reduction=reduction), x, target, runs="MultilabelMarginLoss")
    got = nn.multilabel_margin_loss(x.half().npu(), target.npu(), reduction=reduction)
    same(got, nn.multilabel_margin_loss(x.half().float(), target, reduction=reduction).half())


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("zero_infinity", [False, True])
def test_temporal_classification(zero_infinity: bool, reduction: str) -> None:
    x, targets = torch.randn(12, 3, 5).log_softmax(-1), torch.randint(1, 5, (3, 4))

    def loss(x: Tensor, t: Tensor) -> list[Tensor]:
        lengths = ([12, 10, 3], [4, 2, 4]) if zero_infinity else ([12, 10, 9], [4, 2, 4])
        settings = {"reduction": reduction, "zero_infinity": zero_infinity}
        return gradients(lambda x: nn.ctc_loss(x, t, *lengths, **settings), x)

    agree(loss, x, targets, runs={"CtcLoss", "CtcLossBackward"})


def cross_entropy(
    x: Tensor, target: Tensor, weight: Tensor | None, ignored: int, smoothing: float
) -> tuple[Tensor, Tensor]:
    """Of each row: the loss and the weight that counts; the formula of the page in double precision."""
    logits = x.double()
    prob = logits - logits.exp().sum(-1, keepdim=True).log()
    scale = torch.ones(x.shape[1], dtype=torch.float64) if weight is None else weight.double()
    kept = torch.tensor([float(t != ignored or ignored < 0) for t in target.tolist()], dtype=torch.float64)
    own = torch.stack([-prob[i, t] * scale[t] for i, t in enumerate(target.tolist())])
    smooth = -(prob * scale).sum(-1) / x.shape[1]
    return ((1 - smoothing) * own + smoothing * smooth) * kept, scale[target] * kept


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize(("weighted", "ignored", "smoothing"), [(False, -100, 0.0), (True, 2, 0.0), (True, -1, 0.2)])
def test_cross_entropy_in_one(
    weighted: bool, ignored: int, smoothing: float, reduction: str, dtype: torch.dtype
) -> None:
    x, target = torch.randn(4, 5).to(dtype), torch.tensor([1, 2, 4, 2])
    weight = torch.rand(5) + 0.1 if weighted else None
    each, weights = cross_entropy(x, target, weight, ignored, smoothing)
    expected = {"none": each, "sum": each.sum().reshape(1), "mean": (each.sum() / weights.sum()).reshape(1)}[reduction]
    given = None if weight is None else weight.npu()
    with called() as names:
        loss, prob, zloss, lse = torch_npu.npu_cross_entropy_loss(
            strided(x), target.npu(), given, reduction, ignored, smoothing
        )
    assert "CrossEntropyLoss" in names
    same(loss, expected.to(dtype))
    same(prob, torch.log_softmax(x.double(), -1).to(dtype))
    assert zloss.numel() == lse.numel() == 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("reduction", "weighted", "ignored"), [("none", True, 2), ("sum", True, 1), ("mean", False, -1)]
)
def test_the_gradient_of_cross_entropy_in_one(reduction: str, weighted: bool, ignored: int, dtype: torch.dtype) -> None:
    x, target = torch.randn(4, 5).to(dtype), torch.tensor([1, 2, 4, 2])
    weight = torch.rand(5) + 0.1 if weighted else None

    reference = x.double().requires_grad_()
    each, weights = cross_entropy(reference, target, weight, ignored, 0.0)
    loss = {"none": (each * torch.arange(1, 5)).sum(), "sum": each.sum(), "mean": each.sum() / weights.sum()}[reduction]
    (expected,) = torch.autograd.grad(loss, reference)

    leaf = x.npu().requires_grad_()
    given = None if weight is None else weight.npu()
    out = torch_npu.npu_cross_entropy_loss(leaf, target.npu(), given, reduction, ignored)[0]
    with called() as names:
        out.backward(torch.arange(1, 5).to(dtype).npu() if reduction == "none" else torch.ones(1, dtype=dtype).npu())
    assert "CrossEntropyLossGrad" in names
    assert leaf.grad is not None
    same(leaf.grad, expected.to(dtype))


def test_what_cross_entropy_in_one_refuses() -> None:
    x, target, weight = (
        torch.randn(4, 5).npu().requires_grad_(),
        torch.zeros(4, dtype=torch.int64).npu(),
        torch.ones(5).npu(),
    )
    for message, args in (
        ("ignore_index", (None, "mean", 5)),
        ("label_smoothing", (None, "mean", -100, 1.0)),
        ("lse_square_scale_for_zloss", (None, "mean", -100, 0.0, 0.1)),
        ("return_zloss", (None, "mean", -100, 0.0, 0.0, True)),
        ("reduction", (None, "median")),
    ):
        with pytest.raises(RuntimeError, match=message):
            torch_npu.npu_cross_entropy_loss(x, target, *args)
    for message, args in (("label_smoothing", (None, "sum", -100, 0.1)), ("weight or ignore_index", (weight, "mean"))):
        with pytest.raises(RuntimeError, match=message):
            torch_npu.npu_cross_entropy_loss(x, target, *args)[0].sum().backward()


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16))
@pytest.mark.parametrize("index_type", (torch.int32, torch.int64))
@pytest.mark.parametrize("keep", [True, False])
def test_a_vocabulary_split_between_devices(keep: bool, index_type: torch.dtype, dtype: torch.dtype) -> None:
    """Two halves of a vocabulary, joined as two devices would, give the loss and gradients of the whole."""
    rows, half, hidden = 11, 128, 8
    x, weight = torch.randn(rows, hidden).to(dtype), torch.randn(2 * half, hidden).to(dtype)
    target, grad = torch.randint(0, 2 * half, (rows,), dtype=index_type), torch.rand(rows)
    leaves = [x.double().requires_grad_(), weight.double().requires_grad_()]
    loss = nn.cross_entropy(leaves[0] @ leaves[1].t(), target.long(), reduction="none")
    expected = torch.autograd.grad(loss, leaves, grad.double())

    parts = weight.split(half)
    with called() as names:
        shares = [
            torch_npu.npu_fused_linear_online_max_sum(
                strided(x), parts[i].npu(), target.npu(), i * half, (i + 1) * half - 1, keep
            )
            for i in (0, 1)
        ]
        bits = [[int(byte) >> (7 - i) & 1 for byte in share[3].cpu().tolist() for i in range(8)] for share in shares]
        for i in (0, 1):
            assert bits[i] == [int(t // half != i) for t in target.tolist()] + [1] * 5
            local = torch.where(target // half == i, target - i * half, 0)
            same(shares[i][4], local.to(index_type))
        highest = torch.maximum(shares[0][0], shares[1][0])
        factors = [torch.exp(share[0] - highest) for share in shares]
        total = sum(share[1] * factor for share, factor in zip(shares, factors, strict=True))
        inside = [torch.tensor(row[:rows]).npu() == 0 for row in bits]
        own = sum(torch.where(m, s[2] + s[0] - highest, 0) for m, s in zip(inside, shares, strict=True))
        got = [
            torch_npu.npu_fused_cross_entropy_loss_with_max_sum(highest, total, own, vocab_parallel_logits=share[5])
            for share in shares
        ]
        sides = [
            torch_npu.npu_fused_linear_cross_entropy_loss_with_max_sum_backward(
                grad.npu(),
                strided(x),
                part.npu(),
                share[3],
                share[4],
                0.0,
                None if keep else highest,
                None if keep else total,
                result[1] if keep else None,
            )
            for part, share, result in zip(parts, shares, got, strict=True)
        ]
    assert names >= {"FusedLinearOnlineMaxSum", "FusedCrossEntropyLossWithMaxSum", "FusedLinearCrossEntropyLossGrad"}
    assert (shares[0][5] is None) == (not keep)
    same(got[0][0], loss.detach().float(), 1e-3)
    same((sides[0][0] + sides[1][0]).float(), expected[0].float(), 2e-2)
    same(torch.cat([sides[0][1], sides[1][1]]), expected[1].to(dtype), 2e-2)


def test_what_a_split_vocabulary_refuses() -> None:
    x, weight, target = torch.randn(4, 8).half().npu(), torch.randn(128, 8).half().npu(), torch.zeros(4).long().npu()
    numbers, mask = torch.ones(4).npu(), torch.zeros(1, dtype=torch.uint8).npu()
    loss = torch_npu.npu_fused_cross_entropy_loss_with_max_sum
    backward = torch_npu.npu_fused_linear_cross_entropy_loss_with_max_sum_backward
    calls: list[tuple[str, Callable[[], Any]]] = [
        ("vocab_start_index", lambda: torch_npu.npu_fused_linear_online_max_sum(x, weight, target, 5, 4)),
        ("label_smoothing", lambda: loss(numbers, numbers, numbers, label_smoothing=0.1)),
        ("input", lambda: loss(numbers, numbers, numbers, input=x)),
        ("label_smoothing", lambda: backward(numbers, x, weight, mask, target, 0.1, numbers, numbers)),
        ("at least 128", lambda: backward(numbers, x, weight[:64], mask, target, 0.0, numbers, numbers)),
        ("softmax", lambda: backward(numbers, x, weight, mask, target)),
    ]
    for message, call in calls:
        with pytest.raises(RuntimeError, match=message):
            call()
