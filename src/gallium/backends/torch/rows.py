"""Ops that work row by row: products, norms, rope, SwiGLU."""

from __future__ import annotations

import torch
from torch.nn import functional

from gallium.ops.handles import Linear, RopeSpec


def linear(x: torch.Tensor, w: Linear) -> torch.Tensor:
    """`x @ W.T + bias`, in the dtype of the weight (a router: float32)."""
    return functional.linear(x.to(w.data.dtype), w.data, w.bias)


def head_linear(x: torch.Tensor, w: Linear) -> torch.Tensor:
    """`[tokens, heads, in]` -> `[tokens, heads, out]`, in the dtype of the weight `[heads, out, in]`."""
    return torch.bmm(x.to(w.data.dtype).transpose(0, 1), w.data.transpose(1, 2)).transpose(0, 1)


def rms_norm(x: torch.Tensor, gain: torch.Tensor, eps: float) -> torch.Tensor:
    """`x / sqrt(mean(x^2) + eps) * gain`, computed in float32, in the dtype of x."""
    wide = x.float()
    mean_square = wide.square().mean(dim=-1, keepdim=True)
    return (wide / torch.sqrt(mean_square + eps) * gain).to(x.dtype)


def rope(x: torch.Tensor, table: torch.Tensor, spec: RopeSpec) -> torch.Tensor:
    """Rotate the first `spec.dim` of `[tokens, heads, width]` by a table `[2, tokens, 1, dim / 2]`, in float32."""
    cos, sin = table[0], table[1]
    turned, rest = x[..., : spec.dim].float(), x[..., spec.dim :]
    half = spec.dim // 2
    if spec.interleaved:
        first, second = turned[..., 0::2], turned[..., 1::2]
    else:
        first, second = turned[..., :half], turned[..., half:]
    pair = (first * cos - second * sin, second * cos + first * sin)
    turned = torch.stack(pair, dim=-1).flatten(-2) if spec.interleaved else torch.cat(pair, dim=-1)
    return torch.cat((turned.to(x.dtype), rest), dim=-1)


def swiglu(gate_up: torch.Tensor) -> torch.Tensor:
    """`gate * sigmoid(gate) * up`, in the dtype of the input."""
    gate, up = gate_up.chunk(2, dim=-1)
    return functional.silu(gate) * up
