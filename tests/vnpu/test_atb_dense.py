"""_npu_matmul_add_fp32, _npu_quantize_per_tensor, _npu_quant_rms_norm and _npu_rotary_embedding."""

from __future__ import annotations

import pytest
import torch
import torch_npu

TYPES = [torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("strided", [False, True])
def test_a_product_is_added_in_float32(dtype: torch.dtype, strided: bool) -> None:
    x, weight = torch.randn(6, 8).to(dtype), torch.randn(6, 10).to(dtype)
    a, b = (x[:, ::2], weight[:, ::2]) if strided else (x, weight)
    total = torch.randn(a.shape[1], b.shape[1])
    on_device = total.npu()
    on_x, on_weight = x.npu(), weight.npu()
    torch_npu._npu_matmul_add_fp32(
        on_x[:, ::2] if strided else on_x, on_weight[:, ::2] if strided else on_weight, on_device
    )
    wanted = total.double() + a.double().t() @ b.double()
    torch.testing.assert_close(on_device.cpu().double(), wanted, rtol=1e-6, atol=1e-5)


def test_a_product_of_other_shapes_or_types_is_refused() -> None:
    x, total = torch.zeros(6, 8).half().npu(), torch.zeros(8, 8).npu()
    with pytest.raises(RuntimeError, match=r"atb\.Linear: weight"):
        torch_npu._npu_matmul_add_fp32(x, torch.zeros(5, 8).half().npu(), total)
    with pytest.raises(RuntimeError, match=r"atb\.Linear: C"):
        torch_npu._npu_matmul_add_fp32(x, x, total.half())
    with pytest.raises(RuntimeError, match=r"atb\.Linear: x"):
        torch_npu._npu_matmul_add_fp32(x.float(), x.float(), total)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("offset", [torch.tensor([3, -4, 0, 100], dtype=torch.int8), torch.empty(0, dtype=torch.int8)])
def test_quantisation_per_channel(dtype: torch.dtype, offset: torch.Tensor) -> None:
    x, scale = (torch.randn(5, 4) * 9).to(dtype), torch.tensor([0.25, 0.5, 0.1, 2.0]).to(dtype)
    wanted = torch.round(x.double() / scale.double()) + (offset.double() if offset.numel() else 0)
    out = torch.zeros(5, 4, dtype=torch.int8).npu()
    torch_npu._npu_quantize_per_tensor(x.npu(), scale.npu(), offset.npu(), out)
    assert torch.equal(out.cpu(), wanted.clamp(-128, 127).to(torch.int8))


def test_quantisation_of_other_types_is_refused() -> None:
    x, offset, out = (
        torch.zeros(4).npu(),
        torch.zeros(4, dtype=torch.int8).npu(),
        torch.zeros(4, dtype=torch.int8).npu(),
    )
    with pytest.raises(RuntimeError, match=r"atb\.Elewise: x"):
        torch_npu._npu_quantize_per_tensor(x, x, offset, out)
    with pytest.raises(RuntimeError, match=r"atb\.Elewise: zero_point"):
        torch_npu._npu_quantize_per_tensor(x.half(), x.half(), offset.int(), out)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("epsilon", [1e-5, 0.5])
def test_rms_norm_to_int8(dtype: torch.dtype, epsilon: float) -> None:
    x = torch.randn(4, 3, 32).to(dtype)
    gamma, beta = torch.randn(1, 32).to(dtype), torch.randn(1, 32).to(dtype)
    scale, offset = torch.tensor([0.0625]).to(dtype), torch.tensor([5], dtype=torch.int8)
    out = torch.zeros(4, 3, 32, dtype=torch.int8).npu()
    torch_npu._npu_quant_rms_norm(x.npu(), gamma.npu(), beta.npu(), scale.npu(), offset.npu(), out, eps=epsilon)
    normed = x.double() / torch.sqrt((x.double() ** 2).mean(-1, keepdim=True) + epsilon)
    exact = (normed * gamma.double() + beta.double()) / scale.double() + 5
    wanted = exact.round().clamp(-128, 127)
    assert torch.all((out.cpu().double() - wanted).abs() <= ((exact - exact.floor() - 0.5).abs() < 1e-4).double())
    with pytest.raises(RuntimeError, match=r"atb\.RmsNorm: gamma"):
        torch_npu._npu_quant_rms_norm(x.npu(), gamma[:, :8].npu(), beta.npu(), scale.npu(), offset.npu(), out)


# op-plugin keeps the first table that a process passes (RopeAtb.cpp), so all tests use this one.
ANGLES = torch.arange(64).unsqueeze(1) / 7.0 ** torch.arange(4)
TABLE = torch.cat((ANGLES.cos(), ANGLES.sin()), dim=-1)


@pytest.mark.parametrize("neox", [True, False])
@pytest.mark.parametrize("dtype", [*TYPES, torch.float32])
def test_rotary_embedding(neox: bool, dtype: torch.dtype) -> None:
    positions = torch.tensor([[3, 0, 63], [9, 9, 1]])
    query, key = torch.randn(6, 24).to(dtype), torch.randn(6, 8).to(dtype)
    on_query, on_key = query.npu(), key.npu()
    torch_npu._npu_rotary_embedding(positions.npu(), on_query, on_key, 8, TABLE.npu(), neox)
    for x, rotated in ((query, on_query), (key, on_key)):
        wanted = x.double().clone()
        for token, position in enumerate(positions.flatten().tolist()):
            for start in range(0, x.shape[1], 8):
                for i in range(4):
                    first, second = (start + i, start + i + 4) if neox else (start + 2 * i, start + 2 * i + 1)
                    turn = torch.polar(torch.tensor(1.0).double(), ANGLES[position, i].double())
                    turned = torch.complex(x[token, first].double(), x[token, second].double()) * turn
                    wanted[token, first], wanted[token, second] = turned.real, turned.imag
        tolerance = {torch.float16: 2e-3, torch.bfloat16: 2e-2, torch.float32: 1e-5}[dtype]
        torch.testing.assert_close(rotated.cpu().double(), wanted, rtol=0, atol=tolerance)


def test_rotary_embedding_of_other_sizes_is_refused() -> None:
    query = torch.zeros(2, 16).npu()
    positions = torch.tensor([0, 1]).npu()
    with pytest.raises(RuntimeError, match=r"atb\.Rope: rotary_coeff = 16"):
        torch_npu._npu_rotary_embedding(positions, query, query.clone(), 16, TABLE.npu(), False)
    with pytest.raises(RuntimeError, match=r"atb\.Rope: key"):
        torch_npu._npu_rotary_embedding(positions, query, query[:, :7].contiguous(), 8, TABLE.npu(), True)
