"""Softmax and its kin, forward and backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gallium.vnpu.registry import op, register
from gallium.vnpu.writing import into, write


@op("Softmax")
def softmax(self: Tensor, dim: int, out: Tensor) -> None:
    """Softmax over a dimension; computed in the output's type if that is wider."""
    into(torch.softmax, out, self, dim, dtype=out.dtype)


@op("LogSoftmax")
def log_softmax(self: Tensor, dim: int, out: Tensor) -> None:
    """Logarithm of the softmax; computed in the output's type if that is wider."""
    into(torch.log_softmax, out, self, dim, dtype=out.dtype)


def _backward(name: str, function: Callable[..., Any], keyword: str) -> None:
    def body(grad_output: Tensor, output: Tensor, dim: int, grad_input: Tensor) -> None:
        if grad_output.dtype != output.dtype or output.dtype != grad_input.dtype:
            # The forward ran in a wider type than its input.
            wide = torch.promote_types(grad_output.dtype, output.dtype)
            write(grad_input, function(grad_output.to(wide), output.to(wide), dim, wide))
        elif grad_input.data_ptr() == output.data_ptr():  # npu_attn_softmax_backward_
            write(grad_input, function(grad_output, output, dim, output.dtype))
        else:
            function(grad_output, output, dim, output.dtype, **{keyword: grad_input})

    register(name, body)


_backward("SoftmaxBackward", torch._softmax_backward_data, "grad_input")
_backward("LogSoftmaxBackward", torch._log_softmax_backward_data, "out")
