"""Attention and rotary embeddings that torch_npu calls on the 950 family only; run by tests/vnpu/test_on_950.py."""

from __future__ import annotations

import pytest
import torch
import torch_npu
from tests.vnpu.attention_reference import attention, close
from tests.vnpu.support import called
from torch import Tensor


def operands(value_size: int = 16) -> list[Tensor]:
    return [torch.randn(2, n, 6, d) for n, d in ((4, 48), (2, 48), (2, value_size))]


def test_fused_inference() -> None:
    x = [t.half() for t in operands()]
    options = {"num_heads": 4, "num_key_value_heads": 2, "scale": 0.2, "input_layout": "BNSD"}
    with called() as names:
        out, _ = torch_npu.npu_fused_infer_attention_score(*[t.npu() for t in x], **options)
    assert "FusedInferAttentionScoreV5" in names
    close(out, attention(*x, 0.2).out, torch.float16)


@pytest.mark.parametrize("dropped", [False, True])
def test_training(dropped: bool) -> None:
    """The kernel draws the dropout mask itself, the same for the gradient; unit values show which it kept."""
    x, keep, drop = operands(6 if dropped else 16), None, {}
    if dropped:
        x[2] = torch.eye(6).expand(2, 2, 6, 6).contiguous()
        drop = {"keep_prob": 0.5, "seed": 5, "offset": 2}
    device = [t.npu().requires_grad_() for t in x]
    with called() as names:
        out = torch_npu.npu_fusion_attention(*device, 4, "BNSD", scale=0.2, **drop)[0]
        out.sin().sum().backward()
    assert {"FlashAttentionScoreV4", "FlashAttentionScoreGradV4"} <= names
    if dropped:
        keep = out.detach().cpu() != 0
        assert 0.3 < keep.float().mean() < 0.7
    exact = [t.double().requires_grad_() for t in x]
    expected = attention(*exact, 0.2, keep=keep, keep_prob=0.5 if dropped else 1.0).out
    close(out, expected, torch.float32)
    expected.sin().sum().backward()
    for a, b in zip(device, exact, strict=True):
        close(a.grad, b.grad, torch.float32)


def test_rotated_parts_and_packed_batches() -> None:
    x, ropes = operands(), [torch.randn(2, 4, 6, 8), torch.randn(2, 2, 6, 8)]
    device = [t.npu().requires_grad_() for t in (*x, *ropes)]
    out = torch_npu.npu_fusion_attention_v2(
        *device[:3], 4, "BNSD", query_rope=device[3], key_rope=device[4], scale=0.2
    )[0]
    out.sin().sum().backward()
    exact = [t.double().requires_grad_() for t in (*x, *ropes)]
    joined = [torch.cat((exact[0], exact[3]), -1), torch.cat((exact[1], exact[4]), -1), exact[2]]
    expected = attention(*joined, 0.2).out
    close(out, expected, torch.float32)
    expected.sin().sum().backward()
    for a, b in zip(device, exact, strict=True):
        close(a.grad, b.grad, torch.float32)
    packed = [t.transpose(1, 2).flatten(0, 1) for t in x]
    ends = {"actual_seq_qlen": [6, 12], "actual_seq_kvlen": [6, 12]}
    out = torch_npu.npu_fusion_attention(*[t.npu() for t in packed], 4, "TND", scale=0.2, **ends)[0]
    close(out, attention(*x, 0.2).out.transpose(1, 2).flatten(0, 1), torch.float32)


def test_rotary_modes() -> None:
    """Quarters turn the halves of each half; interleave-half brings neighbours to halves first."""
    x, cos, sin = (torch.randn(2, 3, 5, 16) for _ in range(3))
    device = [t.npu().requires_grad_() for t in (x, cos, sin)]
    for mode in ("quarter", "interleave-half"):
        exact = [t.double().requires_grad_() for t in (x, cos, sin)]
        seen = exact[0]
        if mode == "quarter":
            a, b, c, d = seen.chunk(4, -1)
            turned = torch.cat((-b, a, -d, c), -1)
        else:
            seen = torch.cat((seen[..., ::2], seen[..., 1::2]), -1)
            turned = torch.cat((-seen[..., 8:], seen[..., :8]), -1)
        expected = seen * exact[1] + turned * exact[2]
        out = torch_npu.npu_rotary_mul(*device, mode)
        close(out, expected, torch.float32)
        grads = torch.autograd.grad(out.sin().sum(), device)
        for actual, wanted in zip(grads, torch.autograd.grad(expected.sin().sum(), exact), strict=True):
            close(actual, wanted, torch.float32)


@pytest.mark.parametrize("layout", ["SBND", "BNSD"])
def test_apply_rotary_in_other_layouts(layout: str) -> None:
    shapes = {"SBND": ((5, 2, 4, 32), (5, 1, 1, 32)), "BNSD": ((2, 4, 5, 32), (1, 1, 5, 32))}[layout]
    query, key, cos, sin = (torch.randn(s) for s in (shapes[0], shapes[0], shapes[1], shapes[1]))
    device = [t.npu() for t in (query, key)]
    torch_npu.npu_apply_rotary_pos_emb(*device, cos.npu(), sin.npu(), layout=layout, rotary_mode="interleave")
    for actual, t in zip(device, (query.double(), key.double()), strict=True):
        turned = torch.stack((-t[..., 1::2], t[..., ::2]), -1).reshape(t.shape)
        close(actual, t * cos + turned * sin, torch.float32)


def test_quant_scatter_with_a_rounding() -> None:
    x, updates, scales = torch.zeros(2, 4, 32, dtype=torch.int8), torch.randn(2, 1, 32).half(), torch.rand(32) + 0.1
    with called() as names:
        out = torch_npu.npu_quant_scatter(
            x.npu(), torch.tensor([1, 3]).int().npu(), updates.npu(), scales.npu(), axis=1, quant_axis=-1
        )
    assert "InplaceQuantScatterV2" in names
    x[0, 1:2], x[1, 3:4] = (updates.float() / scales).round().to(torch.int8)
    assert torch.equal(out.cpu(), x)


def test_prompt_attention_is_gone() -> None:
    x = [t.half().npu() for t in operands()]
    with pytest.raises(RuntimeError, match="Ascend950"):
        torch_npu.npu_prompt_flash_attention(*x, num_heads=4)


def test_sparse_attention_with_sinks() -> None:
    """A sink takes part in the softmax of its head and has no value."""
    query, key, query_rope, key_rope = (
        (torch.randn(1, s, n, d) / 4).bfloat16() for s, n, d in ((3, 5, 512), (9, 1, 512), (3, 5, 64), (9, 1, 64))
    )
    index, sinks = torch.tensor([[2, 0, -1], [8, 4, 1], [3, 6, 5]]).int(), torch.randn(5)
    with called() as names:
        out = torch_npu.npu_sparse_flash_attention(
            query.npu(),
            key.npu(),
            key.npu(),
            index[None, :, None].npu(),
            0.1,
            query_rope=query_rope.npu(),
            key_rope=key_rope.npu(),
            sparse_mode=0,
            attention_mode=2,
            sinks=sinks.npu(),
        )[0]
    assert "SparseFlashAttentionV2" in names
    seen = torch.zeros(3, 9, dtype=torch.bool)
    for row, numbers in enumerate(index.tolist()):
        seen[row, [n for n in numbers if n >= 0]] = True
    q, k = (torch.cat(pair, -1).transpose(1, 2) for pair in ((query, query_rope), (key, key_rope)))
    close(out, attention(q, k, key.transpose(1, 2), 0.1, seen, sink=sinks).out.transpose(1, 2), torch.bfloat16)


def test_indexer_of_float8() -> None:
    query, key = (torch.randn(1, s, n, 128).to(torch.float8_e4m3fn) for s, n in ((2, 8), (12, 1)))
    scales = [torch.rand(s) / 10 for s in ((1, 2, 8), (1, 12, 1))]
    weights = torch.randn(1, 2, 8).bfloat16()
    index = torch_npu.npu_quant_lightning_indexer(
        query.npu(), key.npu(), weights.npu(), *[s.npu() for s in scales], 0, 0, sparse_count=4, sparse_mode=0
    )
    q, k = (x[0].double() * s[0].double()[..., None] for x, s in zip((query, key), scales, strict=True))
    scores = (torch.einsum("snd,kd->snk", q, k[:, 0]).relu() * weights[0].double()[..., None]).sum(1)
    best = scores.sort(1, descending=True).values[:, :4]
    torch.testing.assert_close(scores.gather(1, index.cpu()[0, :, 0].long()), best, rtol=1e-4, atol=1e-4)
