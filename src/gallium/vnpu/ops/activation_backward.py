"""Gradients of activation functions: PyTorch's own formulas, written into the output."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gallium.vnpu.ops._factories import Function, binary, register_all

aten = torch.ops.aten


def _to_out(overload: Any) -> Function:
    """An overload whose output is called grad_input, with the usual name."""

    def function(*args: Any, out: Tensor, **keywords: Any) -> None:
        overload(*args, grad_input=out, **keywords)

    return function


register_all(
    {  # (grad_output, self or output, grad_input)
        "HardsigmoidBackward": _to_out(aten.hardsigmoid_backward.grad_input),
        "SigmoidBackward": _to_out(aten.sigmoid_backward.grad_input),
        "SiluBackward": _to_out(aten.silu_backward.grad_input),
        "TanhBackward": _to_out(aten.tanh_backward.grad_input),
    },
    binary,
)
