"""Products in groups, against one product per group."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch_npu
from tests.vnpu.quantised_data import BF16, exact, int4, int8, near, off_by_one, packed
from tests.vnpu.support import called

from gallium.vnpu.registry import operators

GROUPS, DEPTH, COLUMNS = 3, 64, 32
SIZES = [2, 0, 5]
ROWS = sum(SIZES)
LISTS = {0: torch.tensor([2, 2, 7]), 1: torch.tensor(SIZES)}


@pytest.fixture
def blocked_weights() -> Any:
    torch.npu.config.allow_internal_format = True
    yield lambda x: torch_npu.npu_format_cast(x.npu(), 29)
    torch.npu.config.allow_internal_format = False


def parts(x: torch.Tensor) -> list[torch.Tensor]:
    return list(x.split(SIZES))


def by_group(x: torch.Tensor, w: torch.Tensor, *more: torch.Tensor) -> torch.Tensor:
    """Each group's rows times its weight, and then times the rest, all in float64."""
    result = []
    for group, rows in enumerate(parts(x)):
        product = exact(rows, w[group])
        for factor in more:
            product = product * factor[group].double()
        result.append(product)
    return torch.cat(result)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, BF16])
@pytest.mark.parametrize("list_type", [0, 1])
@pytest.mark.parametrize("form", ["one weight", "many weights", "many of both", "blocked", "transposed"])
@pytest.mark.parametrize("with_bias", [False, True])
def test_rows(dtype: torch.dtype, list_type: int, form: str, with_bias: bool, blocked_weights: Any) -> None:
    x, w = torch.randn(ROWS, DEPTH).to(dtype), torch.randn(GROUPS, DEPTH, COLUMNS).to(dtype)
    bias = torch.randn(GROUPS, COLUMNS).to(torch.float16 if dtype == torch.float16 else torch.float32)
    single = form in ("one weight", "blocked", "transposed")
    weights = {
        "blocked": lambda: [blocked_weights(w)],
        "transposed": lambda: [w.transpose(1, 2).contiguous().npu().transpose(1, 2)],
        "one weight": lambda: [w.npu()],
    }.get(form, lambda: [v.npu() for v in w])()
    arguments = {"group_list": LISTS[list_type].npu(), "group_list_type": list_type}
    with called() as names:
        y = torch_npu.npu_grouped_matmul(
            [p.contiguous().npu() for p in parts(x)] if form == "many of both" else [x.npu()], weights,
            bias=([bias.npu()] if single else [b.npu() for b in bias]) if with_bias else None,
            split_item=3, group_type=0, **(arguments if form != "many of both" else {}),
        )  # fmt: skip
    assert ("GroupedMatmulWeightNz" if form == "blocked" else "GroupedMatmulV5") in names
    expected = by_group(x, w) + (bias[[0, 0, 2, 2, 2, 2, 2]].double() if with_bias else 0)
    torch.testing.assert_close(y[0].cpu().double(), expected, rtol=1e-2, atol=0.1 if dtype != torch.float32 else 1e-4)


def test_separate_products_of_any_rank() -> None:
    xs, ws = [torch.randn(2, 3, 8), torch.randn(1, 4, 6)], [torch.randn(8, 5), torch.randn(6, 7)]
    y = torch_npu.npu_grouped_matmul([x.npu() for x in xs], [w.npu() for w in ws], split_item=0, group_type=-1)
    for result, x, w in zip(y, xs, ws, strict=True):
        near(result, x @ w, 1e-4)


def test_groups_of_the_inner_dimension() -> None:
    x, w = torch.randn(4, 7).half(), torch.randn(7, 8).half()
    y = torch_npu.npu_grouped_matmul([x.npu()], [w.npu()], group_list=LISTS[0].npu(), split_item=3, group_type=2)
    for result, a, b in zip(y[0], x.split(SIZES, 1), w.split(SIZES), strict=True):
        near(result, a.double() @ b.double())
    total = torch.randn(GROUPS * 4, 8)
    ours = total.npu()
    with called() as names:
        torch_npu.npu_grouped_matmul_add_(ours, x.t().contiguous().npu(), w.npu(), LISTS[0].npu())
    assert "GroupedMatmulAdd" in names
    added = torch.cat([a.double() @ b.double() for a, b in zip(x.split(SIZES, 1), w.split(SIZES), strict=True)])
    near(ours, total.double() + added)
    sizes_given = total.clone()
    operators()["GroupedMatmulAddV2"].body(x.t(), w, LISTS[1], sizes_given, True, False, 2, 1)
    near(sizes_given, total.double() + added)


@pytest.mark.parametrize(("output", "scale_dtype"), [(BF16, BF16), (torch.float16, torch.float32)])
@pytest.mark.parametrize("act", [0, 1, 2, 4, 5])
@pytest.mark.parametrize("blocked", [False, True])
def test_int8(output: torch.dtype, scale_dtype: torch.dtype, act: int, blocked: bool, blocked_weights: Any) -> None:
    x, w, rows = int8(ROWS, DEPTH), int8(GROUPS, DEPTH, COLUMNS), torch.rand(ROWS) + 0.5
    scale = (torch.rand(GROUPS, COLUMNS) * 1e-3).to(scale_dtype)
    bias = torch.randint(-500, 500, (GROUPS, COLUMNS), dtype=torch.int32)
    y = torch_npu.npu_grouped_matmul(
        [x.npu()], [blocked_weights(w) if blocked else w.npu()], bias=[bias.npu()], scale=[scale.npu()],
        per_token_scale=[rows.npu()], group_list=LISTS[1].npu(), group_list_type=1, split_item=3, group_type=0,
        act_type=act, output_dtype=output,
    )  # fmt: skip
    product = torch.cat([(exact(p, w[g]) + bias[g].double()) * scale[g].double() for g, p in enumerate(parts(x))])
    product = product * rows.double().unsqueeze(1)
    activate = {
        0: lambda v: v, 1: torch.relu, 2: lambda v: torch.nn.functional.gelu(v, approximate="tanh"),
        4: lambda v: v * torch.sigmoid(1.702 * v), 5: torch.nn.functional.silu,
    }[act]  # fmt: skip
    near(y[0], activate(product))


def test_int8_to_int8_and_pairs() -> None:
    x, w = int8(ROWS, DEPTH), int8(GROUPS, DEPTH, COLUMNS)
    scale = (torch.full((GROUPS, COLUMNS), 2**-10)).float()
    words = torch.stack([torch_npu.npu_trans_quant_param(s.npu()) for s in scale])
    y = torch_npu.npu_grouped_matmul(
        [x.npu()], [w.npu()], scale=[words], group_list=LISTS[0].npu(), split_item=3, group_type=0,
        output_dtype=torch.int8,
    )  # fmt: skip
    off_by_one(y[0], (by_group(x, w) * 2**-10).round().clamp(-128, 127))
    y = torch_npu.npu_grouped_matmul(
        [x.npu()], [w.npu()], scale=[scale.bfloat16().npu()], group_list=torch.tensor([[2, 2], [0, 5]]).npu(),
        group_list_type=2, split_item=3, group_type=0, output_dtype=BF16,
    )  # fmt: skip
    near(y[0], torch.cat([exact(x[:2], w[2]), exact(x[2:], w[0])]) * 2**-10)


@pytest.mark.parametrize(("four", "groups"), [(False, 0), (True, 0), (True, 2)])
def test_weights_only(four: bool, groups: int) -> None:
    x, w = torch.randn(ROWS, DEPTH).bfloat16(), (int4 if four else int8)(GROUPS, DEPTH, COLUMNS)
    shape = (GROUPS, groups, COLUMNS) if groups else (GROUPS, COLUMNS)
    scale, offset = (torch.rand(shape) / 50).bfloat16(), torch.randn(shape).bfloat16()
    y = torch_npu.npu_grouped_matmul(
        [x.npu()], [packed(w).npu() if four else w.npu()], antiquant_scale=[scale.npu()],
        antiquant_offset=[offset.npu()], group_list=LISTS[0].npu(), split_item=3, group_type=0,
    )  # fmt: skip
    spread = (lambda v: v.double().repeat_interleave(DEPTH // groups, 1)) if groups else (lambda v: v.double()[:, None])
    near(y[0], by_group(x, (w.double() + spread(offset)) * spread(scale)), 2e-2)


def test_eight_bits_by_four() -> None:
    x, w, rows = int8(ROWS, 512), int4(GROUPS, 512, COLUMNS), torch.rand(ROWS) + 0.5
    scale = torch.rand(GROUPS, 2, COLUMNS)
    wide = w.double() * scale.double().repeat_interleave(256, 1)
    words = (scale.view(torch.int32).long() & 0xFFFFFFFF).npu()
    y = torch_npu.npu_grouped_matmul(
        [x.npu()], [packed(w).npu()], bias=[(8 * wide.sum(1)).float().npu()], scale=[words],
        per_token_scale=[rows.npu()], group_list=LISTS[1].npu(), group_list_type=1, split_item=3, group_type=0,
        output_dtype=BF16,
    )  # fmt: skip
    near(y[0], by_group(x, wide) * rows.double().unsqueeze(1))


@pytest.mark.parametrize("shape", [(GROUPS, COLUMNS), (GROUPS, 1, COLUMNS)])
def test_eight_bits_by_four_with_a_scale_per_column(shape: tuple[int, ...]) -> None:
    """As vllm-ascend calls it for msModelSlim's W4A8: the bias makes up for the halves here too."""
    x, w, rows = int8(ROWS, DEPTH), int4(GROUPS, DEPTH, COLUMNS), torch.rand(ROWS) + 0.5
    scale = torch.rand(GROUPS, 1, COLUMNS)
    wide = w.double() * scale.double()
    words = (scale.view(torch.int32).long() & 0xFFFFFFFF).view(shape).npu()
    y = torch_npu.npu_grouped_matmul(
        [x.npu()], [packed(w).npu()], bias=[(8 * wide.sum(1)).float().npu()], scale=[words],
        per_token_scale=[rows.npu()], group_list=LISTS[1].npu(), group_list_type=1, split_item=3, group_type=0,
        output_dtype=BF16,
    )  # fmt: skip
    near(y[0], by_group(x, wide) * rows.double().unsqueeze(1))


def test_eight_bits_by_four_in_blocks(blocked_weights: Any) -> None:
    x, w = int8(ROWS, 512), int4(GROUPS, 512, 64)
    scale = torch.rand(GROUPS, 2, 64)
    wide = w.double() * scale.double().repeat_interleave(256, 1)
    words = (scale.view(torch.int32).long() & 0xFFFFFFFF).npu()
    weight = torch_npu.npu_quantize(
        blocked_weights(w.float()), torch.tensor([1.0]).npu(), None, torch.quint4x2, -1, False
    )
    assert torch_npu.get_npu_format(weight) == 29
    with called() as names:
        y = torch_npu.npu_grouped_matmul(
            [x.npu()], [weight], bias=[(8 * wide.sum(1)).float().npu()], scale=[words],
            per_token_scale=[torch.ones(ROWS).npu()], group_list=LISTS[1].npu(), group_list_type=1, split_item=3,
            group_type=0, output_dtype=BF16,
        )  # fmt: skip
    assert "GroupedMatmulWeightNz" in names
    near(y[0], by_group(x, wide))


def test_host_list_and_v4() -> None:
    x, w = torch.randn(ROWS, DEPTH), torch.randn(GROUPS, DEPTH, COLUMNS)
    expected = by_group(x, w)
    with called() as names:
        y = torch_npu.npu_grouped_matmul([x.npu()], [v.npu() for v in w], group_list=LISTS[0].tolist(), split_item=3)
    near(y[0], expected, 1e-4)
    assert "GroupedMatmul" in names
    out = torch.empty(ROWS, COLUMNS)
    none = ()
    operators()["GroupedMatmulV4"].body(
        (x,), (w,), none, none, none, none, none, none, LISTS[0], none, none, none, 3, 0, 0, 0, (out,), none, none
    )
    near(out, expected, 1e-4)


def test_refusals() -> None:
    x, w, ends = torch.randn(ROWS, DEPTH).npu(), torch.randn(GROUPS, DEPTH, COLUMNS).npu(), LISTS[0].npu()
    for words, arguments in (
        ("act_type", {"act_type": 1}),
        ("group_list_type", {"group_list_type": 3}),
        ("offset", {"offset": [x]}),
        ("activation_input", {"activation_input": [x]}),
        ("group_list", {"group_list": ends + 1}),
        ("the length of group_list", {"group_list": torch.tensor([ROWS]).npu(), "group_list_type": 1}),
    ):
        with pytest.raises(RuntimeError, match=words):
            torch_npu.npu_grouped_matmul(
                [x], [w], **({"group_list": ends, "split_item": 3, "group_type": 0} | arguments)
            )


def swiglu_quantised(product: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    act, gate = product.chunk(2, -1)
    gated = torch.nn.functional.silu(act) * gate
    step = gated.abs().amax(-1) / 127
    return (gated / step.unsqueeze(-1)).round(), step


def test_swiglu_quant(blocked_weights: Any) -> None:
    x, w = int8(ROWS, DEPTH), int8(GROUPS, DEPTH, COLUMNS)
    scale, rows = torch.rand(GROUPS, COLUMNS) * 1e-3, torch.rand(ROWS) + 0.5
    values, step = swiglu_quantised(by_group(x, w, scale) * rows.double().unsqueeze(1))
    with called() as names:
        y, y_scale, _ = torch_npu.npu_grouped_matmul_swiglu_quant(
            x.npu(), blocked_weights(w), LISTS[0].npu(), scale.npu(), rows.npu()
        )
        y2, y2_scale = torch_npu.npu_grouped_matmul_swiglu_quant_v2(
            x.npu(), [blocked_weights(w)], [scale.npu()], rows.npu(), LISTS[1].npu(), group_list_type=1
        )
    assert {"GroupedMatmulSwigluQuantWeightNZ", "GroupedMatmulSwigluQuantWeightNzV2"} <= names
    off_by_one(y, values)
    near(y_scale, step, 1e-4)
    assert torch.equal(y2.cpu(), y.cpu())
    assert torch.equal(y2_scale.cpu(), y_scale.cpu())


def test_swiglu_quant_of_four_bits() -> None:
    x, w, rows = int8(ROWS, DEPTH), int4(GROUPS, DEPTH, COLUMNS), torch.rand(ROWS) * 1e-2
    for groups in (1, 2):
        scale = torch.rand(GROUPS, groups, COLUMNS)
        wide = w.double() * scale.double().repeat_interleave(DEPTH // groups, 1)
        words = (scale.view(torch.int32).long() & 0xFFFFFFFF).squeeze(1).view(torch.uint64)
        with called() as names:
            y, y_scale = torch_npu.npu_grouped_matmul_swiglu_quant_v2(
                x.npu(), [packed(w).npu()], [words.npu()], rows.npu(), LISTS[0].npu(),
                weight_assist_matrix=[(8 * wide.sum(1)).float().npu()], dequant_mode=groups - 1,
            )  # fmt: skip
        assert "GroupedMatmulSwigluQuantV2" in names
        values, step = swiglu_quantised(by_group(x, wide) * rows.double().unsqueeze(1))
        off_by_one(y, values)
        near(y_scale, step, 1e-3)
    small, smooth = int4(ROWS, DEPTH), torch.rand(GROUPS, COLUMNS // 2) + 0.5
    scale = torch.rand(GROUPS, COLUMNS) * 1e-2
    y, _ = torch_npu.npu_grouped_matmul_swiglu_quant_v2(
        packed(small).npu(), [packed(w).npu()], [scale.npu()], torch.ones(ROWS).npu(), LISTS[0].npu(),
        smooth_scale=smooth.npu(),
    )  # fmt: skip
    act, gate = by_group(small, w, scale).chunk(2, -1)
    gated = torch.nn.functional.silu(act) * gate * smooth[[0, 0, 2, 2, 2, 2, 2]].double()
    off_by_one(y, (gated / (gated.abs().amax(-1, keepdim=True) / 127)).round())


@pytest.mark.parametrize("list_type", [0, 1])
def test_finalize_routing(list_type: int, blocked_weights: Any) -> None:
    x, w = int8(ROWS, DEPTH), int8(GROUPS, DEPTH, COLUMNS)
    scale, rows, logit = torch.rand(GROUPS, COLUMNS) * 1e-3, torch.rand(ROWS), torch.rand(ROWS)
    index, shared = torch.tensor([0, 3, 1, 0, 2, 3, 1]), torch.randn(2, COLUMNS).bfloat16()
    with called() as names:
        y = torch_npu.npu_grouped_matmul_finalize_routing(
            x.npu(), blocked_weights(w), LISTS[list_type].npu(), scale=scale.npu(), pertoken_scale=rows.npu(),
            shared_input=shared.npu(), logit=logit.npu(), row_index=index.npu(), shared_input_weight=0.5,
            shared_input_offset=1, output_bs=4, group_list_type=list_type,
        )  # fmt: skip
    assert any(name.startswith("GroupedMatmulFinalizeRoutingWeightNz") for name in names), names
    product = by_group(x, w, scale) * (rows * logit).double().unsqueeze(1)
    expected = torch.zeros(4, COLUMNS, dtype=torch.float64).index_add_(0, index, product)
    expected[1:3] += 0.5 * shared.double()
    near(y, expected, 1e-4)
    out = torch.empty(4, COLUMNS)
    head = (x, w, scale, None, None, None, None, rows, LISTS[list_type], shared, logit, index, 0, 0.5, 1, False, False)
    operators()["GroupedMatmulFinalizeRoutingV2"].body(*head, list_type, out)
    near(out, expected, 1e-4)
    head = (x, w, scale, None, rows, LISTS[list_type], shared, logit, index, 0, 0.5, 1, False, False)
    operators()["GroupedMatmulFinalizeRoutingWeightNz"].body(*head, list_type, out.zero_())
    near(out, expected, 1e-4)


def test_finalize_routing_of_four_bits() -> None:
    x, w = int8(ROWS, 512), int4(GROUPS, 512, COLUMNS)
    scale, shift = torch.rand(GROUPS, 2, COLUMNS) * 1e-2, torch.randn(GROUPS, 2, COLUMNS) * 1e-2
    rows, logit, index = torch.rand(ROWS), torch.rand(ROWS), torch.tensor([0, 3, 1, 0, 2, 3, 1])
    wide = w.double() * scale.double().repeat_interleave(256, 1)
    words = (scale.view(torch.int32).long() & 0xFFFFFFFF).npu()
    with called() as names:
        y = torch_npu.npu_grouped_matmul_finalize_routing(
            x.npu(), packed(w).npu(), LISTS[1].npu(), scale=words, bias=(8 * wide.sum(1)).float().npu(),
            offset=shift.npu(), pertoken_scale=rows.npu(), logit=logit.npu(), row_index=index.npu(), output_bs=4,
        )  # fmt: skip
    assert "GroupedMatmulFinalizeRoutingV3" in names
    shifted = wide + shift.double().repeat_interleave(256, 1)
    product = by_group(x, shifted) * (rows * logit).double().unsqueeze(1)
    near(y, torch.zeros(4, COLUMNS, dtype=torch.float64).index_add_(0, index, product), 1e-3)


@pytest.mark.parametrize("blocked", [False, True])
@pytest.mark.parametrize("mode", ["pertoken", "pertensor"])
def test_grouped_dequant(mode: str, blocked: bool, blocked_weights: Any) -> None:
    x, w, scale = torch.randn(ROWS, DEPTH).half(), int8(GROUPS, COLUMNS, DEPTH), torch.rand(GROUPS, COLUMNS)
    given = {} if mode == "pertoken" else {"x_scale": torch.tensor([0.02]).npu()}
    with called() as names:
        y = torch_npu.npu_quant_grouped_matmul_dequant(
            x.npu(), blocked_weights(w) if blocked else w.npu(), scale.npu(), LISTS[0].npu(), quant_mode=mode, **given
        )
    assert f"QuantGroupedMatmulDequant{'WeightNZ' if blocked else ''}" in names
    step = x.double().abs().amax(1, keepdim=True) / 127 if mode == "pertoken" else torch.tensor([[0.02]]).double()
    values = (x.double() / step).round().clamp(-128, 127)
    expected = by_group(values, w.transpose(1, 2), scale) * step
    torch.testing.assert_close(y.cpu().double(), expected, rtol=2e-2, atol=1.0)
