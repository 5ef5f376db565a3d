"""Functions of one number: roots, exponentials, logarithms, trigonometry, rounding."""

from __future__ import annotations

import torch
from torch import Tensor

from gallium.vnpu.ops._factories import register_all, unary, unary_inplace, unary_written
from gallium.vnpu.registry import op
from gallium.vnpu.writing import into

BOTH = {  # as X(self, out) and as InplaceX(self)
    "Acos": torch.acos,
    "Acosh": torch.acosh,
    "Asin": torch.asin,
    "Asinh": torch.asinh,
    "Atan": torch.atan,
    "Atanh": torch.atanh,
    "Ceil": torch.ceil,
    "Cos": torch.cos,
    "Cosh": torch.cosh,
    "Erf": torch.erf,
    "Erfc": torch.erfc,
    "Erfinv": torch.erfinv,
    "Exp": torch.exp,
    "Exp2": torch.exp2,
    "Expm1": torch.expm1,
    "Floor": torch.floor,
    "Frac": torch.frac,
    "Log": torch.log,
    "Log10": torch.log10,
    "Log1p": torch.log1p,
    "Log2": torch.log2,
    "LogicalNot": torch.logical_not,
    "Reciprocal": torch.reciprocal,
    "Rsqrt": torch.rsqrt,
    "Sigmoid": torch.sigmoid,
    "Sin": torch.sin,
    "Sinc": torch.sinc,
    "Sinh": torch.sinh,
    "Sqrt": torch.sqrt,
    "Tan": torch.tan,
    "Tanh": torch.tanh,
}
PLAIN = {
    "Abs": torch.abs,
    "AngleV2": torch.angle,
    "BitwiseNot": torch.bitwise_not,
    "IsNegInf": torch.isneginf,
    "IsPosInf": torch.isposinf,
    "Neg": torch.neg,
    "Round": torch.round,
    "Sign": torch.sgn,  # for complex numbers too; the same as torch.sign for real ones
    "Signbit": torch.signbit,
    "Trunc": torch.trunc,
}

register_all(BOTH, unary)
register_all(BOTH, unary_inplace, prefix="Inplace")
register_all(PLAIN, unary)
register_all({"IsFinite": torch.isfinite}, unary_written)


@op("RoundDecimals")
def round_decimals(self: Tensor, decimals: int, out: Tensor) -> None:
    """Round to so many digits after the point; halves to even."""
    into(torch.round, out, self, decimals=decimals)


@op("InplaceRoundDecimals")
def round_decimals_inplace(self: Tensor, decimals: int) -> None:
    """RoundDecimals in place."""
    self.round_(decimals=decimals)


@op("NanToNum")
def nan_to_num(self: Tensor, nan: float, posinf: float, neginf: float, out: Tensor) -> None:
    """Numbers in place of what is none."""
    into(torch.nan_to_num, out, self, nan, posinf, neginf)


@op("InplaceNanToNum")
def nan_to_num_inplace(self: Tensor, nan: float, posinf: float, neginf: float) -> None:
    """NanToNum in place."""
    self.nan_to_num_(nan, posinf, neginf)
