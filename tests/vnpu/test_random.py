"""Random numbers: repeatable by seed, new at each call, of the right distribution; in graphs new at each replay."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch_npu
from tests.vnpu.elementwise import FLOATS
from tests.vnpu.support import called
from torch import Tensor
from torch.nn import functional as F

from gallium.vnpu.ops.dropout import pack_bits, unpack_bits
from gallium.vnpu.registry import Illegal, Unsupported, operators

N = 20000


def zeros(dtype: torch.dtype = torch.float32, size: int = N) -> Tensor:
    return torch.zeros(size, dtype=dtype, device="npu")


FILLS: dict[str, Callable[[], Tensor]] = {
    "InplaceNormal": lambda: zeros().normal_(2, 3),
    "InplaceUniform": lambda: zeros().uniform_(-1, 3),
    "InplaceRandom": lambda: zeros(torch.int64).random_(5, 15),
    "InplaceBernoulli": lambda: zeros().bernoulli_(0.3),
    "InplaceBernoulliTensor": lambda: torch.bernoulli(zeros() + 0.3),
    "NormalFloatFloat": lambda: torch.normal(2.0, 3.0, (N,), device="npu"),
    "NormalTensorFloat": lambda: torch.normal(zeros() + 2, 3.0),
    "NormalFloatTensor": lambda: torch.normal(2.0, zeros() + 3),
    "NormalTensorTensor": lambda: torch.normal(zeros() + 2, zeros() + 3),
    "Randperm": lambda: torch.randperm(N, device="npu"),
    "DropoutGenMaskV2": lambda: F.dropout(zeros() + 1, 0.25),
}
MOMENTS = {  # mean and standard deviation
    "InplaceNormal": (2, 3),
    "InplaceUniform": (1, 4 / 12**0.5),
    "InplaceRandom": (9.5, 8.25**0.5),
    "InplaceBernoulli": (0.3, 0.21**0.5),
    "InplaceBernoulliTensor": (0.3, 0.21**0.5),
    "NormalFloatFloat": (2, 3),
    "NormalTensorFloat": (2, 3),
    "NormalFloatTensor": (2, 3),
    "NormalTensorTensor": (2, 3),
    "Randperm": ((N - 1) / 2, N / 12**0.5),
    "DropoutGenMaskV2": (1, (0.25 / 0.75) ** 0.5),
}


@pytest.mark.parametrize("name", FILLS)
def test_distribution_and_seed(name: str) -> None:
    torch.npu.manual_seed(7)
    with called() as names:
        first = FILLS[name]().cpu().double()
    assert name in names
    second = FILLS[name]().cpu().double()
    mean, deviation = MOMENTS[name]
    assert abs(first.mean() - mean) < 5 * deviation / N**0.5
    assert first.std() == pytest.approx(deviation, rel=0.05)
    assert not first.equal(second)
    assert abs(torch.corrcoef(torch.stack((first, second)))[0, 1]) < 5 / N**0.5
    torch.npu.manual_seed(7)
    assert FILLS[name]().cpu().double().equal(first)
    torch.npu.manual_seed(8)
    assert not FILLS[name]().cpu().double().equal(first)


def test_seeds_that_differ_little() -> None:
    """Neighbouring seeds, and seeds that differ above the 32 bits that PyTorch's CPU generator reads."""
    drawn = []
    for seed in (1, 2, 1 + (1 << 32), 1 + (1 << 40)):
        torch.npu.manual_seed(seed)
        drawn.append(torch.randn(100, device="npu").cpu())
    assert all(not a.equal(b) for i, a in enumerate(drawn) for b in drawn[:i])


def test_a_generator_of_ones_own() -> None:
    draws = [torch.randn(9, device="npu", generator=torch.Generator("npu").manual_seed(3)).cpu() for _ in range(2)]
    assert draws[0].equal(draws[1])


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_types_and_views(dtype: torch.dtype) -> None:
    x = torch.full((100, 100), 9.0, dtype=dtype, device="npu")
    x.t()[::2].normal_(0, 1)
    x[50:, 1::2].uniform_(2, 3)
    got = x.cpu().float()
    assert (got[:50, 1::2] == 9).all() and ((got[50:, 1::2] >= 2) & (got[50:, 1::2] <= 3)).all()
    assert abs(got[:, ::2].mean()) < 0.1 and got[:, ::2].std() == pytest.approx(1, rel=0.05)
    torch.empty(0, 3, dtype=dtype, device="npu").normal_().uniform_()


def test_permutations() -> None:
    for dtype in (torch.int64, torch.int32):
        assert torch.randperm(50, dtype=dtype, device="npu").cpu().sort().values.equal(torch.arange(50, dtype=dtype))
    assert torch.randperm(0, device="npu").numel() == 0


def test_ranges_of_integers() -> None:
    assert set(torch.randint(3, 6, (200,), device="npu").cpu().tolist()) == {3, 4, 5}
    x = zeros(torch.int32, 1000).random_().cpu()
    assert x.min() >= 0 and x.max() > 1 << 29


@pytest.mark.parametrize("training", [True, False])
def test_rrelu_in_place(training: bool) -> None:
    """In place only: otherwise torch_npu goes through the older interface, except on a 950 (on_950/check_random.py)."""
    x, noise = torch.randn(1000), torch.zeros(1000).npu()
    with called() as names:
        got = torch.ops.aten.rrelu_with_noise_(x.npu(), noise, 0.1, 0.3, training).cpu()
    assert "InplaceRReluWithNoise" in names
    slopes = (got / x)[x < 0]
    assert got[x >= 0].equal(x[x >= 0])
    assert slopes.min() > 0.1 - 1e-5 and slopes.max() < 0.3 + 1e-5
    assert (slopes.std() > 0.03) == training
    if training:
        torch.testing.assert_close(noise.cpu() * x, got)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_dropout(dtype: torch.dtype) -> None:
    x = (torch.rand(37, 50) + 1).to(dtype)
    for view in (x, x.t(), x[1:, ::3]):
        leaf = view.npu().requires_grad_()
        with called() as names:
            y = F.dropout(leaf, 0.25)
            y.backward(torch.full_like(y, 2))
        assert {"DropoutGenMaskV2", "DropoutDoMask"} <= names
        kept = y.detach().cpu() != 0
        assert kept.float().mean() == pytest.approx(0.75, abs=0.06)
        torch.testing.assert_close(y.detach().cpu(), torch.where(kept, view / 0.75, 0))
        torch.testing.assert_close(leaf.grad.cpu(), torch.where(kept, torch.full_like(view, 2 / 0.75), 0))


def test_dropout_of_all_and_nothing() -> None:
    x = torch.randn(50)
    assert F.dropout(x.npu(), 0.0).cpu().equal(x)
    assert not F.dropout(x.npu(), 1.0).cpu().any()
    assert F.dropout(torch.empty(0, 3, device="npu"), 0.5).shape == (0, 3)


def test_masks_have_the_lowest_bit_first() -> None:
    bits = torch.tensor([1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1], dtype=torch.bool)
    packed = torch.full((16,), 255, dtype=torch.uint8)
    pack_bits(bits, packed)
    assert packed.tolist() == [1, 6, *[0] * 14]
    assert unpack_bits(packed, 11).equal(bits)
    x = torch.randn(1000).npu()
    result, mask = torch_npu._npu_dropout(x, 0.3)
    assert mask.shape == (128,)
    assert unpack_bits(mask.cpu(), 1000).equal(result.cpu() != 0)


def test_gen_mask() -> None:
    with called() as names:
        mask = torch_npu.npu_dropout_gen_mask([40, 50], 0.2, dtype=torch.float32, device="npu", layout=torch.strided)
    assert "DropoutGenMask" in names
    assert unpack_bits(mask.cpu(), 2000).float().mean() == pytest.approx(0.8, abs=0.05)


GRAPHS: dict[str, Callable[[Tensor], Tensor]] = {
    "InplaceNormalTensor": lambda x: x.normal_(1, 2),
    "InplaceUniformTensor": lambda x: x.uniform_(0, 1),
    "InplaceRandomTensor": lambda x: x.random_(0, 9999),
    "DropoutGenMaskV2Tensor": lambda x: F.dropout(x, 0.5),
    "MultinomialTensor": lambda x: torch.multinomial(x.abs() + 1, 50).float(),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_replays_give_new_numbers(name: str) -> None:
    static = torch.ones(1000, device="npu")
    graph = torch.npu.NPUGraph()
    torch.npu.manual_seed(5)
    with called() as names, torch.npu.graph(graph):
        result = GRAPHS[name](static)
        other = GRAPHS[name](torch.ones(1000, device="npu"))
    assert name in names
    drawn = []
    for _ in range(2):
        static.fill_(1)
        graph.replay()
        drawn += [result.cpu(), other.cpu()]
    assert all(not a.equal(b) for i, a in enumerate(drawn) for b in drawn[:i])
    torch.npu.manual_seed(5)
    static.fill_(1)
    graph.replay()
    assert result.cpu().equal(drawn[0])


def test_the_mask_of_the_newer_dropout_has_room() -> None:
    """torch_npu calls DropoutV3 on a 950 only, and never with a noise shape."""
    x, out, mask = torch.randn(200), torch.empty(200), torch.empty(16, dtype=torch.uint8)
    with pytest.raises(Unsupported, match="noise_shape"):
        operators()["DropoutV3"].body(x, x, 0.5, 1, 2, out, mask)
    with pytest.raises(Illegal, match="mask"):
        operators()["DropoutV3"].body(x, None, 0.5, 1, 2, out, mask)
