"""Operators that change their first argument: views, strides and offsets too, and nothing around them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch_npu
from tests.vnpu.elementwise import FLOATS, INTEGERS, LAYOUTS, agree_inplace, same, values
from tests.vnpu.support import called
from tests.vnpu.test_elementwise import UNARY
from torch import Tensor

from gallium.vnpu.registry import Unsupported, operators

UNARY_INPLACE = (
    "acos acosh asin asinh atan atanh ceil cos cosh erf erfc erfinv exp exp2 expm1 floor frac log log10 log1p log2 "
    "logical_not reciprocal relu rsqrt sigmoid sin sinc sinh sqrt tan tanh"
)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("name", UNARY_INPLACE.split())
def test_unary(name: str, dtype: torch.dtype) -> None:
    calls, low, high = UNARY[name]
    agree_inplace(getattr(Tensor, f"{name}_"), values(dtype, low, high), calls=f"Inplace{calls}")


BINARY = {  # method, CANN's names for a tensor and for a number
    "add": ("InplaceAdd", "InplaceAdds"),
    "sub": ("InplaceSub", "InplaceSubs"),
    "mul": ("InplaceMul", "InplaceMuls"),
    "div": ("InplaceDiv", "InplaceDivs"),
    "floor_divide": ("InplaceFloorDivide", "InplaceFloorDivides"),
    "fmod": ("InplaceFmodTensor", "InplaceFmodScalar"),
    "remainder": ("InplaceRemainderTensorTensor", "InplaceRemainderTensorScalar"),
    "pow": ("InplacePowTensorTensor", "InplacePowTensorScalar"),
    "eq": ("InplaceEqTensor", "InplaceEqScalar"),
    "ne": ("InplaceNeTensor", "InplaceNeScalar"),
    "lt": ("InplaceLtTensor", "InplaceLtScalar"),
    "le": ("InplaceLeTensor", "InplaceLeScalar"),
    "gt": ("InplaceGtTensor", "InplaceGtScalar"),
    "ge": ("InplaceGeTensor", "InplaceGeScalar"),
    "clamp_max": ("InplaceClampMaxTensor", "InplaceClampMax"),
    "xlogy": (None, "InplaceXLogYScalarOther"),
    "clamp_min": ("InplaceClampMinTensor", None),
    "atan2": ("InplaceAtan2", None),
    "logical_and": ("InplaceLogicalAnd", None),
    "logical_or": ("InplaceLogicalOr", None),
}


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("name", BINARY)
def test_binary(name: str, dtype: torch.dtype) -> None:
    with_tensor, with_number = BINARY[name]
    x, y = values(dtype, 0.5, 3), values(dtype, 0.5, 3)
    method = getattr(Tensor, f"{name}_")
    if with_tensor is not None:
        agree_inplace(method, x, y, calls=with_tensor)
    if with_number is not None:
        agree_inplace(method, x, 1.5, calls=with_number)


@pytest.mark.parametrize("dtype", [*INTEGERS, torch.bool], ids=str)
def test_bits(dtype: torch.dtype) -> None:
    x, y = values(dtype, -9, 9), values(dtype, 0, 9)
    number = True if dtype == torch.bool else 5
    agree_inplace(Tensor.bitwise_and_, x, y, calls="InplaceBitwiseAndTensor")
    agree_inplace(Tensor.bitwise_and_, x, number, calls="InplaceBitwiseAndScalar")
    agree_inplace(Tensor.bitwise_xor_, x, y, calls="InplaceBitwiseXorTensor")
    agree_inplace(Tensor.bitwise_xor_, x, number, calls="InplaceBitwiseXorScalar")


def test_alpha_rounding_and_three_operands() -> None:
    x, y, z = values(torch.float32), values(torch.float32), values(torch.float32, 1, 2)
    whole = values(torch.int64, -9, 9)
    agree_inplace(Tensor.add_, x, y, alpha=-2, calls="InplaceAdd")
    agree_inplace(Tensor.sub_, x, 3.0, alpha=2, calls="InplaceSubs")
    for rounding in ("trunc", "floor"):
        agree_inplace(Tensor.div_, x, z, rounding_mode=rounding, calls="InplaceDivMod")
        agree_inplace(Tensor.div_, whole, 4, rounding_mode=rounding, calls="InplaceDivMods")
    agree_inplace(Tensor.addcmul_, x, y, z, value=0.5, calls="InplaceAddcmul")
    agree_inplace(Tensor.addcdiv_, x, y, z, value=0.5, calls="InplaceAddcdiv")
    agree_inplace(Tensor.lerp_, x, y, z, calls="InplaceLerp")
    agree_inplace(Tensor.lerp_, x, y, 0.25, calls="InplaceLerps")
    agree_inplace(Tensor.round_, x, decimals=1, calls="InplaceRoundDecimals")
    agree_inplace(torch._add_relu_, x, y, alpha=2, calls="InplaceAddRelu")
    x[0, 1] = float("nan")
    agree_inplace(Tensor.nan_to_num_, x, 5.0, calls="InplaceNanToNum")


def test_add_relu() -> None:
    x, y = values(torch.float32), values(torch.float32)
    with called() as names:
        got = torch._add_relu(x.npu(), y.npu(), alpha=2)
    assert "AddRelu" in names
    same(got, torch.relu(x + 2 * y))


COPIED = (torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int8, torch.bool)


@pytest.mark.parametrize("source", COPIED, ids=str)
@pytest.mark.parametrize("target", COPIED, ids=str)
def test_copies_cast(source: torch.dtype, target: torch.dtype) -> None:
    x = values(source, 0, 3)
    agree_inplace(Tensor.copy_, values(target, 0, 9), x, calls="InplaceCopy")
    same(x.npu().to(target), x.to(target))


def test_copies_of_views() -> None:
    x = values(torch.float32)
    for layout in LAYOUTS.values():
        same(layout(x.npu()).contiguous(), layout(x).contiguous())
        same(layout(x.npu()).clone(), layout(x))
    row, one = torch.randn(5), torch.tensor(2.5)
    same(x.npu().copy_(row.npu()), x.clone().copy_(row))
    same(x.npu().t().copy_(one.npu()), x.clone().t().copy_(one))


FILLS: dict[str, Callable[[Tensor], Any]] = {
    "InplaceZero": Tensor.zero_,
    "InplaceFillScalar": lambda x: x.fill_(3),
    "InplaceFillTensor": lambda x: x.fill_(torch.tensor(2, device=x.device)),
}


@pytest.mark.parametrize("dtype", [*FLOATS, *INTEGERS, torch.bool, torch.complex64], ids=str)
@pytest.mark.parametrize("name", FILLS)
def test_fills(name: str, dtype: torch.dtype) -> None:
    agree_inplace(FILLS[name], values(dtype), calls=name)


def test_ones() -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.int64, torch.bool):
        with called() as names:
            same(torch.ones(3, 2, dtype=dtype, device="npu"), torch.ones(3, 2, dtype=dtype))
        assert "InplaceOne" in names
    x = torch.zeros(4, 6, device="npu")
    torch_npu.one_(x[:, ::2])
    same(x, torch.ones(4, 6) * torch.tensor([1.0, 0, 1, 0, 1, 0]))


@pytest.mark.parametrize("dtype", [*FLOATS, torch.int64, torch.bool], ids=str)
def test_masks(dtype: torch.dtype) -> None:
    x, mask = values(dtype), values(torch.bool)
    agree_inplace(Tensor.masked_fill_, x, mask, 1, calls="InplaceMaskedFillScalar")
    for value in (torch.tensor(1, dtype=dtype), torch.tensor(1, dtype=dtype).npu()):
        copies = [x.npu(), x.clone()]
        copies[0].masked_fill_(mask.npu(), value)
        same(copies[0], copies[1].masked_fill_(mask, value.cpu()))
    same(x.npu().masked_fill_(mask[0].npu(), 0), x.clone().masked_fill_(mask[0], 0))
    source = values(dtype)
    with called() as names:
        same(x.npu().masked_scatter_(mask.npu(), source.npu()), x.clone().masked_scatter_(mask, source))
    assert "InplaceMaskedScatter" in names


@pytest.mark.parametrize("diagonal", [-1, 0, 2])
def test_triangles(diagonal: int) -> None:
    for shape in ((4, 6), (2, 3, 5, 4), (0, 3)):
        x = torch.randn(shape)
        with called() as names:
            same(x.npu().tril_(diagonal), x.tril(diagonal))
            same(x.npu().triu_(diagonal), x.triu(diagonal))
            same(x.npu().transpose(-1, -2).triu_(diagonal), x.transpose(-1, -2).triu(diagonal))
        assert {"InplaceTril", "InplaceTriu"} <= names


@pytest.mark.parametrize("wrap", [False, True])
def test_diagonal(wrap: bool) -> None:
    x = torch.randn(9, 3)
    with called() as names:
        same(x.npu().fill_diagonal_(7.0, wrap), x.clone().fill_diagonal_(7.0, wrap))
    assert "InplaceFillDiagonal" in names


def test_renorm_and_products() -> None:
    x, a, b = torch.randn(4, 6), torch.randn(4, 3), torch.randn(3, 6)
    with called() as names:
        same(x.npu().renorm_(2, 0, 1.5), x.clone().renorm_(2, 0, 1.5))
        same(x.npu().renorm_(1, -1, 0.5), x.clone().renorm_(1, -1, 0.5))
        same(x.npu().addmm_(a.npu(), b.npu(), beta=0.5, alpha=2), x.clone().addmm_(a, b, beta=0.5, alpha=2))
        got = x.npu().addr_(a.npu()[:, 0], b.npu()[0], beta=0.5, alpha=2)
    same(got, x.clone().addr_(a[:, 0], b[0], beta=0.5, alpha=2))
    assert {"InplaceRenorm", "InplaceAddmm", "InplaceAddr"} <= names
    with pytest.raises(RuntimeError, match="dtype"):
        torch.randn(2, 2, dtype=torch.float64).npu().addmm_(*[torch.ones(2, 2, dtype=torch.float64).npu()] * 2)


@pytest.mark.parametrize("dtype", [*FLOATS, torch.int64], ids=str)
def test_scatter(dtype: torch.dtype) -> None:
    x, src = values(dtype), values(dtype)
    for dim in (0, 1, -1):
        index = torch.stack([torch.randperm(5) for _ in range(5)])
        with called() as names:
            got = x.npu().scatter_(dim, index.npu(), src.npu()), x.npu().scatter_(dim, index.npu(), 2)
        same(got, [x.clone().scatter_(dim, index, src), x.clone().scatter_(dim, index, 2)])
        assert {"InplaceScatter", "InplaceScatterValue"} <= names
    got = torch.zeros(5, 6, dtype=dtype, device="npu").t()
    same(got.scatter_(1, index.npu(), 3), torch.zeros(6, 5, dtype=dtype).scatter_(1, index, 3))


def test_scatter_reduce() -> None:
    x, src, index = torch.randn(6, 5), torch.randn(6, 5), torch.randint(0, 6, (6, 5))
    with called() as names:
        got = x.npu().scatter_reduce_(0, index.npu(), src.npu(), "sum")
    assert "InplaceScatterReduce" in names
    same(got, x.scatter_reduce(0, index, src, "sum"))


@pytest.mark.parametrize("dtype", [*FLOATS, torch.int64], ids=str)
def test_indices(dtype: torch.dtype) -> None:
    x, index = values(dtype), torch.tensor([0, 3, 4])
    for dim in (0, 1, -1):
        source = values(dtype).index_select(dim, torch.arange(3))
        with called() as names:
            got = [x.npu().index_copy_(dim, index.npu(), source.npu()), x.npu().index_fill_(dim, index.npu(), 2)]
        same(got, [x.index_copy(dim, index, source), x.index_fill(dim, index, 2)])
        assert {"InplaceIndexCopy", "InplaceIndexFill"} <= names


@pytest.mark.parametrize("accumulate", [False, True])
def test_put(accumulate: bool) -> None:
    x, index, source = torch.randn(6, 5), torch.tensor([3, 17, 29]), torch.randn(3)
    with called() as names:
        got = x.npu().put_(index.npu(), source.npu(), accumulate)
        same(x.npu().t().put_(index.npu(), source.npu(), accumulate), x.clone().t().put_(index, source, accumulate))
    assert "InplacePut" in names
    same(got, x.clone().put_(index, source, accumulate))


@pytest.mark.parametrize("dtype", [torch.float16, torch.int8], ids=str)
def test_scatter_update(dtype: torch.dtype) -> None:
    data, updates = values(dtype, -9, 9).expand(3, 6, 5).contiguous(), values(dtype).expand(2, 6, 5)[:, :2].contiguous()
    indices = torch.tensor([4, 1])
    expected = data.clone()
    expected[0, 4:6], expected[1, 1:3] = updates[0], updates[1]
    with called() as names:
        same(torch_npu.scatter_update(data.npu(), indices.npu(), updates.npu(), -2), expected)
        same(torch_npu.scatter_update_(data.npu(), indices.npu(), updates.npu(), 1), expected)
    assert "InplaceScatterUpdate" in names
    with pytest.raises(RuntimeError, match="axis"):
        torch_npu.scatter_update(data.npu(), indices.npu(), updates.npu(), -1)
    with pytest.raises(RuntimeError, match="indices"):
        torch_npu.scatter_update(data.npu(), indices.view(2, 1).npu(), updates.npu(), 1)


def test_what_cannot_be_cast_is_refused() -> None:
    whole = torch.ones(3, dtype=torch.int64, device="npu")
    with pytest.raises(RuntimeError, match="can't be cast"):
        whole.add_(0.5)


# What torch_npu does not come to on the usual chip: the bodies are called here.


def test_scatter_with_reductions() -> None:
    x, src, index = torch.randn(4, 5), torch.randn(3, 5), torch.randint(0, 4, (3, 5))
    for code, name in ((0, None), (1, "sum"), (2, "prod")):
        got = x.clone()
        operators()["InplaceScatter"].body(got, 0, index, src, code)
        expected = x.scatter(0, index, src) if name is None else x.scatter_reduce(0, index, src, name)
        torch.testing.assert_close(got, expected)
        got = x.clone()
        operators()["InplaceScatterValue"].body(got, 0, index, 2.0, code)
        twos = torch.full_like(src, 2.0)
        torch.testing.assert_close(
            got, x.scatter(0, index, twos) if name is None else x.scatter_reduce(0, index, twos, name)
        )
    with pytest.raises(Unsupported, match="reduction"):
        operators()["InplaceScatter"].body(x, 0, index, src, 3)


@pytest.mark.parametrize("include_self", [True, False])
def test_scatter_reduce_by_code(include_self: bool) -> None:
    x, src, index = torch.randn(4, 5), torch.randn(3, 5), torch.randint(0, 4, (3, 5))
    for code, name in ((1, "sum"), (2, "prod"), (3, "amax"), (4, "amin"), (5, "mean")):
        got = x.clone()
        operators()["InplaceScatterReduce"].body(got, 0, index, src, code, include_self)
        torch.testing.assert_close(got, x.scatter_reduce(0, index, src, name, include_self=include_self))
    with pytest.raises(Unsupported, match="reduction"):
        operators()["InplaceScatterReduce"].body(x, 0, index, src, 6, include_self)


def test_fill_at_indices_on_the_host() -> None:
    x = torch.randn(4, 5)
    got = x.clone()
    operators()["InplaceIndexFillTensor"].body(got, 1, (0, 3), 7.0)
    torch.testing.assert_close(got, x.index_fill(1, torch.tensor([0, 3]), 7.0))


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("DivMod", (torch.ones(2), torch.ones(2), 3, torch.ones(2))),
        ("InplaceDivMods", (torch.ones(2), 2, 3)),
        ("GeluV2", (torch.ones(2), 2, torch.ones(2))),
        ("GeluBackwardV2", (torch.ones(2), torch.ones(2), "sine", torch.ones(2))),
        ("ForeachRoundOffNumberV2", ((torch.ones(2),), 4, (torch.ones(2),))),
    ],
)
def test_unknown_modes_are_refused(name: str, arguments: tuple[Any, ...]) -> None:
    with pytest.raises(Unsupported, match=r"is not emulated .* supported"):
        operators()[name].body(*arguments)
