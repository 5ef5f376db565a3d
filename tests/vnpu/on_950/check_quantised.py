"""Quantisation to small floats, and what uses it, on the 950 family; test_on_950.py runs this file."""

from __future__ import annotations

import math

import pytest
import torch
import torch_npu
from tests.vnpu.quantised_data import BF16, int8, near
from tests.vnpu.support import called
from torch import Tensor

from gallium.vnpu.registry import operators

FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)
LARGEST = {torch.float8_e4m3fn: 448.0, torch.float8_e5m2: 57344.0}
EXPONENT = {torch.float8_e4m3fn: 8, torch.float8_e5m2: 15}


def microscaled(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Blocks of 32 along the last dimension: values, and the exponents' bytes in pairs, one block after the other."""
    rows = x.double().reshape(-1, x.shape[-1])
    pairs = math.ceil(x.shape[-1] / 64)
    values, bits = torch.zeros(rows.shape, dtype=torch.float64), torch.zeros(len(rows), pairs * 2, dtype=torch.uint8)
    for r, row in enumerate(rows):
        for b, block in enumerate(row.split(32)):
            most = float(block.abs().max())
            exponent = max(math.floor(math.log2(most)) - EXPONENT[dtype], -127) if most else -127
            limit = LARGEST[dtype]
            scaled = (block / 2.0**exponent).clamp(-limit, limit).float().to(dtype)
            values[r, b * 32 : b * 32 + len(block)] = scaled.double()
            bits[r, b] = exponent + 127
    return values.reshape(x.shape), bits.reshape(*x.shape[:-1], pairs, 2)


@pytest.mark.parametrize("dtype", FP8)
@pytest.mark.parametrize("axis", [-1, -2, 0, 1])
def test_dynamic_mx_quant(dtype: torch.dtype, axis: int) -> None:
    x = (torch.randn(3, 70, 40) * torch.logspace(-3, 3, 40)).to(BF16)
    x[1] = 0
    with called() as names:
        y, scale = torch_npu.npu_dynamic_mx_quant(x.npu(), axis=axis, dst_type=dtype)
    assert "DynamicMxQuantV3" in names
    values, bits = microscaled(x.movedim(axis, -1), dtype)
    assert torch.equal(y.cpu().double(), values.movedim(-1, axis))
    assert torch.equal(scale.cpu().view(torch.uint8), bits.movedim(-2, axis % 3))
    for name, more in (("DynamicMxQuant", ()), ("DynamicMxQuantV2", (0.0,))):
        out, exponents = torch.empty_like(y.cpu()), torch.empty_like(scale.cpu())
        operators()[name].body(x, axis, "rint", 0, 32, 0, *more, out, exponents)
        assert torch.equal(out.view(torch.uint8), y.cpu().view(torch.uint8))
    with called() as names:
        back = torch_npu.npu_anti_mx_quant(y, scale, axis=axis, dst_type=torch.bfloat16, src_type=dtype)
    assert "AntiMxQuant" in names
    step = 2.0 ** (bits.flatten(-2).double() - 127).repeat_interleave(32, -1)[..., : x.shape[axis]]
    torch.testing.assert_close(back.cpu().double(), (values * step).movedim(-1, axis), rtol=1e-2, atol=0)


@pytest.mark.parametrize("dtype", FP8)
def test_both_axes(dtype: torch.dtype) -> None:
    x = torch.randn(2, 40, 70).half()
    with called() as names:
        y1, scale1, y2, scale2 = torch_npu.npu_dynamic_mx_quant_with_dual_axis(x.npu(), dst_type=dtype)
    assert "DynamicMxQuantWithDualAxisV2" in names
    values, bits = microscaled(x, dtype)
    assert torch.equal(y1.cpu().double(), values)
    assert torch.equal(scale1.cpu().view(torch.uint8), bits)
    values, bits = microscaled(x.transpose(1, 2), dtype)
    assert torch.equal(y2.cpu().double(), values.transpose(1, 2))
    assert torch.equal(scale2.cpu().view(torch.uint8), bits.transpose(1, 2))
    results = [t.cpu() for t in (y1, scale1, y2, scale2)]
    outs = [torch.empty_like(t) for t in results]
    operators()["DynamicMxQuantWithDualAxis"].body(x, "rint", 0, 0, *outs)
    assert all(torch.equal(o.view(torch.uint8), t.view(torch.uint8)) for o, t in zip(outs, results, strict=True))


def test_mx_refuses() -> None:
    x = torch.randn(4, 64).half().npu()
    for words, arguments in (
        ("round_mode", {"round_mode": "floor"}),
        ("block_size", {"block_size": 64}),
        ("scale_alg", {"scale_alg": 2}),
        ("dst_type_max", {"dst_type_max": 7.0}),
    ):
        with pytest.raises(RuntimeError, match=words):
            torch_npu.npu_dynamic_mx_quant(x, dst_type=torch.float8_e4m3fn, **arguments)


@pytest.mark.parametrize("dtype", FP8)
@pytest.mark.parametrize(("rows", "columns"), [(1, 128), (128, 128), (128, 64)])
def test_block_quant(dtype: torch.dtype, rows: int, columns: int) -> None:
    x = torch.randn(2, 130, 200).to(BF16)
    with called() as names:
        y, scale = torch_npu.npu_dynamic_block_quant(
            x.npu(), dst_type=dtype, row_block_size=rows, col_block_size=columns, min_scale=1e-3
        )
    assert "DynamicBlockQuantV2" in names
    for b in range(2):
        for i, r in enumerate(range(0, 130, rows)):
            for j, c in enumerate(range(0, 200, columns)):
                block = x[b, r : r + rows, c : c + columns].float()
                step = torch.clamp(block.abs().max() / LARGEST[dtype], min=1e-3)
                torch.testing.assert_close(scale[b, i, j].cpu(), step)
                wanted = (block / step).clamp(-LARGEST[dtype], LARGEST[dtype]).to(dtype).float()
                got = y[b, r : r + rows, c : c + columns].cpu().float()
                torch.testing.assert_close(got, wanted, rtol=0.13 if dtype == FP8[0] else 0.26, atol=1e-3)


@pytest.mark.parametrize("dtype", FP8)
def test_quant_max(dtype: torch.dtype) -> None:
    x, scale, ends = torch.randn(7, 16).half(), torch.tensor([0.5, 2.0, 1.5]), torch.tensor([2, 2, 7])
    with called() as names:
        y, most = torch_npu.npu_quant_max(x.npu(), scale[:1].npu(), dst_dtype=dtype)
        grouped, each = torch_npu.npu_quant_max(x.npu(), scale.npu(), dst_dtype=dtype, group_list=ends.npu())
    assert {"QuantMax", "GroupedQuantMax"} <= names
    assert torch.equal(y.cpu().float(), (x.float() / 0.5).to(dtype).float())
    assert most.cpu().item() == x.abs().max().item()
    wanted = (x.float() / torch.tensor([0.5] * 2 + [1.5] * 5).unsqueeze(1)).to(dtype)
    assert torch.equal(grouped.cpu().float(), wanted.float())
    assert each.tolist() == [x[:2].abs().max().item(), 0, x[2:].abs().max().item()]


@pytest.mark.parametrize("dtype", FP8)
def test_rotate_quant(dtype: torch.dtype) -> None:
    x, rotation, alpha = torch.randn(3, 128).to(BF16), torch.randn(2, 64, 64).to(BF16), torch.tensor([0.7])
    with called() as names:
        y, scale = torch_npu.npu_rotate_quant(x.npu(), rotation.npu(), alpha=alpha.npu(), dst_dtype=dtype)
    assert "RotateQuant" in names
    turned = torch.cat([x[:, :64].float() @ rotation[0].float(), x[:, 64:].float() @ rotation[1].float()], 1).to(BF16)
    blocks = turned.float().view(3, 4, 32)
    limit = 0.7 * blocks.abs().amax(-1, keepdim=True)
    values, bits = microscaled(blocks.clamp(-limit, limit).view(3, 128), dtype)
    near(y.float(), values, 0.26)
    assert torch.equal(scale.cpu().view(torch.uint8).flatten(), bits.flatten())


@pytest.mark.parametrize(("mode", "dtype"), [(2, torch.float8_e5m2), (3, torch.float8_e4m3fn)])
def test_init_routing(mode: int, dtype: torch.dtype) -> None:
    x, ids = torch.randn(5, 96).to(BF16), torch.stack([torch.randperm(4)[:2] for _ in range(5)]).int()
    rows, _, _, scales = torch_npu.npu_moe_init_routing_v2(
        x.npu(), ids.npu(), expert_num=4, quant_mode=mode, active_expert_range=[0, 4]
    )
    order = ids.flatten().argsort(stable=True) // 2
    values, bits = microscaled(x[order], dtype)
    assert torch.equal(rows.cpu().double(), values)
    assert torch.equal(scales.cpu().view(torch.uint8), bits.flatten(1))


def test_convolution_of_int8() -> None:
    x, w, bias = int8(2, 4, 9, 8), int8(6, 2, 3, 3), torch.randint(-500, 500, (6,), dtype=torch.int32)
    scale = torch.rand(6) * 1e-3
    packed = torch_npu.npu_trans_quant_param(scale.npu())
    with called() as names:
        y = torch_npu.npu_quant_conv2d(
            x.npu(), w.npu(), packed, [2, 1], [1, 0], [1, 2], 2, 0, "rint", torch.float16, bias.npu()
        )
    assert "QuantConvolution" in names
    sums = torch.nn.functional.conv2d(x.double(), w.double(), bias.double(), (2, 1), (1, 0), (1, 2), 2)
    near(y, sums * scale.double().view(1, -1, 1, 1), 2e-2)


@pytest.mark.parametrize("dtype", FP8)
def test_transpose_quant_batch_matmul(dtype: torch.dtype) -> None:
    x1, x2 = torch.randn(3, 2, 512).to(dtype), torch.randn(2, 512, 128).to(dtype)
    rows, columns = torch.rand(3), torch.rand(128)
    with called() as names:
        y = torch_npu.npu_transpose_quant_batchmatmul(
            x1.npu(), x2.npu(), torch.bfloat16, x1_scale=rows.npu(), x2_scale=columns.npu(), perm_x1=[1, 0, 2],
            perm_x2=[0, 1, 2], perm_y=[1, 0, 2],
        )  # fmt: skip
    assert "TransposeQuantBatchMatMul" in names
    wanted = torch.bmm(x1.double().transpose(0, 1), x2.double()).transpose(0, 1)
    near(y, wanted * rows.double().view(-1, 1, 1) * columns.double(), 2e-2)
