"""Elementwise functions give what PyTorch's CPU gives, for all types, strides, offsets and sizes."""

from __future__ import annotations

import pytest
import torch
from tests.vnpu.elementwise import FLOATS, INTEGERS, agree, values

UNARY = {  # function of PyTorch, CANN's name, range of the input
    "abs": ("Abs", -3, 3),
    "acos": ("Acos", -1, 1),
    "acosh": ("Acosh", 1, 5),
    "angle": ("AngleV2", -3, 3),
    "asin": ("Asin", -1, 1),
    "asinh": ("Asinh", -3, 3),
    "atan": ("Atan", -3, 3),
    "atanh": ("Atanh", -0.9, 0.9),
    "ceil": ("Ceil", -3, 3),
    "cos": ("Cos", -3, 3),
    "cosh": ("Cosh", -3, 3),
    "erf": ("Erf", -2, 2),
    "erfc": ("Erfc", -2, 2),
    "erfinv": ("Erfinv", -0.9, 0.9),
    "exp": ("Exp", -3, 3),
    "exp2": ("Exp2", -3, 3),
    "expm1": ("Expm1", -3, 3),
    "floor": ("Floor", -3, 3),
    "frac": ("Frac", -3, 3),
    "isfinite": ("IsFinite", -3, 3),
    "isneginf": ("IsNegInf", -3, 3),
    "isposinf": ("IsPosInf", -3, 3),
    "log": ("Log", 0.1, 3),
    "log10": ("Log10", 0.1, 3),
    "log1p": ("Log1p", -0.9, 3),
    "log2": ("Log2", 0.1, 3),
    "logical_not": ("LogicalNot", -1, 1),
    "neg": ("Neg", -3, 3),
    "reciprocal": ("Reciprocal", 0.1, 3),
    "relu": ("Relu", -3, 3),
    "round": ("Round", -3, 3),
    "rsqrt": ("Rsqrt", 0.1, 3),
    "sigmoid": ("Sigmoid", -3, 3),
    "sign": ("Sign", -3, 3),
    "signbit": ("Signbit", -3, 3),
    "sin": ("Sin", -3, 3),
    "sinc": ("Sinc", -3, 3),
    "sinh": ("Sinh", -3, 3),
    "sqrt": ("Sqrt", 0, 3),
    "tan": ("Tan", -1, 1),
    "tanh": ("Tanh", -3, 3),
    "trunc": ("Trunc", -3, 3),
}


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("name", UNARY)
def test_unary(name: str, dtype: torch.dtype) -> None:
    calls, low, high = UNARY[name]
    agree(getattr(torch, name), values(dtype, low, high), calls=calls)


@pytest.mark.parametrize("dtype", [*INTEGERS, torch.bool], ids=str)
@pytest.mark.parametrize("name", ["sin", "sqrt", "tanh", "sigmoid"])
def test_functions_of_integers_are_floats(name: str, dtype: torch.dtype) -> None:
    agree(getattr(torch, name), values(dtype, 1, 3), calls=UNARY[name][0])


@pytest.mark.parametrize("dtype", [torch.complex64], ids=str)
@pytest.mark.parametrize("name", ["abs", "angle", "neg", "exp", "sin", "sqrt", "reciprocal"])
def test_functions_of_complex_numbers(name: str, dtype: torch.dtype) -> None:
    agree(getattr(torch, name), values(dtype), calls=UNARY[name][0])


def test_rounding_to_places() -> None:
    agree(torch.round, values(torch.float32, -300, 300), decimals=1, calls="RoundDecimals")
    agree(torch.round, values(torch.float32, -300, 300), decimals=-2, calls="RoundDecimals")


def test_numbers_in_place_of_none() -> None:
    x = values(torch.float32)
    x[0, 1], x[1, 1], x[2, 3] = float("nan"), float("inf"), float("-inf")
    agree(torch.nan_to_num, x, calls="NanToNum")
    agree(torch.nan_to_num, x, nan=1.0, posinf=2.0, neginf=-3.0, calls="NanToNum")
    assert torch.isfinite(x.npu()).cpu().equal(torch.isfinite(x))


BINARY = {  # function of PyTorch, CANN's names for a tensor and for a number as other
    "add": ("Add", "Adds"),
    "sub": ("Sub", "Subs"),
    "mul": ("Mul", "Muls"),
    "div": ("Div", "Divs"),
    "floor_divide": ("FloorDivide", "FloorDivides"),
    "fmod": ("FmodTensor", "FmodScalar"),
    "remainder": ("RemainderTensorTensor", "RemainderTensorScalar"),
    "pow": ("PowTensorTensor", "PowTensorScalar"),
    "eq": ("EqTensor", "EqScalar"),
    "ne": ("NeTensor", "NeScalar"),
    "lt": ("LtTensor", "LtScalar"),
    "le": ("LeTensor", "LeScalar"),
    "gt": ("GtTensor", "GtScalar"),
    "ge": ("GeTensor", "GeScalar"),
    "rsub": ("Rsub", "Rsubs"),
    "atan2": ("Atan2", None),
    "maximum": ("Maximum", None),
    "minimum": ("Minimum", None),
    "logaddexp": ("LogAddExp", None),
    "logaddexp2": ("LogAddExp2", None),
    "logical_and": ("LogicalAnd", None),
    "logical_or": ("LogicalOr", None),
    "logical_xor": ("LogicalXor", None),
    "xlogy": ("XLogYTensor", "XLogYScalarOther"),
}


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("name", BINARY)
def test_binary(name: str, dtype: torch.dtype) -> None:
    with_tensor, with_number = BINARY[name]
    x, y = values(dtype, 0.5, 3), values(dtype, 0.5, 3)
    x[1, :3] = y[1, :3]
    agree(getattr(torch, name), x, y, calls=with_tensor)
    if with_number is not None:
        agree(getattr(torch, name), x, 1.5, calls=with_number)


INTEGER_BINARY = ("add", "sub", "mul", "floor_divide", "fmod", "remainder", "eq", "lt", "ge", "maximum", "rsub", "div")


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
@pytest.mark.parametrize("name", INTEGER_BINARY)
def test_binary_of_integers(name: str, dtype: torch.dtype) -> None:
    with_tensor, with_number = BINARY[name]
    x, y = values(dtype, -9, 9), values(dtype, 1, 4)
    agree(getattr(torch, name), x, y, calls=with_tensor)
    if with_number is not None:
        agree(getattr(torch, name), x, 3, calls=with_number)


def test_types_are_promoted() -> None:
    whole, real = values(torch.int32, 1, 9), values(torch.float32, 0.5, 3)
    agree(torch.add, whole, real, calls="Add")
    agree(torch.mul, whole, real.half(), calls="Mul")
    agree(torch.add, whole, 0.5, calls="Adds")
    agree(torch.div, whole, whole, calls="Div")
    agree(torch.add, values(torch.bool), whole, calls="Add")
    agree(torch.lt, whole, 2.5, calls="LtScalar")
    agree(torch.mul, values(torch.complex64), 2.0, calls="Muls")
    agree(torch.add, values(torch.complex64), real, calls="Add")


def test_broadcasting() -> None:
    x, row, column = values(torch.float32), torch.randn(5), torch.randn(6, 1)
    for other in (row, column, torch.tensor(2.0), torch.randn(3, 1, 1)):
        torch.testing.assert_close((x.npu() * other.npu()).cpu(), x * other)
        torch.testing.assert_close((other.npu() - x.npu()).cpu(), other - x)


@pytest.mark.parametrize("alpha", [2, -1, 0])
def test_alpha(alpha: int) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.int64):
        x, y = values(dtype), values(dtype)
        for name in ("add", "sub", "rsub"):
            agree(getattr(torch, name), x, y, alpha=alpha, calls=BINARY[name][0])
            agree(getattr(torch, name), x, 3, alpha=alpha, calls=str(BINARY[name][1]))


def test_a_number_comes_first() -> None:
    x, whole = values(torch.float32, 0.5, 3), values(torch.int64, 1, 5)
    agree(lambda t: torch.tensor(2.5) + t, x, calls="AddV3")
    agree(lambda t: torch.add(torch.tensor(2.5), t, alpha=3), x, calls="AddV3")
    agree(lambda t: 7 % t, whole, calls="RemainderScalarTensor")
    agree(lambda t: torch.remainder(-7.5, t), x, calls="RemainderScalarTensor")
    agree(lambda t: torch.pow(2.5, t), x, calls="PowScalarTensor")
    agree(lambda t: torch.xlogy(2.5, t), x, calls="XLogYScalarSelf")
    agree(lambda t: torch.ge(torch.tensor(2), t), whole, calls="LessScalar")
    agree(lambda t: 2.5 - t, x, calls="Rsubs")
    agree(lambda t: 3 - t, whole, calls="Rsubs")


@pytest.mark.parametrize("rounding", [None, "trunc", "floor"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int32, torch.int64], ids=str)
def test_division_rounds(dtype: torch.dtype, rounding: str | None) -> None:
    x, y = values(dtype, -9, 9), values(dtype, 1, 4)
    agree(torch.div, x, y, rounding_mode=rounding, calls="DivMod")
    agree(torch.div, x, 2, rounding_mode=rounding, calls="DivMods")


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_three_operands(dtype: torch.dtype) -> None:
    x, y, z = values(dtype), values(dtype), values(dtype, 1, 2)
    agree(torch.addcmul, x, y, z, value=0.5, calls="Addcmul")
    agree(torch.addcdiv, x, y, z, value=0.5, calls="Addcdiv")
    agree(torch.lerp, x, y, z, calls="Lerp")
    agree(torch.lerp, x, y, 0.25, calls="Lerps")
    agree(torch.clamp, x, -1, 1, calls="Clamp")
    agree(torch.clamp, x, -y.abs(), y.abs(), calls="ClampTensor")
    agree(torch.clamp, x, min=-1, calls="Clamp")
    agree(torch.clamp, x, max=1, calls="Clamp")
    agree(torch.clamp_min, x, -1, calls="ClampMin")
    agree(torch.clamp_max, x, 1, calls="ClampMax")
    agree(lambda a, b: torch.clamp(a, min=b), x, y, calls="ClampTensor")
    agree(torch.clamp_min, x, y, calls="ClampMinTensor")
    agree(torch.clamp_max, x, y, calls="ClampMaxTensor")


@pytest.mark.parametrize("dtype", [*INTEGERS, torch.bool], ids=str)
def test_bits(dtype: torch.dtype) -> None:
    x, y = values(dtype, -9, 9), values(dtype, 0, 9)
    agree(torch.bitwise_not, x, calls="BitwiseNot")
    for name, calls in (("and", "BitwiseAnd"), ("or", "BitwiseOr"), ("xor", "BitwiseXor")):
        agree(getattr(torch, f"bitwise_{name}"), x, y, calls=f"{calls}Tensor")
        agree(getattr(torch, f"bitwise_{name}"), x, 5 if dtype != torch.bool else True, calls=f"{calls}Scalar")


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.uint8], ids=str)
def test_shifts(dtype: torch.dtype) -> None:
    x, y = values(dtype, 0, 9), values(dtype, 0, 3)
    agree(lambda a, b: a << b, x, y, calls="LeftShift")
    agree(lambda a: a << 2, x, calls="LeftShifts")
    agree(lambda a, b: a >> b, x, y, calls="RightShift")


def test_gcd_complex_polar() -> None:
    agree(torch.gcd, values(torch.int32, 1, 30), values(torch.int32, 1, 30), calls="Gcd")
    agree(torch.complex, values(torch.float32), values(torch.float32), calls="Complex")
    agree(torch.polar, values(torch.float32, 0, 3), values(torch.float32), calls="Polar")


@pytest.mark.parametrize("invert", [False, True])
def test_membership(invert: bool) -> None:
    x = values(torch.int64, 0, 9)
    agree(torch.isin, x, 4, invert=invert, calls="IsInTensorScalar")
    got = torch.isin(4, x.npu(), invert=invert)
    assert got.cpu() == torch.isin(4, x, invert=invert)


def test_outputs_that_are_given() -> None:
    x, y = values(torch.float32), values(torch.float32)
    out = torch.zeros(12, 5, device="npu")[::2]
    torch.add(x.npu(), y.npu(), alpha=2, out=out)
    torch.testing.assert_close(out.cpu(), x + 2 * y)
    half = torch.zeros(6, 5, dtype=torch.float16, device="npu")
    torch.mul(x.npu(), y.npu(), out=half)
    torch.testing.assert_close(half.cpu(), (x * y).half())
