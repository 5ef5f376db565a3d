"""Sparse attention (chosen tokens, chosen blocks, pivots) against dense attention with masks, in float64."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import pytest
import torch
import torch_npu
from tests.vnpu.attention_reference import attention, close
from tests.vnpu.support import called
from torch import Tensor

BF16 = torch.bfloat16


def indices_of(rows: int, keys: int, block: int, count: int) -> Tensor:
    """Block numbers [rows, 1, count], -1 after the valid ones."""
    blocks = -(-keys // block)
    found = torch.full((rows, 1, count), -1, dtype=torch.int32)
    for row in range(rows):
        n = int(torch.randint(1, min(count, blocks) + 1, (1,)))
        found[row, 0, :n] = torch.randperm(blocks)[:n]
    return found


def seen_by(indices: Tensor, keys: int, block: int, mode: int) -> Tensor:
    """[S1, S2], one query at a time, from the text of the page."""
    rows = len(indices)
    seen = torch.zeros(rows, keys, dtype=torch.bool)
    for i in range(rows):
        for number in indices[i, 0].tolist():
            if number >= 0:
                seen[i, number * block : (number + 1) * block] = True
        if mode == 3:
            seen[i, keys - rows + i + 1 :] = False
    return seen


def latent(rows: int, keys: int, heads: int = 4, dtype: torch.dtype = BF16) -> list[Tensor]:
    """query, key, query_rope, key_rope of one sequence, [S, N, D]."""
    return [
        (torch.randn(s) / 4).to(dtype) for s in ((rows, heads, 512), (keys, 1, 512), (rows, heads, 64), (keys, 1, 64))
    ]


def dense(parts: list[Tensor], seen: Tensor, scale: float = 0.1, value: Tensor | None = None) -> Any:
    query, key, query_rope, key_rope = (t.transpose(0, 1)[None] for t in parts)
    joined = torch.cat((query, query_rope), -1), torch.cat((key, key_rope), -1)
    return attention(*joined, key if value is None else value.transpose(0, 1)[None], scale, seen)


@pytest.mark.parametrize("mode", [0, 3])
@pytest.mark.parametrize("block", [1, 4])
@pytest.mark.parametrize("layout", ["BSND", "TND"])
def test_sparse_flash_attention(layout: str, block: int, mode: int) -> None:
    rows, keys = [3, 5], [9, 14] if layout == "TND" else [14, 11]
    rows = rows if layout == "TND" else [5, 3]
    sequences = [latent(r, k) for r, k in zip(rows, keys, strict=True)]
    chosen = [indices_of(r, k, block, 6) for r, k in zip(rows, keys, strict=True)]
    ends = (lambda n: list(accumulate(n))) if layout == "TND" else list
    if layout == "TND":
        joined = [torch.cat([s[i] for s in sequences]) for i in range(4)]
        index = torch.cat(chosen)
    else:
        pad = torch.nn.utils.rnn.pad_sequence
        joined = [pad([s[i] for s in sequences], batch_first=True) for i in range(4)]
        index = pad(chosen, batch_first=True, padding_value=-1)
    query, key, query_rope, key_rope = (t.npu() for t in joined)
    with called() as names:
        out, top, total = torch_npu.npu_sparse_flash_attention(
            query,
            key,
            key,
            index.npu(),
            0.1,
            query_rope=query_rope,
            key_rope=key_rope,
            sparse_block_size=block,
            layout_query=layout,
            layout_kv=layout,
            sparse_mode=mode,
            attention_mode=2,
            return_softmax_lse=True,
            actual_seq_lengths_query=torch.tensor(ends(rows)).int().npu(),
            actual_seq_lengths_kv=torch.tensor(ends(keys)).int().npu(),
        )
    assert "SparseFlashAttention" in names
    first = 0
    for b, (parts, r, k, one) in enumerate(zip(sequences, rows, keys, chosen, strict=True)):
        expected = dense(parts, seen_by(one, k, block, mode))
        own = out[first : first + r] if layout == "TND" else out[b, :r]
        close(own, expected.out[0].transpose(0, 1), BF16)
        for actual, stats in ((top, expected.maximum), (total, expected.total)):
            part = actual[:, first : first + r] if layout == "TND" else actual[b, :, :r]
            close(part, stats[0, :, :, 0].t()[None], torch.float32)
        first += r


def test_sparse_flash_attention_in_pages() -> None:
    parts, block, size = latent(2, 40), 4, 16
    index = indices_of(2, 40, block, 5)
    order = torch.randperm(4)
    pages = []
    for t in (parts[1], parts[3]):
        cache = torch.zeros(4, size, 1, t.shape[-1]).to(BF16)
        cache[order[:3]] = torch.nn.functional.pad(t, (0, 0, 0, 0, 0, 8)).view(3, size, 1, -1)
        pages.append(cache.npu())
    out, _, _ = torch_npu.npu_sparse_flash_attention(
        parts[0][None].npu(),
        pages[0],
        pages[0],
        index[None].npu(),
        0.1,
        query_rope=parts[2][None].npu(),
        key_rope=pages[1],
        sparse_block_size=block,
        layout_query="BSND",
        layout_kv="PA_BSND",
        attention_mode=2,
        block_table=order[None, :3].int().npu(),
        actual_seq_lengths_kv=torch.tensor([40]).int().npu(),
    )
    close(out[0], dense(parts, seen_by(index, 40, block, 3)).out[0].transpose(0, 1), BF16)


@pytest.mark.parametrize("mode", [0, 3])
def test_the_gradient_of_sparse_flash_attention(mode: int) -> None:
    """Keys and values have their own gradients."""
    rows, keys, block = 6, 12, 2
    parts, value = latent(rows, keys, dtype=torch.float16), (torch.randn(keys, 1, 512) / 4).half()
    index, dy = indices_of(rows, keys, block, 5), torch.randn(rows, 4, 512).half()
    exact = [t.double().requires_grad_() for t in (*parts, value)]
    expected = dense(exact[:4], seen_by(index, keys, block, mode), value=exact[4])
    expected.out[0].transpose(0, 1).backward(dy.double())
    stats = [s[0, :, :, 0].t()[None, None].float() for s in (expected.maximum, expected.total.detach())]
    query, key, query_rope, key_rope = (t[None].npu() for t in parts)
    out = expected.out.detach()[0].transpose(0, 1)[None].half()
    with called() as names:
        grads = torch_npu.npu_sparse_flash_attention_grad(
            query,
            key,
            value[None].npu(),
            index[None].npu(),
            dy[None].npu(),
            out.npu(),
            stats[0].npu(),
            stats[1].npu(),
            0.1,
            block,
            query_rope,
            key_rope,
            layout="BSND",
            sparse_mode=mode,
        )
    assert "SparseFlashAttentionGrad" in names
    for actual, t in zip(grads, (exact[0], exact[1], exact[4], exact[2], exact[3]), strict=True):
        assert t.grad is not None
        close(actual[0], t.grad, torch.float16)


@pytest.mark.parametrize("paged", [False, True])
def test_keys_quantised_in_tiles(paged: bool) -> None:
    rows, keys = 3, 32
    parts = latent(rows, keys)
    numbers = torch.randint(-128, 128, (keys, 1, 512), dtype=torch.int8)
    scales = torch.rand(keys, 1, 4) / 99
    stored = torch.cat((numbers, parts[3].view(torch.int8), scales.view(torch.int8)), -1)
    index = indices_of(rows, keys, 1, 9)
    options: dict[str, Any] = {"layout_kv": "BSND"}
    cache = stored[None]
    if paged:
        options = {
            "layout_kv": "PA_BSND",
            "block_table": torch.tensor([[1, 0]]).int().npu(),
            "actual_seq_lengths_kv": torch.tensor([keys]).int().npu(),
        }
        cache = stored.view(2, 16, 1, 656).flip(0).contiguous()
    query = torch.cat((parts[0], parts[2]), -1)[None]
    with called() as names:
        out = torch_npu.npu_kv_quant_sparse_flash_attention(
            query.npu(), cache.npu(), cache.npu(), index[None].npu(), 0.1, 2, 2, attention_mode=2, **options
        )
    assert "KvQuantSparseFlashAttention" in names
    key = (numbers.float() * scales.repeat_interleave(128, -1)).to(BF16)
    close(out[0], dense([parts[0], key, parts[2], parts[3]], seen_by(index, keys, 1, 3)).out[0].transpose(0, 1), BF16)


@pytest.mark.parametrize("layout", ["BNSD", "TND"])
@pytest.mark.parametrize("lengths", [False, True])
def test_block_sparse_attention_and_its_gradient(layout: str, lengths: bool) -> None:
    rows, keys = [300, 150], [260, 256]
    if not lengths and layout == "BNSD":
        rows, keys = [300, 300], [260, 260]
    x = [torch.randn(2, n, s, 128).half() for n, s in ((4, 300), (2, 260), (2, 260))]
    mask = (torch.rand(2, 4, 3, 3) < 0.6).to(torch.int8)
    mask[:, :, :, 0] = 1
    seen = mask.bool().repeat_interleave(128, 2).repeat_interleave(128, 3)
    if layout == "TND":
        device = [
            torch.cat([t[b, :, :n].transpose(0, 1) for b, n in enumerate(size)])
            for t, size in zip(x, (rows, keys, keys), strict=True)
        ]
    else:
        device = x
    options: dict[str, Any] = {"q_input_layout": layout, "kv_input_layout": layout, "num_key_value_heads": 2}
    given = {"actual_seq_lengths": rows, "actual_seq_lengths_kv": keys}
    plain = {"actual_seq_lengths": None, "actual_seq_lengths_kv": None}
    options |= given if lengths or layout == "TND" else plain
    device = [t.npu() for t in device]
    with called() as names:
        out, lse = torch_npu.npu_block_sparse_attention(
            *device, mask.npu(), [128, 128], scale_value=0.1, softmax_lse_flag=1, **options
        )
        dy = torch.randn(out.shape).half()
        grads = torch_npu.npu_block_sparse_attention_backward(
            dy.npu(),
            *device,
            out,
            lse,
            mask.npu(),
            [128, 128],
            options["actual_seq_lengths"],
            options["actual_seq_lengths_kv"],
            layout,
            layout,
            2,
            0.1,
        )
    assert {"BlockSparseAttention", "BlockSparseAttentionGrad"} <= names
    first = [0, 0]
    for b in range(2):
        exact = [
            t[b : b + 1, :, :n].double().requires_grad_() for t, n in zip(x, (rows[b], keys[b], keys[b]), strict=True)
        ]
        expected = attention(*exact, 0.1, seen[b : b + 1, :, : rows[b], : keys[b]])

        def part(t: Tensor, size: int, start: int, b: int = b) -> Tensor:
            return t[start : start + size].transpose(0, 1)[None] if layout == "TND" else t[b : b + 1, :, :size]

        close(part(out, rows[b], first[0]), expected.out, torch.float16)
        close(part(lse, rows[b], first[0]), expected.maximum + expected.total.log(), torch.float32)
        expected.out.backward(part(dy, rows[b], first[0]).double())
        sizes = (rows[b], keys[b], keys[b])
        for grad, t, size, start in zip(grads, exact, sizes, (first[0], first[1], first[1]), strict=True):
            assert t.grad is not None
            close(part(grad, size, start), t.grad, torch.float16)
        first = [first[0] + rows[b], first[1] + keys[b]]


@pytest.mark.parametrize("masked", [False, True])
def test_floyd_attention_and_its_gradient(masked: bool) -> None:
    shapes = ((16, 128), (16, 128), (16, 128), (128, 128), (128, 128))
    x = [(torch.randn(1, 2, *s, 32) / 2).half() for s in shapes]
    mask = torch.rand(1, 1, 16, 1, 128) < 0.3 if masked else None
    device = [t.npu().requires_grad_() for t in x]
    with called() as names:
        top, total, out = torch_npu.npu_fused_floyd_attention(
            *device, atten_mask=None if mask is None else mask.npu(), scale_value=0.2
        )
        out.sum().backward()
    assert {"FusedFloydAttention", "FusedFloydAttentionGrad"} <= names
    query, k1, v1, k2, v2 = exact = [t.double().requires_grad_() for t in x]
    scores = torch.einsum("bhimd,bhijd->bhimj", query, k1) + torch.einsum("bhimd,bhjmd->bhimj", query, k2)
    scores = scores * 0.2
    if mask is not None:
        scores = scores.masked_fill(mask, -torch.inf)
    weights = scores.softmax(-1)
    expected = torch.einsum("bhimj,bhijd->bhimd", weights, v1) + torch.einsum("bhimj,bhjmd->bhimd", weights, v2)
    expected.sum().backward()
    close(out, expected, torch.float16)
    close(top[..., 5], scores.amax(-1), torch.float32)
    close(top[..., 0].cpu() + total[..., 7].cpu().log(), scores.logsumexp(-1), torch.float32)
    for a, b in zip(device, exact, strict=True):
        assert a.grad is not None and b.grad is not None
        scale = b.grad.abs().max().clamp(min=1)
        close(a.grad.cpu().double() / scale, b.grad / scale, torch.float16)


REFUSED = [
    ({"attention_mode": 0}, "attention_mode"),
    ({"sparse_mode": 2}, "sparse_mode"),
    ({"sparse_block_size": 3}, "sparse_block_size"),
    ({"layout_kv": "PA_BSND"}, "block_table"),
    ({"sinks": torch.zeros(4)}, "sinks"),
    ({"pre_tokens": 5}, "pre_tokens"),
]


@pytest.mark.parametrize(("options", "named"), REFUSED)
def test_refusals(options: dict[str, Any], named: str) -> None:
    query, key, query_rope, key_rope = (t[None].npu() for t in latent(2, 8))
    index = indices_of(2, 8, 1, 4)[None].npu()
    device = {k: v.npu() if isinstance(v, Tensor) else v for k, v in options.items()}
    with pytest.raises(RuntimeError, match=named):
        torch_npu.npu_sparse_flash_attention(
            query, key, key, index, 0.1, query_rope=query_rope, key_rope=key_rope, **{"attention_mode": 2, **device}
        )


def test_refuses_hifloat8() -> None:
    """The type of npu_quant_fusion_attention, which torch does not have; it is a 950 operator besides."""
    x = torch.zeros(1, 2, 4, 16, dtype=torch.uint8).npu()
    scale = torch.ones(1).npu()
    with pytest.raises(RuntimeError):
        torch_npu.npu_quant_fusion_attention(x, x, x, 2, "BNSD", d_scale_q=scale, d_scale_k=scale, d_scale_v=scale)
