"""Operators on lists of tensors, new and in place, by torch._foreach_*."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.vnpu.elementwise import FLOATS, npu, same
from tests.vnpu.support import called
from torch import Tensor

from gallium.vnpu.registry import operators

RANGES = {"acos": (-1, 1), "asin": (-1, 1), "tan": (-1, 1)} | dict.fromkeys(
    ("log", "log10", "log1p", "log2", "reciprocal", "sqrt"), (0.1, 3)
)
UNARY = (
    "abs acos asin atan cos cosh erf erfc exp expm1 log log10 log1p log2 neg reciprocal sigmoid sign sin sinh sqrt tan "
    "tanh"
)
SIZES = ((3, 4), (), (7,), (0, 2), (2, 1, 5))


def tensors(dtype: torch.dtype, low: float = -3, high: float = 3) -> list[Tensor]:
    """Tensors of several shapes; the last is transposed. (For lists with gaps torch_npu goes through them itself.)"""
    made = [(torch.rand(size) * (high - low) + low).to(dtype) for size in SIZES]
    return [*made, (torch.rand(3, 4) * (high - low) + low).to(dtype).t()]


def transposed(x: list[Tensor]) -> list[Tensor]:
    """The list on the NPU, the last tensor transposed there too."""
    return [*npu(x[:-1]), x[-1].t().npu().t()]


def check(name: str, calls: str, first: list[Tensor], *others: Any, **keywords: Any) -> None:
    """The function and its in-place form agree with the CPU's."""
    on_npu = [transposed(x) if isinstance(x, list) and isinstance(x[0], Tensor) else x for x in others]
    with called() as names:
        same(
            getattr(torch, name)(transposed(first), *on_npu, **keywords),
            getattr(torch, name)(first, *others, **keywords),
        )
    assert calls in names
    got, expected = transposed(first), [x.clone() for x in first]
    with called() as names:
        getattr(torch, f"{name}_")(got, *on_npu, **keywords)
    assert calls in names
    getattr(torch, f"{name}_")(expected, *others, **keywords)
    same(got, expected)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("name", UNARY.split())
def test_unary(name: str, dtype: torch.dtype) -> None:
    check(f"_foreach_{name}", f"Foreach{name.capitalize()}", tensors(dtype, *RANGES.get(name, (-3, 3))))


BINARY = ("add", "sub", "mul", "div", "maximum", "minimum", "pow")


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("name", BINARY)
def test_binary(name: str, dtype: torch.dtype) -> None:
    x, y = tensors(dtype, 0.5, 3), tensors(dtype, 0.5, 3)
    calls = f"Foreach{name.capitalize()}"
    with_alpha = name in ("add", "sub")
    check(f"_foreach_{name}", f"{calls}List{'V2' if with_alpha else ''}", x, y)
    check(f"_foreach_{name}", f"{calls}ScalarV2", x, 1.5)
    check(f"_foreach_{name}", f"{calls}ScalarList", x, [0.5 + i for i in range(len(x))])
    if with_alpha:
        check(f"_foreach_{name}", f"{calls}ListV2", x, y, alpha=-2)


def test_integers() -> None:
    whole = [torch.randint(-9, 9, (3, 4), dtype=torch.int32), torch.randint(-9, 9, (5,), dtype=torch.int32)]
    same(torch._foreach_add(npu(whole), 3), torch._foreach_add(whole, 3))
    same(torch._foreach_mul(npu(whole), npu(whole)), torch._foreach_mul(whole, whole))
    same(torch._foreach_maximum(npu(whole), 2), torch._foreach_maximum(whole, 2))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("name", ["addcdiv", "addcmul"])
def test_three_lists(name: str, dtype: torch.dtype) -> None:
    x, y, z = tensors(dtype), tensors(dtype), tensors(dtype, 1, 2)
    calls = f"Foreach{name.capitalize()}"
    check(f"_foreach_{name}", f"{calls}ScalarV2", x, y, z, 0.5)
    check(f"_foreach_{name}", f"{calls}ScalarList", x, y, z, torch.arange(1.0, len(x) + 1))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_lerp(dtype: torch.dtype) -> None:
    x, y = tensors(dtype), tensors(dtype)
    check("_foreach_lerp", "ForeachLerpScalar", x, y, 0.25)
    check("_foreach_lerp", "ForeachLerpList", x, y, tensors(dtype, 0, 1))


def test_pow_of_a_number() -> None:
    x = tensors(torch.float32)
    with called() as names:
        same(torch._foreach_pow(2.5, transposed(x)), torch._foreach_pow(2.5, x))
    assert "ForeachPowScalarAndTensor" in names


@pytest.mark.parametrize("name", ["floor", "ceil", "round", "trunc", "frac"])
def test_rounding(name: str) -> None:
    for dtype in FLOATS:
        check(f"_foreach_{name}", "ForeachRoundOffNumberV2", tensors(dtype))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("order", [1, 2])
def test_norm(order: int, dtype: torch.dtype) -> None:
    x = tensors(dtype)
    with called() as names:
        same(torch._foreach_norm(transposed(x), order), torch._foreach_norm(x, order))
    assert "ForeachNorm" in names


def test_norm_in_another_type() -> None:
    x = tensors(torch.bfloat16)
    same(torch._foreach_norm(transposed(x), 2, dtype=torch.float32), torch._foreach_norm(x, 2, dtype=torch.float32))


def test_copy_and_zero() -> None:
    x, target = tensors(torch.float32), transposed(tensors(torch.float32))
    with called() as names:
        torch._foreach_copy_(target, transposed(x))
    assert "ForeachCopy" in names
    same(target, x)
    with called() as names:
        torch._foreach_zero_(target)
    assert "ForeachZeroInplace" in names
    same(target, [torch.zeros_like(t) for t in x])


def test_many_tensors() -> None:
    x = [torch.randn(3) for _ in range(130)]  # torch_npu cuts the list
    same(torch._foreach_mul(npu(x), 2.0), torch._foreach_mul(x, 2.0))
    same(torch._foreach_add(npu(x), npu(x), alpha=3), torch._foreach_add(x, x, alpha=3))


@pytest.mark.parametrize("bad", [None, float("inf"), float("nan")])
def test_gradient_scaling(bad: float | None) -> None:
    grads, found, scale = tensors(torch.float32), torch.zeros(1), torch.tensor([0.5])
    if bad is not None:
        grads[2][1] = bad
    got, got_found = transposed(grads), found.npu()
    with called() as names:
        torch._amp_foreach_non_finite_check_and_unscale_(got, got_found, scale.npu())
    assert "ForeachNonFiniteCheckAndUnscale" in names
    torch._amp_foreach_non_finite_check_and_unscale_(grads, found, scale)
    same(got, grads)
    assert got_found.item() == found.item() == (bad is not None)


# torch_npu prefers the variants above and calls these only where a CANN lacks them, so their bodies are called here.
OLDER = {
    "ForeachAddScalar": torch.add,
    "ForeachSubScalar": torch.sub,
    "ForeachMulScalar": torch.mul,
    "ForeachDivScalar": torch.div,
    "ForeachPowScalar": torch.pow,
    "ForeachMaximumScalar": torch.maximum,
    "ForeachMinimumScalar": torch.minimum,
}


@pytest.mark.parametrize("name", OLDER)
def test_older_variants_with_a_number_in_a_tensor(name: str) -> None:
    x, number = tensors(torch.float32, 0.5, 3), torch.tensor(1.5)
    out = [torch.empty_like(t) for t in x]
    operators()[name].body(tuple(x), number, tuple(out))
    torch.testing.assert_close(out, [OLDER[name](t, number) for t in x])


def test_older_variants_with_more_operands() -> None:
    x, y, z, number = tensors(torch.float32), tensors(torch.float32), tensors(torch.float32, 1, 2), torch.tensor([0.5])
    for name, function in (("ForeachAddList", torch.add), ("ForeachSubList", torch.sub)):
        out = [torch.empty_like(t) for t in x]
        operators()[name].body(tuple(x), tuple(y), number, tuple(out))
        torch.testing.assert_close(out, [function(a, b, alpha=0.5) for a, b in zip(x, y, strict=True)])
    for name, three in (("ForeachAddcmulScalar", torch.addcmul), ("ForeachAddcdivScalar", torch.addcdiv)):
        out = [torch.empty_like(t) for t in x]
        operators()[name].body(tuple(x), tuple(y), tuple(z), number, tuple(out))
        torch.testing.assert_close(out, [three(a, b, c, value=0.5) for a, b, c in zip(x, y, z, strict=True)])
    out = [torch.empty_like(t) for t in x]
    operators()["ForeachRoundOffNumber"].body(tuple(x), torch.tensor([3], dtype=torch.int8), tuple(out))
    torch.testing.assert_close(out, [t.ceil() for t in x])
