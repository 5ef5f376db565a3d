"""Products of quantised matrices, against exact products in float64 and the formulas of op-plugin's docs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch_npu
from tests.vnpu.quantised_data import BF16, exact, int4, int8, near, off_by_one, packed
from tests.vnpu.support import called

from gallium.vnpu.quantisation import integer_product
from gallium.vnpu.registry import operators


@pytest.fixture
def blocked_weights() -> Any:
    torch.npu.config.allow_internal_format = True
    yield lambda x: torch_npu.npu_format_cast(x.npu(), 29)
    torch.npu.config.allow_internal_format = False


@pytest.mark.parametrize("depth", [1, 1023, 1024, 1025, 5000])
def test_integer_products_are_exact(depth: int) -> None:
    lowest = torch.full((2, depth), -128, dtype=torch.int8)
    for a, b in ((int8(3, depth), int8(depth, 4)), (lowest, lowest.t())):
        assert torch.equal(integer_product(a, b).double(), exact(a, b))


@pytest.mark.parametrize(
    ("output", "scale_type", "rows", "bias"),
    [
        (torch.float16, "packed", False, None),
        (torch.float16, "float32", False, torch.int32),
        (torch.float16, "float32", True, torch.float32),
        (BF16, "bfloat16", True, torch.int32),
        (BF16, "float32", False, BF16),
        (None, "float32", False, torch.int32),
        (None, "packed", False, None),
    ],
)
@pytest.mark.parametrize("columns", [1, 24])
@pytest.mark.parametrize("layout", ["plain", "transposed", "blocked"])
def test_quant_matmul(
    output: Any, scale_type: str, rows: bool, bias: Any, columns: int, layout: str, blocked_weights: Any
) -> None:
    x, w = int8(5, 64), int8(64, 24)
    scale = torch.rand(columns) * 1e-3 + 1e-4
    scale = (scale.view(torch.int32) & -8192).view(torch.float32)  # what a packed scale can hold
    scale = scale.bfloat16() if scale_type == "bfloat16" else scale
    offset = torch.full((columns,), 5.0) if output is None else None
    per_row = torch.rand(5) + 0.5 if rows else None
    extra = None if bias is None else (torch.randn(24) * (500 if bias == torch.int32 else 3)).to(bias)
    weight = {"plain": w.npu(), "transposed": w.t().contiguous().npu().t(), "blocked": None}[layout]
    weight = blocked_weights(w) if weight is None else weight
    given = scale.npu()
    if scale_type == "packed":
        given = torch_npu.npu_trans_quant_param(given, None if offset is None else offset.npu())
    with called() as names:
        y = torch_npu.npu_quant_matmul(
            x.npu(), weight, given, offset=None if offset is None or scale_type == "packed" else offset.npu(),
            pertoken_scale=None if per_row is None else per_row.npu(), bias=None if extra is None else extra.npu(),
            output_dtype=output,
        )  # fmt: skip
    assert ("QuantMatmulWeightNz" if layout == "blocked" else "QuantMatmulV5") in names
    product = exact(x, w) + (extra.double() if bias == torch.int32 else 0)
    product = product * scale.double() * (1 if per_row is None else per_row.double().view(-1, 1))
    product = product + (extra.double() if extra is not None and bias != torch.int32 else 0)
    if output is None:
        assert y.dtype == torch.int8
        off_by_one(y, (product + 5).round().clamp(-128, 127))
    else:
        assert y.dtype == output
        near(y, product)


def test_batches_and_int32_results() -> None:
    x, w = int8(2, 3, 40), int8(2, 40, 8)
    y = torch_npu.npu_quant_matmul(x.npu(), w.npu(), torch.tensor([1.0]).bfloat16().npu(), output_dtype=torch.int32)
    assert torch.equal(y.cpu().double(), exact(x, w))


@pytest.mark.parametrize("transposed", [False, True])
def test_four_bits_by_four(transposed: bool) -> None:
    x, w, scale, rows = int4(5, 64), int4(64, 24), torch.rand(24), torch.rand(5)
    weight = packed(w.t().contiguous()).npu().t() if transposed else packed(w).npu()
    y = torch_npu.npu_quant_matmul(packed(x).npu(), weight, scale.npu(), pertoken_scale=rows.npu(), output_dtype=BF16)
    near(y, exact(x, w) * scale.double() * rows.double().view(-1, 1))


def test_four_bits_with_groups() -> None:
    x, w, rows = int4(5, 512), int4(512, 24), torch.rand(5)
    scale, offset = torch.rand(2, 24), torch.randint(-4, 4, (2, 24)).half()
    weight = packed(w.t().contiguous()).npu().t()
    y = torch_npu.npu_quant_matmul(
        packed(x).npu(), weight, scale.npu(), offset=offset.npu(), pertoken_scale=rows.npu(), output_dtype=BF16,
        group_sizes=[1, 1, 256],
    )  # fmt: skip
    first, second = slice(256), slice(256, None)
    total = exact(x[:, first], w[first] - offset[0]) * scale[0] + exact(x[:, second], w[second] - offset[1]) * scale[1]
    near(y, total * rows.unsqueeze(1))
    with pytest.raises(RuntimeError, match="group_sizes"):
        torch_npu.npu_quant_matmul(
            packed(x).npu(), weight, scale.npu(), offset=offset.npu(), pertoken_scale=rows.npu(), output_dtype=BF16,
            group_sizes=[1, 1, 128],
        )  # fmt: skip


def test_eight_bits_by_four() -> None:
    x, w, rows = int8(5, 512), int4(512, 16), torch.rand(5, 1)
    scale = (torch.rand(2, 16).view(torch.int32) & -8192).view(torch.float32)
    wide = w.double() * scale.double().repeat_interleave(256, 0)
    packed_scale = torch_npu.npu_trans_quant_param(scale.flatten().npu()).view(2, 16)
    y = torch_npu.npu_quant_matmul(
        x.npu(), packed(w).npu(), packed_scale, offset=(8 * wide.sum(0)).float().npu(), pertoken_scale=rows.npu(),
        output_dtype=torch.float16, group_sizes=[0, 0, 256],
    )  # fmt: skip
    near(y, (x.double() @ wide) * rows)


def test_quant_matmul_refuses() -> None:
    x, w, scale = int8(4, 32).npu(), int8(32, 8).npu(), torch.ones(8).npu()
    for words, arguments in (
        ("pertoken_scale", {"pertoken_scale": torch.ones(4).npu()}),
        ("y_scale", {"y_scale": torch.ones(1).npu(), "output_dtype": torch.float16}),
        ("group_sizes", {"output_dtype": BF16, "group_sizes": [1, 1, 32]}),
    ):
        with pytest.raises(RuntimeError, match=words):
            torch_npu.npu_quant_matmul(x, w, scale, **arguments)
    with pytest.raises(RuntimeError, match="inner dimension"):
        torch_npu.npu_quant_matmul(x, w[:16], scale, output_dtype=BF16)


@pytest.mark.parametrize("approximate", ["gelu_erf", "gelu_tanh"])
@pytest.mark.parametrize("blocked", [False, True])
def test_quant_matmul_gelu(approximate: str, blocked: bool, blocked_weights: Any) -> None:
    x, w, rows, scale, bias = int8(5, 64), int8(64, 32), torch.rand(5) * 1e-3, torch.rand(32), torch.randn(32)
    with called() as names:
        y = torch_npu.npu_quant_matmul_gelu(
            x.npu(), blocked_weights(w) if blocked else w.npu(), rows.npu(), scale.npu(), bias=bias.npu(),
            approximate=approximate,
        )  # fmt: skip
    assert ("FusedQuantMatmulWeightNz" if blocked else "FusedQuantMatmul") in names
    product = exact(x, w) * scale.double() * rows.double().view(-1, 1) + bias.double()
    near(y, torch.nn.functional.gelu(product, approximate="tanh" if "tanh" in approximate else "none"))


def test_quant_matmul_reduce_sum(blocked_weights: Any) -> None:
    x, w, rows, scale = int8(3, 5, 64), int8(3, 64, 32), torch.rand(3, 5) * 1e-3, torch.rand(32).bfloat16()
    with called() as names:
        y = torch_npu.npu_quant_matmul_reduce_sum(
            x.npu(), blocked_weights(w), x1_scale=rows.npu(), x2_scale=scale.npu()
        )
    assert "QuantMatmulReduceSumWeightNz" in names
    near(y, (exact(x, w) * rows.double().unsqueeze(-1) * scale.double()).sum(0))


@pytest.mark.parametrize("mode", ["pertoken", "pertensor"])
def test_quant_matmul_dequant(mode: str) -> None:
    x, w, scale, smooth = torch.randn(6, 32).half(), int8(8, 32), torch.rand(8), torch.rand(32).half() + 0.5
    given = {"smooth_scale": smooth.npu(), "x_scale": None if mode == "pertoken" else torch.tensor([0.02]).npu()}
    with called() as names:
        y = torch_npu.npu_quant_matmul_dequant(x.npu(), w.npu(), scale.npu(), quant_mode=mode, **given)
    assert "QuantMatmulDequant" in names
    wide = x.double() * smooth.double()
    step = wide.abs().amax(1, keepdim=True) / 127 if mode == "pertoken" else torch.tensor([[0.02]]).double()
    rows = (wide / step).round().clamp(-128, 127)
    torch.testing.assert_close(y.cpu().double(), rows @ w.double().t() * scale.double() * step, rtol=2e-2, atol=0.5)
    with pytest.raises(RuntimeError, match="quant_mode"):
        torch_npu.npu_quant_matmul_dequant(x.npu(), w.npu(), scale.npu(), quant_mode="perrow")


@pytest.mark.parametrize("dtype", [torch.float16, BF16])
@pytest.mark.parametrize("four", [False, True])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("shape", "group"), [((1,), 0), ((1, 16), 0), ((16,), 0), ((2, 16), 32)])
def test_weight_quant_matmul(
    dtype: torch.dtype, four: bool, transposed: bool, shape: tuple[int, ...], group: int
) -> None:
    x, w = torch.randn(5, 64).to(dtype), int4(64, 16) if four else int8(64, 16)
    scale, offset = torch.rand(shape).to(dtype) / 50, torch.randn(shape).to(dtype)
    bias = torch.randn(16).to(torch.float16 if dtype == torch.float16 else torch.float32)
    stored = w.t().contiguous() if transposed else w
    weight = (packed(stored) if four else stored).npu()
    weight = weight.t() if transposed else weight
    with called() as names:
        y = torch_npu.npu_weight_quant_batchmatmul(
            x.npu(), weight, scale.npu(), offset.npu(), bias=bias.npu(), antiquant_group_size=group
        )
    assert "WeightQuantBatchMatmulV2" in names
    spread = (lambda v: v.double().repeat_interleave(32, 0)) if group else torch.Tensor.double
    near(y, x.double() @ ((w.double() + spread(offset)) * spread(scale)) + bias.double(), 2e-2)
    with called() as names:
        faster = torch_npu.npu_weight_quant_batchmatmul(
            x.npu(), weight, scale.npu(), offset.npu(), bias=bias.npu(), antiquant_group_size=group, inner_precise=1
        )
    assert "WeightQuantBatchMatmulV3" in names
    assert torch.equal(faster.cpu(), y.cpu())
    out = torch.empty(5, 16, dtype=dtype)  # what the 950 calls with a blocked weight
    operators()["WeightQuantBatchMatmulNz"].body(x, weight.cpu(), scale, offset, None, None, bias, group, out)
    assert torch.equal(out, y.cpu())


@pytest.mark.parametrize("ready", [False, True])
def test_weight_quant_matmul_with_quantised_output(ready: bool) -> None:
    x, w, scale = torch.randn(5, 64).half(), int8(64, 16), torch.rand(16).half() / 50
    step, shift = torch.full((16,), 8.0), torch.full((16,), 3.0)
    quant = {"quant_scale": step.npu(), "quant_offset": shift.npu()}
    if ready:
        quant = {"quant_scale": torch_npu.npu_trans_quant_param(step.npu(), shift.npu())}
    y = torch_npu.npu_weight_quant_batchmatmul(x.npu(), w.npu(), scale.npu(), **quant)
    off_by_one(y, (x.double() @ (w.double() * scale.double()) * 8 + 3).round().clamp(-128, 127))


def test_weight_quant_matmul_refuses() -> None:
    x, w, scale = torch.randn(5, 64).half().npu(), int8(64, 16).npu(), torch.rand(16).half().npu()
    for words, arguments in (
        ("antiquant_scale", (x, w, scale.float())),
        ("antiquant_offset", (x, w, scale, scale[:1])),
        ("antiquant_scale", (x, w, scale[:5])),
        ("x", (x.float(), w, scale)),
    ):
        with pytest.raises(RuntimeError, match=words):
            torch_npu.npu_weight_quant_batchmatmul(*arguments)
