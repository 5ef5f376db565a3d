"""Bits of integers, and logic of bools."""

from __future__ import annotations

import torch

from gallium.vnpu.ops._factories import binary, binary_inplace, register_all

BOTH = {
    "BitwiseAndScalar": torch.bitwise_and,
    "BitwiseAndTensor": torch.bitwise_and,
    "BitwiseXorScalar": torch.bitwise_xor,
    "BitwiseXorTensor": torch.bitwise_xor,
}
PLAIN = {
    "BitwiseOrScalar": torch.bitwise_or,
    "BitwiseOrTensor": torch.bitwise_or,
    "LeftShift": torch.bitwise_left_shift,
    "LeftShifts": torch.bitwise_left_shift,
    "RightShift": torch.bitwise_right_shift,
}

register_all(BOTH, binary)
register_all(BOTH, binary_inplace, prefix="Inplace")
register_all(PLAIN, binary)
