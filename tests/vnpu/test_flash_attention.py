"""npu_fusion_attention and scaled_dot_product_attention: outputs, statistics and gradients against float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch_npu
from tests.vnpu.attention_reference import FAR, attention, close, seen_by, triangle
from tests.vnpu.support import called
from torch import Tensor

TO_LAYOUT = {
    "BNSD": lambda x: x,
    "BSND": lambda x: x.transpose(1, 2).contiguous(),
    "BSH": lambda x: x.transpose(1, 2).flatten(2),
    "SBH": lambda x: x.permute(2, 0, 1, 3).flatten(2),
}
FROM_LAYOUT = {
    "BNSD": lambda x, n: x,
    "BSND": lambda x, n: x.transpose(1, 2),
    "BSH": lambda x, n: x.unflatten(2, (n, -1)).transpose(1, 2),
    "SBH": lambda x, n: x.unflatten(2, (n, -1)).permute(1, 2, 0, 3),
}


def operands(
    heads: int = 4, kv_heads: int = 2, queries: int = 9, keys: int = 9, size: int = 16, value_size: int | None = None
) -> list[Tensor]:
    shapes = ((2, heads, queries, size), (2, kv_heads, keys, size), (2, kv_heads, keys, value_size or size))
    return [torch.randn(shape) for shape in shapes]


def run(x: list[Tensor], layout: str = "BNSD", v2: bool = False, **options: Any) -> tuple[Any, list[Tensor], set[str]]:
    """Forward and backward on the device: results, gradients (in BNSD) and the functions that ran."""
    heads = x[0].shape[1]
    device = [TO_LAYOUT[layout](t).npu().requires_grad_() for t in x]
    with called() as names:
        function = torch_npu.npu_fusion_attention_v2 if v2 else torch_npu.npu_fusion_attention
        result = function(*device, heads, layout, **options)
        torch.manual_seed(1)
        weight = torch.randn(FROM_LAYOUT[layout](result[0].detach().cpu(), heads).shape)
        result[0].backward(TO_LAYOUT[layout](weight.to(result[0].dtype)).npu())
    grads = [
        FROM_LAYOUT[layout](t.grad.cpu(), t.shape[1] if t.dim() == 4 and layout == "BNSD" else s.shape[1])
        for t, s in zip(device, x, strict=True)
    ]
    return result, [weight, *grads], names


def check(x: list[Tensor], result: Any, grads: list[Tensor], layout: str = "BNSD", **reference: Any) -> None:
    dtype = x[0].dtype
    exact = [t.double().requires_grad_() for t in x]
    expected = attention(*exact, **reference)
    expected.out.backward(grads[0].to(dtype).double())
    close(FROM_LAYOUT[layout](result[0], x[0].shape[1]), expected.out, dtype)
    close(result[1], expected.maximum.expand(*expected.maximum.shape[:3], 8), torch.float32)
    close(result[2], expected.total.expand(*expected.total.shape[:3], 8), torch.float32)
    for actual, t in zip(grads[1:], exact, strict=True):
        assert t.grad is not None
        close(actual, t.grad, dtype)


@pytest.mark.parametrize("layout", TO_LAYOUT)
def test_layouts_and_grouped_heads(layout: str) -> None:
    x = operands(value_size=8, keys=13)
    result, grads, names = run(x, layout, scale=0.25)
    assert {"FlashAttentionScore", "FlashAttentionScoreGrad"} <= names
    check(x, result, grads, layout, scale=0.25)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    x = [t.to(dtype) for t in operands()]
    result, grads, _ = run(x, scale=0.25)
    assert result[0].dtype == dtype and result[1].dtype == torch.float32
    check(x, result, grads, scale=0.25)


MODES = [(0, 3, 2), (0, 5, -2), (0, -2, 6), (1, 1, 1), (2, 1, 1), (3, 1, 1), (4, 4, 2), (4, 3, -1)]


@pytest.mark.parametrize(("queries", "keys"), [(7, 7), (7, 12), (12, 7), (150, 170)])
@pytest.mark.parametrize(("mode", "pre", "after"), MODES)
def test_sparse_modes(mode: int, pre: int, after: int, queries: int, keys: int) -> None:
    x = operands(heads=2, kv_heads=1, queries=queries, keys=keys)
    mask = triangle() if mode >= 2 else torch.rand(2, 1, queries, keys) < 0.2
    options = {"atten_mask": mask.npu(), "sparse_mode": mode, "pre_tockens": pre, "next_tockens": after}
    result, grads, _ = run(x, scale=0.25, inner_precise=2, **options)
    seen = seen_by(mode, queries, keys, pre, after)
    check(x, result, grads, scale=0.25, seen=seen if mode >= 2 else seen & ~mask)


@pytest.mark.parametrize("shape", [(2, 4, 9, 11), (2, 1, 9, 11), (1, 1, 9, 11), (9, 11)])
@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8])
def test_mask_shapes(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, mask = operands(keys=11), torch.rand(shape) < 0.4
    result, grads, _ = run(x, scale=0.25, atten_mask=mask.to(dtype).npu())
    check(x, result, grads, scale=0.25, seen=~mask)


@pytest.mark.parametrize("mode", [5, 6])
def test_prefix(mode: int) -> None:
    x, prefix = operands(queries=6, keys=10), [4, 7]
    seen = torch.stack([seen_by(mode, 6, 10, prefix=p) for p in prefix])[:, None]
    mask = triangle(with_prefix=True) if mode == 6 else ~seen
    result, grads, _ = run(x, scale=0.25, atten_mask=mask.npu(), sparse_mode=mode, prefix=prefix)
    check(x, result, grads, scale=0.25, seen=seen)


def test_no_mask_means_everything_whatever_the_mode() -> None:
    x = operands()
    result, grads, _ = run(x, scale=0.25, sparse_mode=2, pre_tockens=0, next_tockens=0)
    check(x, result, grads, scale=0.25)


@pytest.mark.parametrize("shape", [(2, 4, 9, 11), (2, 4, 1, 11), (1, 4, 9, 11)])
@pytest.mark.parametrize("pse_type", [0, 1])
def test_position_encoding(shape: tuple[int, ...], pse_type: int) -> None:
    x, pse = operands(keys=11), torch.randn(shape)
    device = pse.npu().requires_grad_()
    result, grads, names = run(x, v2=True, scale=0.25, pse=device, pse_type=pse_type)
    assert {"FlashAttentionScoreV2", "FlashAttentionScoreGradV2"} <= names
    exact = pse.double().requires_grad_()
    check(x, result, grads, scale=0.25, bias=exact, bias_first=pse_type == 1)
    close(device.grad, exact.grad, torch.float32)


@pytest.mark.parametrize("shape", [(4,), (2, 4)])
def test_alibi_slopes(shape: tuple[int, ...]) -> None:
    x, slopes = operands(keys=11), torch.rand(shape)
    device, exact = slopes.npu().requires_grad_(), slopes.double().requires_grad_()
    distance = (torch.arange(9.0)[:, None] + 2 - torch.arange(11.0) - 1).abs()
    bias = -exact.view(-1, 4, 1, 1) * distance
    starts = {"q_start_idx": [2], "kv_start_idx": [1]}
    result, grads, _ = run(x, v2=True, scale=0.25, pse=device, pse_type=2, **starts)
    check(x, result, grads, scale=0.25, bias=bias)
    close(device.grad, exact.grad, torch.float32)


def test_alibi_given_by_its_last_rows() -> None:
    size, slope = 1100, torch.tensor([0.5, 0.25]).view(1, 2, 1, 1)
    full = -slope * (torch.arange(size)[:, None] - torch.arange(size)).abs()
    x = [torch.randn(1, 2, size, 16) for _ in range(3)]
    options = {"atten_mask": triangle().npu(), "sparse_mode": 2, "scale": 0.25}
    device = [t.npu() for t in x]
    out = torch_npu.npu_fusion_attention(*device, 2, "BNSD", pse=full[:, :, -1024:].contiguous().npu(), **options)[0]
    close(
        out,
        attention(
            *x,
            0.25,
            seen=full[0, 0] > -1e9,
            bias=full.masked_fill(torch.ones(size, size, dtype=torch.bool).triu(1), -torch.inf),
            bias_first=True,
        ).out,
        torch.float32,
    )


def test_sink() -> None:
    x, sink = operands(), torch.randn(4)
    device, exact = sink.npu().requires_grad_(), sink.double().requires_grad_()
    result, grads, names = run(x, scale=0.25, sink=device)
    assert {"FlashAttentionScoreV3", "FlashAttentionScoreGradV3"} <= names
    check(x, result, grads, scale=0.25, sink=exact)
    close(device.grad, exact.grad, torch.float32)


def bits(keep: Tensor) -> Tensor:
    """One bit per element, the lowest first, as DropoutGenMask writes them, with its 32 spare bytes."""
    flat = torch.nn.functional.pad(keep.flatten().to(torch.uint8), (0, -keep.numel() % 128))
    packed = (flat.view(-1, 8) * torch.tensor([1 << i for i in range(8)], dtype=torch.uint8)).sum(1).to(torch.uint8)
    return torch.nn.functional.pad(packed, (0, 32))


def test_a_given_dropout_mask() -> None:
    x, keep = operands(keys=11), torch.rand(2, 4, 9, 11) < 0.7
    device = [t.npu() for t in x]
    result = torch_npu.npu_fusion_attention(
        *device, 4, "BNSD", scale=0.25, keep_prob=0.7, dropout_mask=bits(keep).npu()
    )
    close(result[0], attention(*x, 0.25, keep=keep, keep_prob=0.7).out, torch.float32)


def test_drawn_dropout_and_its_gradient() -> None:
    """The forward pass draws with seed and offset, the backward pass draws the same again."""
    x = [
        torch.randn(1, 2, 40, 16),
        torch.randn(1, 2, 40, 16),
        torch.eye(40).expand(1, 2, 40, 40).contiguous()[..., :16],
    ]
    result, grads, names = run(x, scale=0.25, keep_prob=0.6)
    assert "DropoutGenMaskV2" in names
    seed, offset, count = result[4:]
    drawn = torch_npu._npu_dropout_gen_mask(x[0].npu(), [count], p=0.4, seed=seed, offset=offset).cpu()
    keep = ((drawn[:, None] >> torch.arange(8, dtype=torch.uint8)) & 1).flatten()[:count].view(1, 2, 40, 40)
    assert 0.5 < keep.float().mean() < 0.7
    check(x, result, grads, scale=0.25, keep=keep, keep_prob=0.6)


def test_non_contiguous_operands() -> None:
    source = operands()
    x = [t.transpose(1, 2).contiguous().npu().transpose(1, 2) for t in source]
    assert not x[0].is_contiguous()
    close(torch_npu.npu_fusion_attention(*x, 4, "BNSD", scale=0.25)[0], attention(*source, 0.25).out, torch.float32)


def test_queries_that_see_nothing_give_zeros() -> None:
    x, mask = operands(), torch.zeros(9, 9, dtype=torch.bool)
    mask[3] = True
    result, grads, _ = run(x, scale=0.25, atten_mask=mask.npu(), inner_precise=2)
    assert result[0].cpu()[:, :, 3].abs().max() == 0 and result[2].cpu()[:, :, 3].max() == 0
    check(x, result, grads, scale=0.25, seen=~mask)


@pytest.mark.parametrize(("causal", "masked"), [(False, False), (False, True), (True, False)])
@pytest.mark.parametrize("size", [16, 10])
def test_scaled_dot_product_attention(causal: bool, masked: bool, size: int) -> None:
    """Head sizes that the device cannot take go through torch's own composition."""
    x = operands(kv_heads=4, size=size)
    mask = torch.rand(2, 1, 9, 9) < 0.8 if masked else None
    device, host = [t.npu().requires_grad_() for t in x], [t.clone().requires_grad_() for t in x]
    function = torch.nn.functional.scaled_dot_product_attention
    with called() as names:
        out = function(*device, attn_mask=None if mask is None else mask.npu(), is_causal=causal)
        out.sum().backward()
    assert ("FlashAttentionScore" in names) == (size % 4 == 0)
    expected = function(*host, attn_mask=mask, is_causal=causal)
    expected.sum().backward()
    close(out, expected, torch.float32)
    for a, b in zip(device, host, strict=True):
        close(a.grad, b.grad, torch.float32)


def test_long_sequences_come_in_tiles() -> None:
    x = [torch.randn(1, n, 700, 32) for n in (6, 2, 2)]
    options = {"atten_mask": triangle().npu(), "sparse_mode": 4, "pre_tockens": 300, "next_tockens": 5}
    result, grads, _ = run(x, scale=0.2, **options)
    check(x, result, grads, scale=0.2, seen=seen_by(4, 700, 700, 300, 5))


REFUSED = [
    ({"sparse_mode": 7}, "sparse_mode"),
    ({"atten_mask": torch.ones(2048, 2048, dtype=torch.bool), "sparse_mode": 2}, "atten_mask"),
    ({"atten_mask": torch.ones(3, 9, 9, dtype=torch.bool)}, "atten_mask"),
    ({"atten_mask": torch.zeros(2048, 2048), "sparse_mode": 3}, "atten_mask"),
    ({"atten_mask": triangle(with_prefix=True), "sparse_mode": 6}, "prefix"),
    ({"atten_mask": triangle(with_prefix=True), "sparse_mode": 6, "prefix": [4, 12]}, "prefix"),
    ({"padding_mask": torch.zeros(2)}, "padding_mask"),
    ({"pse": torch.zeros(2, 4, 9, 9, dtype=torch.float16)}, "pse"),
    ({"pse": torch.zeros(2, 2, 9, 9)}, "pse"),
    ({"inner_precise": 3}, "inner_precise"),
    ({"keep_prob": 0.5, "dropout_mask": torch.zeros(8, dtype=torch.uint8)}, "drop_mask"),
    ({"sink": torch.zeros(3)}, "sink"),
]


@pytest.mark.parametrize(("options", "named"), REFUSED)
def test_refusals(options: dict[str, Any], named: str) -> None:
    device = {k: v.npu() if isinstance(v, Tensor) else v for k, v in options.items()}
    with pytest.raises(RuntimeError, match=named):
        torch_npu.npu_fusion_attention(*[t.npu() for t in operands()], 4, "BNSD", **device)


def test_refuses_other_heads_types_and_square_roots() -> None:
    x = [t.npu() for t in operands(heads=3)]
    with pytest.raises(RuntimeError, match="the number of heads"):
        torch_npu.npu_fusion_attention(*x, 3, "BNSD")
    x = [t.npu() for t in operands()]
    with pytest.raises(RuntimeError, match="all of one type"):
        torch_npu.npu_fusion_attention(x[0], x[1].half(), x[2], 4, "BNSD")
    with pytest.raises(RuntimeError, match="pse_type"):
        torch_npu.npu_fusion_attention_v2(*x, 4, "BNSD", pse=torch.ones(4).npu(), pse_type=3)
    assert FAR == 2**31 - 1
