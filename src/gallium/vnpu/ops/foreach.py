"""Operators on lists of tensors, as optimisers use them.

torch_npu gives the inputs as outputs for the variants that change them; then PyTorch's own multi-tensor functions are
used. Otherwise each tensor goes straight into its output, without a copy between.
"""

from __future__ import annotations

from operator import is_
from typing import Any

import torch
from torch import Tensor

from gallium.vnpu.ops._factories import Function, Number
from gallium.vnpu.registry import Body, Unsupported, op, register
from gallium.vnpu.writing import into

Tensors = tuple[Tensor, ...]
Numbers = tuple[Number, ...]

UNARY = (
    "Abs Acos Asin Atan Cos Cosh Erf Erfc Exp Expm1 Log Log10 Log1p Log2 Neg Reciprocal Sigmoid Sign Sin Sinh Sqrt Tan "
    "Tanh"
)
# The function for two tensors, and that for a tensor and a number.
BINARY: dict[str, tuple[Function, Function]] = {
    "Add": (torch.add, torch.add),
    "Div": (torch.div, torch.div),
    "Maximum": (torch.maximum, torch.clamp_min),
    "Minimum": (torch.minimum, torch.clamp_max),
    "Mul": (torch.mul, torch.mul),
    "Pow": (torch.pow, torch.pow),
    "Sub": (torch.sub, torch.sub),
}
WITH_ALPHA = ("Add", "Sub")
ROUND_MODES = {1: "round", 2: "floor", 3: "ceil", 5: "trunc", 7: "frac"}


def each(inplace: Function, single: Function, out: Tensors, first: Tensors, *others: Any, **keywords: Any) -> None:
    """out = function(first, *others) for each tensor; of an other that is a tuple, each takes its own element."""
    if all(map(is_, first, out)):
        inplace(first, *others, **keywords)
        return
    columns = [other if isinstance(other, tuple) else (other,) * len(out) for other in others]
    for target, *args in zip(out, first, *columns, strict=True):
        into(single, target, *args, **keywords)


def inplace_of(name: str) -> Function:
    """PyTorch's multi-tensor function in place."""
    function: Function = getattr(torch, f"_foreach_{name.lower()}_")
    return function


def _unary(name: str) -> Body:
    inplace, single = inplace_of(name), getattr(torch, name.lower())

    def body(tensors: Tensors, out: Tensors) -> None:
        each(inplace, single, out, tensors)

    return body


def _with_list(name: str) -> Body:
    """(tensors, tensors or numbers, out)."""
    inplace = inplace_of(name)
    with_tensor, with_number = BINARY[name]

    def body(tensors: Tensors, others: Tensors | Numbers, out: Tensors) -> None:
        single = with_tensor if isinstance(others[0], Tensor) else with_number
        each(inplace, single, out, tensors, others)

    return body


def _with_number(name: str) -> Body:
    """(tensors, number, out); the older variant passes the number in a tensor."""
    inplace, single = inplace_of(name), BINARY[name][1]

    def body(tensors: Tensors, number: Number | Tensor, out: Tensors) -> None:
        each(inplace, single, out, tensors, value_of(number))

    return body


def _with_alpha(name: str) -> Body:
    """(tensors, tensors, alpha, out)."""
    inplace, single = inplace_of(name), BINARY[name][0]

    def body(tensors: Tensors, others: Tensors, alpha: Number | Tensor, out: Tensors) -> None:
        each(inplace, single, out, tensors, others, alpha=value_of(alpha))

    return body


def _with_value(name: str) -> Body:
    """(tensors, tensors, tensors, value, out)."""
    inplace, single = inplace_of(name), getattr(torch, name.lower())

    def body(tensors: Tensors, first: Tensors, second: Tensors, value: Number | Tensor, out: Tensors) -> None:
        each(inplace, single, out, tensors, first, second, value=value_of(value))

    return body


def _with_values(name: str) -> Body:
    """(tensors, tensors, tensors, a tensor of values, out)."""
    inplace, single = inplace_of(name), getattr(torch, name.lower())

    def body(tensors: Tensors, first: Tensors, second: Tensors, values: Tensor, out: Tensors) -> None:
        numbers = values.tolist()
        if all(map(is_, tensors, out)):
            inplace(tensors, first, second, numbers)
            return
        for target, x, a, b, number in zip(out, tensors, first, second, numbers, strict=True):
            into(single, target, x, a, b, value=number)

    return body


def value_of(number: Number | Tensor) -> Number:
    """The number itself, or the one in a tensor."""
    return number.item() if isinstance(number, Tensor) else number


def _register() -> None:
    for name in UNARY.split():
        register(f"Foreach{name}", _unary(name))
    for name in BINARY:
        register(f"Foreach{name}Scalar", _with_number(name))
        register(f"Foreach{name}ScalarV2", _with_number(name))
        register(f"Foreach{name}ScalarList", _with_list(name))
        if name not in WITH_ALPHA:
            register(f"Foreach{name}List", _with_list(name))
            continue
        register(f"Foreach{name}List", _with_alpha(name))
        register(f"Foreach{name}ListV2", _with_alpha(name))
    for name in ("Addcdiv", "Addcmul"):
        register(f"Foreach{name}Scalar", _with_value(name))
        register(f"Foreach{name}ScalarV2", _with_value(name))
        register(f"Foreach{name}ScalarList", _with_values(name))


_register()


@op("ForeachLerpList", "ForeachLerpScalar")
def lerp(tensors: Tensors, ends: Tensors, weight: Tensors | Number, out: Tensors) -> None:
    """tensors + weight * (ends - tensors)."""
    each(torch._foreach_lerp_, torch.lerp, out, tensors, ends, weight)


@op("ForeachPowScalarAndTensor")
def pow_of_number(number: Number, exponents: Tensors, out: Tensors) -> None:
    """number ** exponents."""
    for target, exponent in zip(out, exponents, strict=True):
        into(torch.pow, target, number, exponent)


@op("ForeachRoundOffNumber", "ForeachRoundOffNumberV2")
def round_off(tensors: Tensors, mode: int | Tensor, out: Tensors) -> None:
    """Round: 1 to even, 2 down, 3 up, 5 to zero; 7 leaves the fraction (op-plugin, ForeachRoundOffNumberKernel...)."""
    number = int(value_of(mode))  # type: ignore[arg-type]
    if number not in ROUND_MODES:
        raise Unsupported("round_mode", number, ", ".join(map(str, ROUND_MODES)))
    name = ROUND_MODES[number]
    each(inplace_of(name), getattr(torch, name), out, tensors)


@op("ForeachNorm")
def norm(tensors: Tensors, order: Number, out: Tensors) -> None:
    """The norm of each tensor, in the type of its output."""
    for target, x in zip(out, tensors, strict=True):
        into(torch.linalg.vector_norm, target, x, order, dtype=target.dtype)


@op("ForeachCopy")
def copy(source: Tensors, out: Tensors) -> None:
    """out = source, cast."""
    torch._foreach_copy_(out, source)


@op("ForeachZeroInplace")
def zero(tensors: Tensors) -> None:
    """tensors = 0."""
    torch._foreach_zero_(tensors)


@op("ForeachNonFiniteCheckAndUnscale")
def check_and_unscale(grads: Tensors, found_inf: Tensor, inv_scale: Tensor) -> None:
    """grads *= inv_scale; found_inf becomes 1 if a gradient is not finite."""
    torch._amp_foreach_non_finite_check_and_unscale_(grads, found_inf, inv_scale)
