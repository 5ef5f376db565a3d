"""Quantisation of floats and back, against the formulas of op-plugin's docs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch_npu
from tests.vnpu.quantised_data import BF16, int4, int8, near, off_by_one, packed, unpacked
from tests.vnpu.support import called

from gallium.vnpu.registry import operators


@pytest.mark.parametrize("dtype", [torch.float16, BF16])
@pytest.mark.parametrize("target", [None, torch.quint4x2])
@pytest.mark.parametrize("smooth", ["none", "one", "groups"])
def test_dynamic_quant(dtype: torch.dtype, target: Any, smooth: str) -> None:
    x = torch.randn(2, 5, 16).to(dtype)
    x[0, 1] = 0
    scales, index, wide = None, None, x.double()
    if smooth == "one":
        scales = torch.rand(16).to(dtype) + 0.5
        wide = wide * scales.double()
    elif smooth == "groups":
        scales, index = torch.rand(3, 16).to(dtype) + 0.5, torch.tensor([2, 2, 10], dtype=torch.int32)
        owner = torch.tensor([0] * 2 + [2] * 8)
        wide = wide * scales[owner].view(2, 5, 16).double()
    given = {"smooth_scales": scales, "group_index": index}
    given = {name: None if tensor is None else tensor.npu() for name, tensor in given.items()}
    with called() as names:
        y, scale = torch_npu.npu_dynamic_quant(x.npu(), dst_type=target, **given)
    assert "DynamicQuantV2" in names
    limit = 127 if target is None else 7
    step = wide.abs().amax(-1) / limit
    near(scale, step, 1e-5)
    values = y.cpu() if target is None else unpacked(y.cpu())
    off_by_one(values, (wide / step.where(step > 0, 1.0).unsqueeze(-1)).round())
    assert values[0, 1].abs().max() == 0


@pytest.mark.parametrize("mode", ["pertoken", "perchannel", "pertensor"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_modes_of_dynamic_quant(mode: str, symmetric: bool) -> None:
    x = torch.randn(3, 5, 16).half()
    dims = {"pertoken": -1, "perchannel": -2, "pertensor": (0, 1, 2)}[mode]
    wide = x.double()
    if symmetric:
        y, scale = torch_npu.npu_dynamic_quant(x.npu(), quant_mode=mode)
        step, shift = wide.abs().amax(dims, keepdim=True) / 127, torch.zeros(1)
    else:
        y, scale, offset = torch_npu.npu_dynamic_quant_asymmetric(x.npu(), quant_mode=mode)
        step = (wide.amax(dims, keepdim=True) - wide.amin(dims, keepdim=True)) / 255
        shift = 127 - wide.amax(dims, keepdim=True) / step
        near(offset.flatten(), shift.flatten(), 1e-4)
    near(scale.flatten(), step.flatten(), 1e-5)
    off_by_one(y, (wide / step + shift).round())


def test_other_forms_of_dynamic_quant() -> None:
    x = torch.randn(4, 16).half()
    y, scale = torch_npu.npu_dynamic_quant(x.npu())
    for name, arguments, tail in (
        ("DynamicQuant", (x, None), ()),
        ("DynamicQuantV3", (x, None, None, 2, True, "pertoken"), (None,)),
        ("DynamicQuantV4", (x, None, None, 2, True, "pertoken", 0.0), (None,)),
    ):
        out, step = torch.empty(4, 16, dtype=torch.int8), torch.empty(4)
        operators()[name].body(*arguments, out, step, *tail)
        assert torch.equal(out, y.cpu())
        assert torch.equal(step, scale.cpu())


def test_dynamic_quant_refuses() -> None:
    x, ends = torch.randn(4, 16).half().npu(), torch.tensor([2, 3], dtype=torch.int32).npu()
    for words, arguments in (
        ("dst_type_max", {"dst_type_max": 8.0}),
        ("quant_mode", {"quant_mode": "perrow"}),
        ("smooth_scales", {"smooth_scales": torch.ones(8).half().npu()}),
        ("group_index", {"smooth_scales": torch.ones(2, 16).half().npu(), "group_index": ends}),
        ("group_index", {"group_index": ends}),
    ):
        with pytest.raises(RuntimeError, match=words):
            torch_npu.npu_dynamic_quant(x, **arguments)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, BF16])
@pytest.mark.parametrize("size", [1, 16])
@pytest.mark.parametrize("shifted", [False, True])
def test_quantise_by_multiplication(dtype: torch.dtype, size: int, shifted: bool) -> None:
    x, scale = (torch.randn(3, 16) * 3).to(dtype), (torch.rand(size) * 20 + 5).to(dtype)
    offset = torch.full((size,), 4.0, dtype=dtype) if shifted else None
    wide = x.double() * scale.double() + (4 if shifted else 0)
    for target, low, high in ((torch.qint8, -128, 127), (torch.quint4x2, -8, 7)):
        with called() as names:
            shift = None if offset is None else offset.npu()
            y = torch_npu.npu_quantize(x.npu(), scale.npu(), shift, target, -1, False)
        assert "AscendQuantV3" in names
        off_by_one(y if low < -8 else unpacked(y.cpu()), wide.round().clamp(low, high))
        out = torch.empty(y.shape, dtype=y.dtype)
        operators()["AscendQuant"].body(x, scale, offset, False, "round", 0, out)
        assert torch.equal(out, y.cpu())


def test_quantise_along_the_rows() -> None:
    x, scale = torch.randn(4, 16).half(), (torch.rand(4, 1) * 20).half()
    y = torch_npu.npu_quantize(x.npu(), scale.npu(), None, torch.qint8, -2, False)
    off_by_one(y, (x.double() * scale.double()).round().clamp(-128, 127))


@pytest.mark.parametrize(
    ("target", "low", "high"), [(torch.qint8, -128, 127), (torch.quint8, 0, 255), (torch.qint32, -(2**31), 2**31 - 1)]
)
@pytest.mark.parametrize("axis", [0, 1])
def test_quantise_by_division(target: Any, low: int, high: int, axis: int) -> None:
    x, scale = torch.randn(3, 5) * 10, torch.rand((3, 5)[axis]) * 0.2 + 0.05
    zero = torch.randint(-5, 5, scale.shape, dtype=torch.int32)
    with called() as names:
        y = torch_npu.npu_quantize(x.npu(), scale.npu(), zero.npu(), target, axis)
    assert "Quantize" in names
    shape = (-1, 1) if axis == 0 else (1, -1)
    expected = (x.double() / scale.double().view(shape) + zero.double().view(shape)).round().clamp(low, high)
    assert (y.cpu().double() - expected).abs().max() <= 1
    assert y.dtype == {torch.qint8: torch.int8, torch.quint8: torch.uint8, torch.qint32: torch.int32}[target]


@pytest.mark.parametrize("target", [torch.float16, BF16])
def test_anti_quant(target: torch.dtype) -> None:
    for values, x in ((v := int8(3, 16), v), (v := int4(3, 16), packed(v))):
        scale, offset = torch.rand(16), torch.randn(16)
        with called() as names:
            plain = torch_npu.npu_anti_quant(x.npu(), scale.npu(), dst_dtype=target)
            shifted = torch_npu.npu_anti_quant(x.npu(), scale.npu(), offset=offset.npu(), dst_dtype=target)
        assert "AscendAntiQuant" in names
        assert plain.dtype == target
        near(plain, values.double() * scale.double())
        near(shifted, (values.double() + offset.double()) * scale.double())
    with pytest.raises(RuntimeError, match="scale"):
        torch_npu.npu_anti_quant(int8(3, 16).npu(), torch.rand(5).npu())


@pytest.mark.parametrize("target", [None, torch.quint4x2])
def test_group_quant(target: Any) -> None:
    x, scale, index = torch.randn(6, 16), torch.rand(3, 16) * 5, torch.tensor([1, 1, 6])
    offset = torch.tensor([1.0])
    with called() as names:
        y = torch_npu.npu_group_quant(x.npu(), scale.npu(), index.npu(), offset=offset.npu(), dst_dtype=target)
    assert "GroupQuant" in names
    low, high = (-128, 127) if target is None else (-8, 7)
    expected = (x.double() * scale[[0] + [2] * 5].double() + 1).round().clamp(low, high)
    off_by_one(y if target is None else unpacked(y.cpu()), expected)
    with pytest.raises(RuntimeError, match="group_index"):
        torch_npu.npu_group_quant(x.npu(), scale.npu(), (index - 1).npu())


def test_fake_quant() -> None:
    """Called directly: this torch_npu leaves fake quantisation to the CPU."""
    x, scale, zero = torch.randn(4, 6), torch.rand(6) + 0.1, torch.arange(6, dtype=torch.int32) - 3
    out, mask = torch.empty(4, 6), torch.empty(4, 6, dtype=torch.bool)
    operators()["FakeQuantPerChannelAffineCachemask"].body(x, scale, zero, 1, -4, 3, out, mask)
    torch.testing.assert_close(out, torch.fake_quantize_per_channel_affine(x, scale, zero, 1, -4, 3))
    grid = (x / scale + zero).round()
    assert torch.equal(mask, (grid >= -4) & (grid <= 3))
    body = operators()["FakeQuantPerTensorAffineCachemask"].body
    body(x, scale[:1], zero[:1], 1.0, -4, 3, out, mask)
    torch.testing.assert_close(out, torch.fake_quantize_per_tensor_affine(x, scale[:1], zero[:1], -4, 3))
    body(x, scale[:1], zero[:1], 0.0, -4, 3, out, mask)
    assert torch.equal(out, x)
    assert mask.all()


def test_kronecker_quant() -> None:
    x, p1, p2 = torch.randn(3, 4, 16).half(), torch.randn(4, 4).half(), torch.randn(16, 16).half()
    with called() as names:
        y, scale = torch_npu.npu_kronecker_quant(x.npu(), p1.npu(), p2.npu(), 0.8)
    assert "FlatQuantV2" in names
    turned = p1.double() @ (x.double() @ p2.double())
    step = turned.abs().amax((1, 2)) / (7 * 0.8)
    near(scale, step, 1e-4)
    off_by_one(unpacked(y.cpu()), (turned / step.view(3, 1, 1)).round().clamp(-8, 7))
    out, steps = torch.empty(y.shape, dtype=torch.int32), torch.empty(3)
    operators()["FlatQuant"].body(x, p1, p2, 0.8, out, steps)
    assert torch.equal(out, y.cpu())
    with pytest.raises(RuntimeError, match="clip_ratio"):
        torch_npu.npu_kronecker_quant(x.npu(), p1.npu(), p2.npu(), 1.5)


@pytest.mark.parametrize("mode", [0, 1])
def test_packed_scales(mode: int) -> None:
    scale, offset = torch.tensor([0.1, -0.2, 3.0, 1e-3]), torch.tensor([3.4, -4.6, 300.0, -300.0])
    with called() as names:
        words = torch_npu.npu_trans_quant_param(scale.npu(), offset.npu(), mode).cpu().tolist()
        bare = torch_npu.npu_trans_quant_param(scale.npu(), round_mode=mode).cpu().tolist()
    assert "TransQuantParamV3" in names
    for word, plain, value, shift in zip(words, bare, scale.tolist(), [3, -5, 255, -256], strict=True):
        bits = int(torch.tensor(value).view(torch.int32)) & 0xFFFFFFFF
        wanted = bits & 0xFFFFE000 if mode == 0 else (bits + 0xFFF + ((bits >> 13) & 1)) & 0xFFFFE000
        assert plain == wanted | 1 << 46
        assert word == plain | (shift & 0x1FF) << 37
    out = torch.empty(4, dtype=torch.int64)
    operators()["TransQuantParamV2"].body(scale, offset, out)
    assert mode == 1 or out.tolist() == words


def test_block_quant() -> None:
    x = torch.randn(3, 300).half()
    x[1, :128] = 0
    with called() as names:
        y, scale = torch_npu.npu_dynamic_block_quant(x.npu(), dst_type=1)
    assert "DynamicBlockQuantV2" in names
    for j, part in enumerate(x.double().split(128, 1)):
        step = part.abs().amax(1) / 127
        near(scale[:, j], step, 1e-5)
        values = (part / step.where(step > 0, 1.0).unsqueeze(1)).round()
        off_by_one(y[:, j * 128 : j * 128 + part.shape[1]], values)
    out, steps = torch.empty(3, 300, dtype=torch.int8), torch.empty(3, 3)
    operators()["DynamicBlockQuant"].body(x, 0.0, "rint", 2, 1, 128, out, steps)
    assert torch.equal(out, y.cpu())
    for words, arguments in (("row_block_size", {"row_block_size": 128}), ("min_scale", {"min_scale": -1.0})):
        with pytest.raises(RuntimeError, match=words):
            torch_npu.npu_dynamic_block_quant(x.npu(), dst_type=1, **arguments)


@pytest.mark.parametrize("target", [torch.int8, torch.quint4x2])
def test_rotate_quant(target: Any) -> None:
    x, rotation = torch.randn(3, 128).bfloat16(), torch.randn(32, 32).bfloat16() / 6
    with called() as names:
        y, scale = torch_npu.npu_rotate_quant(x.npu(), rotation.npu(), dst_dtype=target)
    assert "RotateQuant" in names
    turned = (x.float().view(3, 4, 32) @ rotation.float()).view(3, 128).bfloat16().double()
    step = turned.abs().amax(1) / (127 if target == torch.int8 else 7)
    near(scale, step, 1e-4)
    off_by_one(y if target == torch.int8 else unpacked(y.cpu()), (turned / step.unsqueeze(1)).round())
    with pytest.raises(RuntimeError, match="last dimension"):
        torch_npu.npu_rotate_quant(x[:, :64].npu(), rotation.npu(), dst_dtype=target)
