"""What 910A and 310P run through the older interface: convolutions, and whatever follows one of float16.

The output of such a convolution is in a format of its own (NC1HWC0), and torch_npu has aclnn only for ordinary formats.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch_npu
from torch import Tensor, nn
from torch.nn import functional

from gallium.vnpu.aclop import call_counts

pytestmark = [  # torch_npu's own: when a module is copied, and for views where formats may be internal
    pytest.mark.filterwarnings("ignore:TypedStorage"),
    pytest.mark.filterwarnings("ignore:current tensor is running as_strided"),
]
NC1HWC0, NZ = 3, 29
CONVOLUTIONS = {
    "strides": (nn.Conv2d(4, 6, 3, stride=2, padding=1), 4),
    "groups": (nn.Conv2d(4, 6, 3, groups=2, bias=False), 4),
    "dilation": (nn.Conv2d(4, 6, 3, dilation=2), 4),
    "1d": (nn.Conv1d(4, 6, 3, padding=1), 3),
    "transposed": (nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1), 4),
    "transposed 1d": (nn.ConvTranspose1d(4, 6, 3, stride=2), 3),
}
AFTER = {
    "BNTrainingReduceGrad": nn.BatchNorm2d(16),
    "BNInferGrad": nn.BatchNorm2d(16).eval(),
    "ReluGrad": nn.ReLU(),
    "MaxPoolGradWithArgmaxV1": nn.MaxPool2d(2),
    "AvgPoolV2Grad": nn.AvgPool2d(2, 2, 1, count_include_pad=False),
    "ReduceMean": nn.AdaptiveAvgPool2d(1),
    "GeluGrad": nn.GELU(approximate="tanh"),
    "SiluGrad": nn.SiLU(),
    "LeakyReluGrad": nn.LeakyReLU(0.2),
    "SigmoidGrad": nn.Sigmoid(),
    "TanhGrad": nn.Tanh(),
}
ON_TENSORS: dict[str, Callable[[Tensor], Tensor]] = {
    "Add": lambda x: x + x,
    "ReverseV2": lambda x: x.flip(0, 2),
    "Mul": lambda x: x * 2,
    "ConcatD": lambda x: torch.cat((x, x), 1),
    "SoftmaxV2": lambda x: x.softmax(-1),
    "Greater": lambda x: (x > 0.5).float(),
    "NonZero": lambda x: torch.nonzero(torch.relu(x)),
    "MaskedSelect": lambda x: torch.masked_select(x, x > 0.5),
    "Sqrt": lambda x: x.abs().sqrt(),
}


def gradients(module: nn.Module, x: Tensor) -> list[Tensor]:
    """The output, and the gradients of the input and of the parameters."""
    x = x.detach().clone().requires_grad_()
    out = module(x)
    out.backward(torch.linspace(-1, 1, out.numel()).view(out.shape).to(out))
    return [t.detach().float().cpu() for t in (out, x.grad, *(p.grad for p in module.parameters()))]


def check_module(module: nn.Module, x: Tensor, dtype: torch.dtype, tolerance: float) -> None:
    there = copy.deepcopy(module).npu().to(dtype)
    for found, expected in zip(gradients(there, x.npu().to(dtype)), gradients(module, x), strict=True):
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_and_their_gradients(name: str) -> None:
    module, dims = CONVOLUTIONS[name]
    check_module(module, torch.randn(2, 4, 9, 8)[(..., 0)[: 5 - dims]], torch.float32, 2e-5)
    assert call_counts["Conv2DTranspose" if "transposed" in name else "Conv2D"]
    assert call_counts["ReduceSum"]


@pytest.mark.parametrize("name", AFTER)
def test_what_follows_a_convolution_of_float16(name: str) -> None:
    before = call_counts[name]
    convolution = nn.Conv2d(16, 16, 3, padding=1)
    with torch.no_grad():  # numbers that float16 holds exactly, so that none changes its sign
        convolution.weight.copy_(torch.randint(-2, 3, (16, 16, 3, 3)) / 4)
        convolution.bias.fill_(0.125)
    x = torch.randint(-2, 3, (2, 16, 8, 8)).float()
    check_module(nn.Sequential(convolution, AFTER[name]), x, torch.half, 2e-2)
    assert call_counts[name] > before


@pytest.mark.parametrize("name", ON_TENSORS)
def test_functions_of_the_output_of_a_convolution(name: str) -> None:
    x = nn.Conv2d(16, 16, 3).npu().half()(torch.randn(2, 16, 8, 8).npu().half()).detach()
    assert torch_npu.get_npu_format(x) == NC1HWC0
    before = call_counts[name]
    expected = ON_TENSORS[name](x.cpu())
    torch.testing.assert_close(ON_TENSORS[name](x).cpu(), expected, rtol=2e-3, atol=2e-3)
    assert call_counts[name] > before


def test_pooling_and_unfolding_in_float32() -> None:
    x = torch.randn(2, 4, 5, 6, 7)
    check_module(nn.Sequential(nn.Conv3d(4, 4, 3, padding=1), nn.AvgPool3d(2)), x, torch.float32, 1e-5)
    check_module(nn.Sequential(nn.Conv3d(4, 4, 3, padding=1), nn.MaxPool3d(2, ceil_mode=True)), x, torch.float32, 1e-5)
    check_module(nn.Sequential(nn.Conv2d(4, 4, 3), nn.Unfold(2)), x[..., 0], torch.float32, 1e-5)
    single = torch.randn(2, 5, 6, 7)
    torch.testing.assert_close(functional.max_pool3d(single.npu(), 2).cpu(), functional.max_pool3d(single, 2))
    assert call_counts["AvgPool3DGrad"] and call_counts["MaxPool3DGrad"] and call_counts["Im2col"]


def test_pooling_in_three_dimensions_whose_gradient_is_not_told_enough() -> None:
    x = torch.randn(1, 2, 5, 6, 7).npu().requires_grad_()
    with pytest.raises(RuntimeError, match="dilation"):
        functional.max_pool3d(x, 2, 2, 0, 2).sum().backward()
    with pytest.raises(RuntimeError, match="pads"):
        functional.avg_pool3d(x, 3, 2, (1, 0, 1)).sum().backward()


def test_rotary_embedding_and_its_gradient() -> None:
    given = [torch.randn(2, 3, 4, 128), torch.randn(1, 3, 1, 128), torch.randn(1, 3, 1, 128)]
    here, there = ([t.clone().to(d).requires_grad_() for t in given] for d in ("cpu", "npu"))
    first, second = here[0].chunk(2, -1)
    expected = here[0] * here[1] + torch.cat((-second, first), -1) * here[2]
    found = torch_npu.npu_rotary_mul(*there)
    torch.testing.assert_close(found.cpu(), expected)
    for out in (found, expected):
        out.backward(torch.linspace(-1, 1, out.numel()).view(out.shape).to(out.device))
    for a, b in zip(there, here, strict=True):
        torch.testing.assert_close(a.grad.cpu(), b.grad, rtol=1e-5, atol=1e-5)
    assert call_counts["RotaryMul"] and call_counts["RotaryMulGrad"]


def test_matrices_in_nz_format() -> None:
    w, batch = torch.randn(32, 40).half(), torch.randn(2, 40, 24).half()
    nz, batch_nz = (torch_npu.npu_format_cast(t.npu(), NZ) for t in (w, batch))
    a = torch.randn(2, 5, 40).half()
    expected = functional.linear(a.float(), w.float())
    torch.testing.assert_close(functional.linear(a.npu(), nz).cpu().float(), expected, rtol=2e-3, atol=2e-2)
    torch.testing.assert_close(torch.bmm(a.npu(), batch_nz).cpu(), torch.bmm(a, batch), rtol=2e-3, atol=2e-2)
    torch.testing.assert_close((nz + nz).cpu(), w + w)
    torch.testing.assert_close(functional.embedding(torch.tensor([[1, 3]]).npu(), nz).cpu(), w[[1, 3]][None])
    assert call_counts["BatchMatMul"] and call_counts["GatherV2"]
    with pytest.raises(RuntimeError, match="FRACTAL_NZ"):
        torch.nonzero(nz)


def test_a_small_network_learns() -> None:
    torch.manual_seed(0)
    block = (nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16 * 16, 4))
    network = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), *block).npu()
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    x, label = torch.randn(8, 16, 8, 8).npu(), (torch.arange(8) % 4).npu()
    losses = []
    for _ in range(8):
        with torch.autocast("npu", dtype=torch.half):
            out = network(x)
        loss = functional.cross_entropy(out.float(), label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 4


def test_an_operator_that_is_not_emulated_is_named() -> None:
    with pytest.raises(RuntimeError, match=r"aclop\.GroupNorm is not emulated"):
        nn.Sequential(nn.Conv2d(16, 16, 3), nn.GroupNorm(4, 16)).npu().half()(torch.randn(2, 16, 8, 8).npu().half())
