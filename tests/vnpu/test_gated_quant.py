"""Gated activations around quantisation, and the feed-forward operator, against op-plugin's formulas in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as nn
import torch_npu
from tests.vnpu.support import called
from torch import Tensor


def off_by_one_at_ties(actual: Tensor, expected: Tensor) -> None:
    """Equal but for a few values that lie so near to a tie that the last bit of the value decides."""
    difference = (actual.cpu().double() - expected.round().clamp(-128, 127)).abs()
    assert difference.max() <= 1
    assert (difference > 0).double().mean() < 0.01


def near(actual: Tensor, expected: Tensor, limit: float = 1e-5) -> None:
    torch.testing.assert_close(actual.cpu().double(), expected.double(), rtol=limit, atol=limit)


def swiglu(x: Tensor, left: bool) -> Tensor:
    first, second = x.double().chunk(2, -1)
    gate, up = (first, second) if left else (second, first)
    return nn.silu(gate) * up


def npu(**arguments: Any) -> dict[str, Any]:
    return {name: value.npu() if isinstance(value, Tensor) else value for name, value in arguments.items()}


COUNTS = [2, 0, 3]
ENDS = [2, 2, 5]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("left", [True, False])
@pytest.mark.parametrize("int4", [False, True])
@pytest.mark.parametrize("dynamic", [True, False])
@pytest.mark.parametrize("list_type", [None, 0, 1])
def test_swiglu_quant(list_type: int | None, dynamic: bool, int4: bool, left: bool, dtype: torch.dtype) -> None:
    x = torch.randn(6, 32).to(dtype)
    groups = 1 if list_type is None else 3
    smooth, offsets = torch.rand(groups, 16) * (1 if dynamic else 20), torch.randint(-5, 5, (groups, 16)).float()
    index = None if list_type is None else torch.tensor([ENDS, COUNTS][list_type], dtype=torch.int32)
    with called() as names:
        y, scale = torch_npu.npu_swiglu_quant(
            **npu(x=x, smooth_scales=smooth, offsets=offsets, group_index=index),
            activate_left=left,
            quant_mode=int(dynamic),
            group_list_type=list_type or 0,
            dst_type=torch.quint4x2 if int4 else None,
        )
    assert "SwiGluQuantV2" in names
    limit = 7 if int4 else 127
    values = swiglu(x, left)
    bounds = [(0, 0, 6)] if list_type is None else [(0, 0, 2), (2, 2, 5)]
    y = int4_of(y) if int4 else y.cpu()
    for group, start, end in bounds:
        part = values[start:end] * smooth[group].double()
        if dynamic:
            factor = limit / part.abs().amax(-1)
            near(scale[start:end], factor, 1e-4)
            off_by_one_at_ties(y[start:end], part * factor[:, None])
        else:
            off_by_one_at_ties(y[start:end], (part + offsets[group]).clamp(-limit - 1, limit))


def int4_of(bytes_: Tensor) -> Tensor:
    nibbles = (bytes_.cpu().int()[..., None] >> torch.tensor([0, 4])) & 0xF
    return torch.where(nibbles > 7, nibbles - 16, nibbles).flatten(-2)


def clipped(gate: Tensor, up: Tensor, limit: float, alpha: float, bias: float) -> Tensor:
    gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    return gate * torch.sigmoid(alpha * gate) * (up + bias)


@pytest.mark.parametrize("mode", [0, 1, 2])
@pytest.mark.parametrize("left", [True, False])
@pytest.mark.parametrize("dynamic", [True, False])
@pytest.mark.parametrize("grouped", [True, False])
def test_dequant_swiglu_quant(grouped: bool, dynamic: bool, left: bool, mode: int) -> None:
    tokens, width, groups = 6, 64, 3 if grouped else 1
    x = torch.randint(-500, 500, (tokens, 2 * width), dtype=torch.int32)
    weight_scale, activation_scale = torch.rand(groups, 2 * width) * 0.05, torch.rand(tokens, 1)
    quant_scale = torch.rand(groups, width) * (1 if dynamic else 0.1) + 0.1
    more = {} if grouped else {"bias": torch.randint(-99, 99, (2 * width,), dtype=torch.int32)}
    if not grouped and not dynamic:
        more["quant_offset"] = torch.randn(1, width)
    settings = {"clamp_limit": 3.0, "glu_alpha": 1.5, "glu_bias": 0.5}
    arguments = npu(x=x, weight_scale=weight_scale, activation_scale=activation_scale, quant_scale=quant_scale, **more)
    index = torch.tensor(COUNTS) if grouped else None
    with called() as names:
        y, scale = torch_npu.npu_dequant_swiglu_quant(
            **arguments,
            group_index=None if index is None else index.npu(),
            activate_left=left,
            quant_mode=int(dynamic),
            swiglu_mode=mode,
            **settings,
        )
    assert "DequantSwigluQuantV2" in names
    for group, start, end in [(0, 0, 2), (2, 2, 5)] if grouped else [(0, 0, 6)]:
        part = (x[start:end] + more.get("bias", 0)).double() * weight_scale[group] * activation_scale[start:end]
        first, second = part.chunk(2, -1)
        gate, up = (first, second) if left else (second, first)
        if mode == 0:
            values = nn.silu(gate) * up
        elif mode == 1:
            values = clipped(part[:, ::2], part[:, 1::2], *settings.values())
        else:
            values = clipped(gate, up, *settings.values())
        if dynamic:
            values = values * quant_scale[group]
            expected = values.abs().amax(-1) / 127
            near(scale[start:end], expected, 1e-4)
            off_by_one_at_ties(y[start:end], values / expected[:, None])
        else:
            off_by_one_at_ties(y[start:end], values / quant_scale[group] + more.get("quant_offset", 0))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_dequant_swiglu_quant_of_floats(dtype: torch.dtype) -> None:
    x = torch.randn(4, 32).to(dtype)
    y, scale = torch_npu.npu_dequant_swiglu_quant(x.npu(), activate_left=True, quant_mode=1)
    values = swiglu(x, True)
    expected = values.abs().amax(-1) / 127
    near(scale, expected)
    off_by_one_at_ties(y, values / expected[:, None])


def _dequant(**changes: Any) -> object:
    arguments = {"x": torch.ones(4, 128, dtype=torch.int32), "weight_scale": torch.ones(1, 128)}
    return torch_npu.npu_dequant_swiglu_quant(**npu(**(arguments | changes)))


@pytest.mark.parametrize(
    ("call", "complaint"),
    [
        (lambda: _dequant(x=torch.ones(4, 128).half()), "weight_scale"),
        (lambda: _dequant(x=torch.ones(4, 128)), "dtype of x"),
        (lambda: _dequant(x=torch.ones(2, 4, 128).int()), "number of dimensions of x"),
        (lambda: _dequant(bias=torch.ones(128).int(), group_index=torch.tensor([4])), "bias"),
        (lambda: _dequant(quant_offset=torch.ones(1, 64), group_index=torch.tensor([4])), "quant_offset"),
        (lambda: _dequant(group_index=torch.tensor([4]), x=torch.ones(4, 100).int()), "half of the last dimension"),
        (lambda: _dequant(group_index=torch.tensor([5])), "group_list"),
        (lambda: _dequant(quant_scale=torch.ones(1, 64).half()), "dtype of quant_scale"),
        (lambda: _swiglu_quant(smooth_scales=torch.ones(1, 16).half()), "dtype of smooth_scales"),
        (lambda: _swiglu_quant(x=torch.ones(32)), "shape of x"),
    ],
)
def test_refusals(call: Callable[[], object], complaint: str) -> None:
    with pytest.raises(RuntimeError, match=complaint):
        call()


def _swiglu_quant(**changes: Any) -> object:
    arguments = {"x": torch.ones(4, 32), "smooth_scales": torch.ones(1, 16)}
    return torch_npu.npu_swiglu_quant(**npu(**(arguments | changes)), quant_mode=1)


ACTIVATIONS = {
    "gelu": nn.gelu,
    "fastgelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": nn.relu,
    "silu": nn.silu,
}
HALVES = {torch.float16: 4e-3, torch.bfloat16: 3e-2}


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("tokens", [None, "counts", "ends"])
def test_ffn(tokens: str | None, activation: str, dtype: torch.dtype) -> None:
    experts = () if tokens is None else (3,)
    x = torch.randn(5, 8).to(dtype)
    weights = [(torch.randn(*experts, *s) / 4).to(dtype) for s in ((8, 16), (16, 8))]
    bias_type = torch.float16 if dtype == torch.float16 else torch.float32
    biases = [torch.randn(*experts, n).to(bias_type) for n in (16, 8)]
    more = {} if tokens is None else {"expert_tokens" if tokens == "counts" else "expert_tokens_index": None}
    for name in more:
        more[name] = COUNTS if tokens == "counts" else ENDS
    with called() as names:
        y = torch_npu.npu_ffn(
            x.npu(), *[w.npu() for w in weights], activation, bias1=biases[0].npu(), bias2=biases[1].npu(), **more
        )
    assert "FFNV2" in names
    parts = []
    for expert, (start, end) in enumerate([(0, 5)] if tokens is None else [(0, 2), (2, 2), (2, 5)]):
        first, second = (w.double() if tokens is None else w[expert].double() for w in weights)
        shift, last = (b.double() if tokens is None else b[expert].double() for b in biases)
        hidden = ACTIVATIONS[activation](x[start:end].double() @ first + shift)
        parts.append(hidden @ second + last)
    near(y, torch.cat(parts), HALVES[dtype])


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_ffn_of_integers(packed: bool, per_channel: bool) -> None:
    x, first, second = (torch.randint(-20, 20, s, dtype=torch.int8) for s in ((5, 32), (32, 64), (64, 32)))
    deq = [(torch.rand(n) * 0.05).view(torch.int32) & -8192 for n in (64, 32)]
    scale, offset = torch.rand(64 if per_channel else 1) * 3, torch.randn(1)
    biases = [torch.randint(-50, 50, (n,), dtype=torch.int32) for n in (64, 32)]
    deq_scales = [d.long() if packed else d.view(torch.float32) for d in deq]
    arguments = npu(
        scale=scale, offset=offset, deq_scale1=deq_scales[0], deq_scale2=deq_scales[1], bias1=biases[0], bias2=biases[1]
    )
    y = torch_npu.npu_ffn(x.npu(), first.npu(), second.npu(), "relu", **arguments)
    wide = [d.view(torch.float32).double() for d in deq]
    hidden = nn.relu((x.double() @ first.double() + biases[0]) * wide[0])
    again = (hidden * scale.double() + offset.double()).round().clamp(-128, 127)
    expected = (again @ second.double() + biases[1]) * wide[1]
    assert y.dtype == torch.float16
    near(y, expected, 2e-2)


def test_ffn_with_weights_of_int8() -> None:
    x = torch.randn(5, 8).half()
    weights = [torch.randint(-100, 100, s, dtype=torch.int8) for s in ((8, 16), (16, 8))]
    scales, offsets = [[f(n).half() for n in (16, 8)] for f in (lambda n: torch.rand(n) * 0.01, torch.randn)]
    arguments = npu(
        antiquant_scale1=scales[0],
        antiquant_scale2=scales[1],
        antiquant_offset1=offsets[0],
        antiquant_offset2=offsets[1],
    )
    y = torch_npu.npu_ffn(x.npu(), *[w.npu() for w in weights], "silu", **arguments)
    first, second = ((w.double() + o.double()) * s.double() for w, o, s in zip(weights, offsets, scales, strict=True))
    near(y, nn.silu(x.double() @ first) @ second, 4e-3)


@pytest.mark.parametrize(
    ("activation", "changes", "complaint"),
    [
        ("swiglu", {}, "activation"),
        ("relu", {"inner_precise": 2}, "inner_precise"),
        ("relu", {"scale": torch.ones(1)}, "scale"),
        ("relu", {"expert_tokens": [5]}, "expert_tokens"),
    ],
)
def test_ffn_refuses(activation: str, changes: dict[str, Any], complaint: str) -> None:
    x, first, second = torch.ones(5, 8).half(), torch.ones(8, 16).half(), torch.ones(16, 8).half()
    with pytest.raises(RuntimeError, match=complaint):
        torch_npu.npu_ffn(x.npu(), first.npu(), second.npu(), activation, **npu(**changes))
