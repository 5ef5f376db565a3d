"""RMS normalisation with quantised results against the formulas of op-plugin's documentation, in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch_npu
from tests.vnpu.support import called
from torch import Tensor

HALVES = (torch.float16, torch.bfloat16)
SCALES = {torch.float16: (torch.float32, torch.int32), torch.bfloat16: (torch.bfloat16, torch.bfloat16)}


def normalised(x: Tensor, gamma: Tensor, beta: Tensor | None = None, epsilon: float = 1e-6) -> Tensor:
    x = x.double()
    y = x / torch.sqrt(x.square().mean(-1, keepdim=True) + epsilon) * gamma.double()
    return y if beta is None else y + beta.double()


def quantised(values: Tensor, low: int = -128, high: int = 127) -> Tensor:
    return values.round().clamp(low, high)


def off_by_one_at_ties(actual: Tensor, expected: Tensor) -> None:
    """Equal but for a few values that lie so near to a tie that the last bit of the sum decides."""
    difference = (actual.cpu().double() - expected).abs()
    assert difference.max() <= 1
    assert (difference > 0).double().mean() < 0.01


def int4_of(words: Tensor) -> Tensor:
    """[..., n] int32 to [..., 8 n] values, the lowest bits first."""
    nibbles = (words.cpu()[..., None] >> torch.arange(0, 32, 4)) & 0xF
    return torch.where(nibbles > 7, nibbles - 16, nibbles).flatten(-2)


def inputs(dtype: torch.dtype, rows: int = 6, width: int = 64) -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(rows, width).to(dtype), torch.randn(rows, width).to(dtype), torch.randn(width).to(dtype)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("div_mode", [True, False])
@pytest.mark.parametrize("full", [True, False])
def test_add_rms_norm_quant(full: bool, div_mode: bool, dtype: torch.dtype) -> None:
    x1, x2, gamma = inputs(dtype)
    scale_type, offset_type = SCALES[dtype]
    scales = [(torch.rand(64) * (0.05 if div_mode else 20) + 0.02).to(scale_type) for _ in range(2)]
    offsets = [torch.randint(-9, 9, (64,)).to(offset_type) for _ in range(2)]
    beta = torch.randn(64).to(dtype)
    more = {"beta": beta.npu(), "scales2": scales[1].npu(), "zero_points2": offsets[1].npu()} if full else {}
    with called() as names:
        y1, y2, x = torch_npu.npu_add_rms_norm_quant(
            x1.npu(), x2.npu(), gamma.npu(), scales[0].npu(), offsets[0].npu(), **more, div_mode=div_mode
        )
    assert "AddRmsNormQuantV2" in names
    assert torch.equal(x.cpu(), x1 + x2)
    normal = normalised(x1 + x2, gamma, beta if full else None)
    outputs = list(zip((y1, y2), scales, offsets, strict=True))
    for y, scale, offset in outputs if full else outputs[:1]:
        scaled = normal / scale.double() if div_mode else normal * scale.double()
        off_by_one_at_ties(y, quantised(scaled + offset.double()))
        assert y.dtype == torch.int8


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("int4", [False, True])
@pytest.mark.parametrize(("smooth", "mask"), [(2, None), (1, None), (0, None), (2, [True, True]), (0, [False, True])])
def test_add_rms_norm_dynamic_quant(smooth: int, mask: list[bool] | None, int4: bool, dtype: torch.dtype) -> None:
    x1, x2, gamma = inputs(dtype)
    beta = torch.randn(64).to(dtype)
    factors = [(torch.rand(64) + 0.5).to(dtype) if n < smooth else None for n in range(2)]
    with called() as names:
        y1, y2, x, scale1, scale2 = torch_npu.npu_add_rms_norm_dynamic_quant(
            x1.npu(),
            x2.npu(),
            gamma.npu(),
            smooth_scale1=None if factors[0] is None else factors[0].npu(),
            smooth_scale2=None if factors[1] is None else factors[1].npu(),
            beta=beta.npu(),
            output_mask=mask,
            y_dtype=torch.quint4x2 if int4 else None,
        )
    assert "AddRmsNormDynamicQuantV2" in names
    assert torch.equal(x.cpu(), x1 + x2)
    limit = 7 if int4 else 127
    wanted = mask or [True, smooth == 2]
    for needed, y, scale, factor in zip(wanted, (y1, y2), (scale1, scale2), factors, strict=True):
        if needed:
            values = normalised(x1 + x2, gamma, beta) * (1 if factor is None else factor.double())
            expected = values.abs().amax(-1) / limit
            torch.testing.assert_close(scale.cpu().double(), expected, rtol=1e-5, atol=0)
            off_by_one_at_ties(int4_of(y) if int4 else y, quantised(values / expected[:, None]))


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("int4", [False, True])
@pytest.mark.parametrize("gamma_dims", [1, 2])
def test_rms_norm_quant(gamma_dims: int, int4: bool, dtype: torch.dtype) -> None:
    x, _, gamma = inputs(dtype)
    beta, scale = torch.randn(64).to(dtype), torch.tensor([0.03 if not int4 else 0.3], dtype=dtype)
    offset = torch.tensor([3], dtype=torch.int8)
    parameters = [t.view(*[1] * (gamma_dims - 1), 64).npu() for t in (gamma, beta)]
    with called() as names:
        y = torch_npu.npu_rms_norm_quant(
            x.npu(), *parameters, scale.npu(), offset.npu(), dst_dtype=torch.quint4x2 if int4 else None
        )
    assert "RmsNormQuant" in names
    values = normalised(x, gamma, beta) / scale.double() + 3
    expected = quantised(values, *((-8, 7) if int4 else (-128, 127)))
    off_by_one_at_ties(int4_of(y) if int4 else y, expected)


def _add_quant(**changes: Any) -> object:
    x1, x2, gamma = inputs(torch.float16)
    values = {"x1": x1, "x2": x2, "gamma": gamma, "scales1": torch.ones(64), "zero_points1": torch.zeros(64).int()}
    values |= changes
    return torch_npu.npu_add_rms_norm_quant(**{name: v.npu() for name, v in values.items()})


def _dynamic(mask: list[bool], **factors: Tensor) -> object:
    x1, x2, gamma = (t.npu() for t in inputs(torch.float16))
    moved = {name: factor.npu() for name, factor in factors.items()}
    return torch_npu.npu_add_rms_norm_dynamic_quant(x1, x2, gamma, output_mask=mask, **moved)


def _quant(**changes: Tensor) -> object:
    x, _, gamma = inputs(torch.float16)
    values = {"x": x, "gamma": gamma, "beta": gamma, "scale": torch.ones(1).half(), "offset": torch.zeros(1).char()}
    return torch_npu.npu_rms_norm_quant(**{name: v.npu() for name, v in (values | changes).items()})


@pytest.mark.parametrize(
    ("call", "complaint"),
    [
        (lambda: _add_quant(x1=torch.ones(6, 64), x2=torch.ones(6, 64), gamma=torch.ones(64)), "dtype of x1"),
        (lambda: _add_quant(scales1=torch.ones(64).half()), "dtype of scales"),
        (lambda: _add_quant(zero_points1=torch.zeros(64)), "dtype of zero_points"),
        (lambda: _add_quant(beta=torch.ones(64)), "dtype of beta"),
        (lambda: _add_quant(zero_points2=torch.zeros(64).int()), "zero_points2"),
        (lambda: _dynamic([True, False], smooth_scale2=torch.ones(64).half()), "output_mask"),
        (lambda: _quant(scale=torch.ones(64).half()), "shape of scale"),
        (lambda: _quant(offset=torch.zeros(1).int()), "dtype of offset"),
        (lambda: _quant(gamma=torch.ones(2, 64).half(), beta=torch.ones(2, 64).half()), "shape of gamma"),
    ],
)
def test_refusals(call: Callable[[], object], complaint: str) -> None:
    with pytest.raises(RuntimeError, match=complaint):
        call()
