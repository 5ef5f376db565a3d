"""Microscaled results, which the 950 family alone has; test_on_950.py runs this file."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as nn
import torch_npu
from tests.vnpu.support import called
from torch import Tensor

from gallium.vnpu.microscaling import E2M1_VALUES, e2m1_codes

# largest value, its exponent, half a step of the mantissa
FORMATS = {torch.float8_e4m3fn: (448.0, 8, 2**-4), torch.float8_e5m2: (57344.0, 15, 2**-3)}


def blocks_agree(y: Tensor, scales: Tensor, values: Tensor, axis: int, alg: int) -> None:
    """Each scale follows the rule, and each value times its scale is as near as the format can be."""
    largest, top, step = FORMATS[y.dtype]
    y, scales = y.cpu().float().movedim(axis, -1), scales.cpu().view(torch.uint8).int()
    values = values.double().movedim(axis, -1)
    pairs = scales if axis == -1 else scales.movedim(-3, -2)
    found = pairs.flatten(-2)
    for block in range(found.shape[-1]):
        part = values[..., 32 * block : 32 * block + 32]
        if part.shape[-1] == 0:
            assert not found[..., block].any()
            continue
        most = part.abs().amax(-1)
        wanted = torch.log2(most).floor() - top if alg == 0 else torch.log2(most / largest).ceil()
        assert torch.equal(found[..., block].double(), wanted + 127)
        scale = torch.exp2(wanted)[..., None]
        mine = y[..., 32 * block : 32 * block + 32].double() * scale
        clipped = part.clamp(-largest * scale, largest * scale)
        assert ((mine - clipped).abs() <= step * part.abs() + scale * 2**-9).all()


def normalised(x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    x = x.double()
    return x / torch.sqrt(x.square().mean(-1, keepdim=True) + 1e-6) * gamma.double() + beta.double()


@pytest.mark.parametrize("dst", FORMATS)
@pytest.mark.parametrize("alg", [0, 1])
@pytest.mark.parametrize("width", [64, 70, 96])
def test_rms_norm(width: int, alg: int, dst: torch.dtype) -> None:
    x1, x2 = torch.randn(5, width).bfloat16(), torch.randn(5, width).bfloat16()
    gamma, beta = torch.randn(width), torch.randn(width)
    settings: dict[str, Any] = {"beta": beta.npu(), "scale_alg": alg, "dst_type": dst}
    with called() as names:
        y, scales, _ = torch_npu.npu_rms_norm_dynamic_mx_quant(x1.npu(), gamma.npu(), **settings)
        added, x, added_scales, _ = torch_npu.npu_add_rms_norm_dynamic_mx_quant(
            x1.npu(), x2.npu(), gamma.npu(), **settings
        )
    assert {"RmsNormDynamicMxQuant", "AddRmsNormDynamicMxQuant"} <= names
    assert torch.equal(x.cpu(), x1 + x2)
    blocks_agree(y, scales, normalised(x1, gamma, beta), -1, alg)
    blocks_agree(added, added_scales, normalised(x1 + x2, gamma, beta), -1, alg)


def test_rms_norm_of_zeros_as_in_op_plugin() -> None:
    """The figures of its test_npu_rms_norm_dynamic_mx_quant."""
    x, zero = torch.zeros(1, 2, 2).bfloat16().npu().requires_grad_(), torch.zeros(2).npu()
    y, scales, rstd = torch_npu.npu_rms_norm_dynamic_mx_quant(x, zero, beta=zero, dst_type=torch.float8_e5m2)
    assert not y.cpu().view(torch.uint8).any() and not scales.cpu().view(torch.uint8).any()
    torch.testing.assert_close(rstd.cpu(), torch.full((1, 2, 1), 1000.0))


def test_swiglu_as_in_op_plugin() -> None:
    """The figures of its tests: 4-bit floats by one rule, 8-bit floats by the other, along both dimensions."""
    ones = torch.ones(4, 8).bfloat16().npu()
    with called() as names:
        y, scales = torch_npu.npu_swiglu_mx_quant(ones, dst_type=torch_npu.float4_e2m1fn_x2)[:2]
    assert "SwigluMxQuant" in names
    assert torch.equal(y.cpu().view(torch.uint8), torch.full((4, 2), 119, dtype=torch.uint8))
    assert scales.cpu().view(torch.uint8).flatten().tolist() == [124, 0] * 4
    with called() as names:
        results = torch_npu.npu_swiglu_mx_quant_with_dual_axis(
            ones, activate_left=True, scale_alg=1, dst_type=torch.float8_e4m3fn
        )
    assert "SwigluMxQuantWithDualAxis" in names
    y1, scale1, y2, scale2 = (r.cpu() for r in results)
    assert torch.equal(y1.float(), torch.full((4, 4), 384.0)) and torch.equal(y2.float(), y1.float())
    assert scale1.view(torch.uint8).flatten().tolist() == [118, 0] * 4
    assert scale2.view(torch.uint8).flatten().tolist() == [118, 0] * 4
    x, grad = torch.ones(4, 64).bfloat16().npu(), torch.ones(4, 32).bfloat16().npu()
    with called() as names:
        results = torch_npu._npu_swiglu_backward_mx_quant_with_dual_axis(
            x, grad, activate_left=True, scale_alg=1, dst_type=torch.float8_e4m3fn
        )
    assert "SwigluBackwardMxQuantWithDualAxis" in names
    y1, scale1, y2, scale2 = (r.cpu() for r in results)
    assert torch.equal(y1.float(), torch.tensor([240.0] * 32 + [384.0] * 32).expand(4, -1))
    assert torch.equal(y2.float(), y1.float())
    assert scale1.view(torch.uint8).flatten().tolist() == [119, 118] * 4
    assert scale2.view(torch.uint8).flatten().tolist() == [119, 0] * 32 + [118, 0] * 32


@pytest.mark.parametrize("alg", [0, 1])
@pytest.mark.parametrize("left", [True, False])
def test_swiglu_both_ways(left: bool, alg: int) -> None:
    x, grad = torch.randn(2, 70, 128).bfloat16(), torch.randn(2, 70, 64).bfloat16()
    leaf = x.double().requires_grad_()
    first, second = leaf.chunk(2, -1)
    values = nn.silu(first) * second if left else first * nn.silu(second)
    values.backward(grad.double())
    settings: dict[str, Any] = {"activate_left": left, "scale_alg": alg, "dst_type": torch.float8_e4m3fn}
    forward = torch_npu.npu_swiglu_mx_quant_with_dual_axis(x.npu(), **settings)
    backward = torch_npu._npu_swiglu_backward_mx_quant_with_dual_axis(x.npu(), grad.npu(), **settings)
    assert leaf.grad is not None
    for (y1, scale1, y2, scale2), expected in ((forward, values.detach()), (backward, leaf.grad)):
        blocks_agree(y1, scale1, expected, -1, alg)
        blocks_agree(y2, scale2, expected, -2, alg)


def test_4_bit_floats_round_to_even_codes() -> None:
    values = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 9.0, -0.3, 0.26])
    codes = e2m1_codes(values)
    assert [E2M1_VALUES[c & 7] for c in codes.tolist()] == [0, 1, 1, 2, 2, 4, 4, 6, 0.5, 0.5]
    assert (codes >= 8).tolist() == (values < 0).tolist()


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"scale_alg": 2}, "scale_alg"),
        ({"round_mode": "floor"}, "round_mode"),
        ({"group_index": torch.tensor([4])}, "group_index"),
        ({"swiglu_mode": 1}, "swiglu_mode"),
        ({"max_dtype_value": 6.0}, "max_dtype_value"),
        ({"dst_type": torch_npu.float4_e1m2fn_x2}, "output's type"),
    ],
)
def test_refusals(changes: dict[str, Any], complaint: str) -> None:
    moved = {name: v.npu() if isinstance(v, Tensor) else v for name, v in changes.items()}
    settings = {"dst_type": torch_npu.float4_e2m1fn_x2} | moved
    with pytest.raises(RuntimeError, match=complaint):
        torch_npu.npu_swiglu_mx_quant(torch.ones(4, 8).bfloat16().npu(), **settings)
