"""Arithmetic of two and three numbers."""

from __future__ import annotations

import torch
from torch import Tensor

from gallium.vnpu.ops._factories import (
    Function,
    Number,
    binary,
    binary_inplace,
    register_all,
    ternary,
    ternary_inplace,
    zero_dim,
)
from gallium.vnpu.refusals import Unsupported
from gallium.vnpu.registry import op, register
from gallium.vnpu.writing import into

# Names ending in s, Scalar or ScalarOther take a number as `other`; ScalarTensor and ScalarSelf as `self`.
BOTH: dict[str, Function] = {
    "Atan2": torch.atan2,
    "Div": torch.true_divide,
    "Divs": torch.true_divide,
    "FloorDivide": torch.floor_divide,
    "FloorDivides": torch.floor_divide,
    "FmodScalar": torch.fmod,
    "FmodTensor": torch.fmod,
    "Mul": torch.mul,
    "Muls": torch.mul,
    "PowTensorScalar": torch.pow,
    "PowTensorTensor": torch.pow,
    "RemainderTensorScalar": torch.remainder,
    "RemainderTensorTensor": torch.remainder,
    "XLogYScalarOther": torch.xlogy,
}
PLAIN: dict[str, Function] = {
    "Complex": torch.complex,
    "Gcd": torch.gcd,
    "LogAddExp": torch.logaddexp,
    "LogAddExp2": torch.logaddexp2,
    "Maximum": torch.maximum,
    "Minimum": torch.minimum,
    "Polar": torch.polar,
    "PowScalarTensor": torch.pow,
    "XLogYScalarSelf": torch.xlogy,
    "XLogYTensor": torch.xlogy,
}
ROUNDING = {0: None, 1: "trunc", 2: "floor"}

register_all(BOTH, binary)
register_all(BOTH, binary_inplace, prefix="Inplace")
register_all(PLAIN, binary)


@op("Add", "Adds")
def add(self: Tensor, other: Tensor | Number, alpha: Number, out: Tensor) -> None:
    """self + alpha * other."""
    into(torch.add, out, self, other, alpha=alpha)


@op("InplaceAdd", "InplaceAdds")
def add_inplace(self: Tensor, other: Tensor | Number, alpha: Number) -> None:
    """Add in place."""
    self.add_(other, alpha=alpha)


@op("AddV3")
def add_v3(self: Number, other: Tensor, alpha: Number, out: Tensor) -> None:
    """self + alpha * other for a number self."""
    into(torch.add, out, zero_dim(self), other, alpha=alpha)


@op("Sub", "Subs")
def sub(self: Tensor, other: Tensor | Number, alpha: Number, out: Tensor) -> None:
    """self - alpha * other."""
    into(torch.sub, out, self, other, alpha=alpha)


@op("InplaceSub", "InplaceSubs")
def sub_inplace(self: Tensor, other: Tensor | Number, alpha: Number) -> None:
    """Sub in place."""
    self.sub_(other, alpha=alpha)


@op("Rsub")
def rsub(self: Tensor, other: Tensor, alpha: Number, out: Tensor) -> None:
    """other - alpha * self."""
    into(torch.sub, out, other, self, alpha=alpha)


@op("Rsubs")
def rsubs(self: Tensor, other: Number, alpha: Number, out: Tensor) -> None:
    """Rsub for a number other."""
    into(torch.sub, out, zero_dim(other), self, alpha=alpha)


@op("RemainderScalarTensor")
def remainder_of_number(self: Number, other: Tensor, out: Tensor) -> None:
    """self modulo other, with the sign of other, for a number self."""
    into(torch.remainder, out, zero_dim(self), other)


@op("AddRelu")
def add_relu(self: Tensor, other: Tensor, alpha: Number, out: Tensor) -> None:
    """max(0, self + alpha * other)."""
    into(torch.add, out, self, other, alpha=alpha)
    out.relu_()


@op("InplaceAddRelu")
def add_relu_inplace(self: Tensor, other: Tensor, alpha: Number) -> None:
    """AddRelu in place."""
    self.add_(other, alpha=alpha).relu_()


def rounding(mode: int) -> str | None:
    """PyTorch's word for a rounding mode: 0 true division, 1 towards zero, 2 down (op-plugin, DivKernelNpuOpApi)."""
    if mode not in ROUNDING:
        raise Unsupported("mode", mode, "0 to 2")
    return ROUNDING[mode]


@op("DivMod", "DivMods")
def div_mod(self: Tensor, other: Tensor | Number, mode: int, out: Tensor) -> None:
    """self / other, rounded by mode."""
    into(torch.div, out, self, other, rounding_mode=rounding(mode))


@op("InplaceDivMod", "InplaceDivMods")
def div_mod_inplace(self: Tensor, other: Tensor | Number, mode: int) -> None:
    """DivMod in place."""
    into(torch.div, self, self, other, rounding_mode=rounding(mode))


@op("Addcmul")
def addcmul(self: Tensor, tensor1: Tensor, tensor2: Tensor, value: Number, out: Tensor) -> None:
    """self + value * tensor1 * tensor2."""
    into(torch.addcmul, out, self, tensor1, tensor2, value=value)


@op("InplaceAddcmul")
def addcmul_inplace(self: Tensor, tensor1: Tensor, tensor2: Tensor, value: Number) -> None:
    """Addcmul in place."""
    self.addcmul_(tensor1, tensor2, value=value)


@op("Addcdiv")
def addcdiv(self: Tensor, tensor1: Tensor, tensor2: Tensor, value: Number, out: Tensor) -> None:
    """self + value * tensor1 / tensor2."""
    into(torch.addcdiv, out, self, tensor1, tensor2, value=value)


@op("InplaceAddcdiv")
def addcdiv_inplace(self: Tensor, tensor1: Tensor, tensor2: Tensor, value: Number) -> None:
    """Addcdiv in place."""
    self.addcdiv_(tensor1, tensor2, value=value)


@op("Clamp", "ClampTensor")
def clamp(self: Tensor, low: Tensor | Number | None, high: Tensor | Number | None, out: Tensor) -> None:
    """self limited to low .. high; either may be missing."""
    into(torch.clamp, out, self, low, high)


for _name, _limit in (("ClampMax", torch.clamp_max), ("ClampMin", torch.clamp_min)):
    register(_name, binary(_limit))
    register(f"{_name}Tensor", binary(_limit))
    register(f"Inplace{_name}Tensor", binary_inplace(_limit))
register("InplaceClampMax", binary_inplace(torch.clamp_max))
for _name in ("Lerp", "Lerps"):
    register(_name, ternary(torch.lerp))
    register(f"Inplace{_name}", ternary_inplace(torch.lerp))
