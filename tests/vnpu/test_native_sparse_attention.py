"""Native sparse attention against the loops of op-plugin's own tests, in float64."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import pytest
import torch
import torch_npu
from tests.vnpu.attention_reference import attention, close
from tests.vnpu.support import called
from torch import Tensor

HALF = torch.float16


def compressed(x: Tensor, weight: Tensor, stride: int, lengths: list[int]) -> Tensor:
    """Every window of every sequence, weighted and summed."""
    block, found = len(weight), []
    for part in x.split(lengths):
        for start in range(0, len(part) - block + 1, stride):
            found.append((part[start : start + block] * weight[:, :, None]).sum(0))
    return torch.stack(found)


@pytest.mark.parametrize(("block", "stride"), [(16, 16), (32, 16)])
def test_compress(block: int, stride: int) -> None:
    """Sequences shorter than a window have none."""
    lengths = [50, 7, 0, 32, 81]
    x, weight = torch.randn(170, 3, 32).half(), torch.randn(block, 3).half()
    device = [t.npu().requires_grad_() for t in (x, weight)]
    ends = list(accumulate(lengths))
    with called() as names:
        out = torch_npu.npu_nsa_compress(*device, block, stride, actual_seq_len=ends)
        grad = torch.randn(out.shape).half()
        out.backward(grad.npu())
    assert {"NsaCompress", "NsaCompressGrad"} <= names
    exact = [t.double().requires_grad_() for t in (x, weight)]
    expected = compressed(*exact, stride, lengths)
    size = expected.abs().max()
    close(out.cpu().double() / size, expected / size, HALF)
    expected.backward(grad.double())
    for a, b in zip(device, exact, strict=True):
        size = b.grad.abs().max()
        close(a.grad.cpu().double() / size, b.grad / size, HALF)


def test_compress_into_the_cache() -> None:
    """Only a sequence whose last token ends a window is compressed."""
    lengths, block, stride, page = [43, 96, 144, 16], 32, 16, 64
    cache_in, weight = torch.randn(8, page, 2, 32).half(), torch.randn(block, 2).half()
    table = torch.tensor([[3, 0, 0], [5, 1, 0], [7, 2, 6], [4, 0, 0]]).int()
    cache, slots = torch.randn(6, 2, 32).half(), torch.tensor([0, 4, 2, 1]).int()
    device = cache.npu()
    with called() as names:
        torch_npu.npu_nsa_compress_infer(
            cache_in.npu(),
            weight.npu(),
            slots.npu(),
            block,
            stride,
            page,
            block_table=table.npu(),
            actual_seq_len=lengths,
            cache=device,
        )
    assert "NsaCompressWithCache" in names
    expected = cache.double()
    for b, slot in ((1, 4), (2, 2)):
        tokens = torch.stack([cache_in[table[b, t // page], t % page] for t in range(lengths[b] - block, lengths[b])])
        expected[slot] = (tokens.double() * weight.double()[:, :, None]).sum(0)
    size = expected.abs().max()
    close(device.cpu().double() / size, expected / size, HALF)


def importance(probabilities: Tensor, kv_heads: int, per_selected: int, overlap: int, count: int) -> Tensor:
    """[Nkv, Sq, count] from [N, Sq, Skv]."""
    grouped = probabilities.unflatten(0, (kv_heads, -1)).sum(1)
    out = torch.zeros(*grouped.shape[:2], count).double()
    for j in range(1, count + 1):
        for a in range(per_selected):
            for b in range(overlap):
                k = per_selected * j - a - b
                if 0 <= k < grouped.shape[2]:
                    out[..., j - 1] += grouped[..., k]
    return out


def probabilities_of(query: Tensor, key: Tensor, scale: float, hidden: Tensor | None = None) -> Tensor:
    """[N, Sq, Skv] from [1, N, S, D]."""
    scores = query.double() @ key.double().repeat_interleave(query.shape[1] // key.shape[1], 1).transpose(-1, -2)
    scores = scores * scale
    return (scores if hidden is None else scores.masked_fill(hidden, -torch.inf)).softmax(-1)[0]


def check_best(actual: Tensor, scores: Tensor) -> None:
    """The blocks of highest importance in falling order; equal ones may change places."""
    actual = actual.cpu().long()
    best = scores.sort(-1, descending=True).values[..., : actual.shape[-1]]
    torch.testing.assert_close(scores.gather(-1, actual), best, rtol=1e-4, atol=1e-5)
    assert all(len(set(row.tolist())) == len(row) for row in actual.flatten(0, -2))


@pytest.mark.parametrize("masked", [False, True])
def test_compress_attention(masked: bool) -> None:
    rows, keys, heads, kv_heads, size = [40, 9], [70, 66], 4, 2, 16
    counts = [-(-k // 4) for k in keys]
    query, key = torch.randn(49, heads, size).half(), torch.randn(136, kv_heads, size).half()
    value = torch.randn(136, kv_heads, 8).half()
    options: dict[str, Any] = {}
    hidden, always = torch.ones(40, 70).bool().triu(1), torch.eye(40, 18).bool()
    always[:, 0] = True
    if masked:
        options = {"atten_mask": hidden.npu(), "topk_mask": always.npu()}
    device = [t.npu().requires_grad_() for t in (query, key, value)]
    ends = [list(accumulate(n)) for n in (rows, keys, counts)]
    with called() as names:
        out, best, _, _ = torch_npu.npu_nsa_compress_attention(
            *device,
            0.3,
            heads,
            32,
            16,
            64,
            16,
            actual_seq_qlen=ends[0],
            actual_cmp_seq_kvlen=ends[1],
            actual_sel_seq_kvlen=ends[2],
            **options,
        )
        out.sin().sum().backward()
    assert "NsaCompressAttention" in names
    exact = [t.double().requires_grad_() for t in (query, key, value)]
    results, first = [], 0
    for q, k, v, count in zip(exact[0].split(rows), exact[1].split(keys), exact[2].split(keys), counts, strict=True):
        parts = [t.transpose(0, 1)[None] for t in (q, k, v)]
        own = hidden[: len(q), : len(k)] if masked else None
        results.append(attention(*parts, 0.3, None if own is None else ~own).out[0].transpose(0, 1))
        with torch.no_grad():
            scores = importance(probabilities_of(*parts[:2], 0.3, own), kv_heads, 4, 2, count)
            if masked:
                scores.masked_fill_(always[: len(q), :count], 23333.0)
            check_best(best[first : first + len(q)].transpose(0, 1), scores)
        first += len(q)
    close(out, torch.cat(results), HALF)
    torch.cat(results).sin().sum().backward()
    for a, b in zip(device, exact, strict=True):
        close(a.grad, b.grad, HALF)


@pytest.mark.parametrize("layout", ["TND", "BSND"])
@pytest.mark.parametrize("sizes", [(32, 16, 64), (16, 16, 16), (48, 16, 48)])
def test_compress_attention_for_inference(layout: str, sizes: tuple[int, int, int]) -> None:
    """The first block and the last two are always selected."""
    block, stride, selected = sizes
    lengths, heads, kv_heads, size, value_size, page, count = [128, 150], 4, 2, 24, 8, 32, 7
    query = torch.randn(2, heads, size).half()
    key, value = torch.randn(12, page, kv_heads * size).half(), torch.randn(12, page, kv_heads * value_size).half()
    table = torch.randperm(12)[:10].view(2, 5).int()
    with called() as names:
        out, best = torch_npu.npu_nsa_compress_attention_infer(
            (query if layout == "TND" else query[:, None]).npu(),
            key.npu(),
            value.npu(),
            0.2,
            heads,
            kv_heads,
            selected,
            count,
            page,
            block,
            stride,
            layout=layout,
            block_table=table.npu(),
            actual_cmp_seq_kvlen=lengths,
        )
    assert "NsaCompressAttentionInfer" in names
    for b, length in enumerate(lengths):
        parts = [x[table[b].long()].flatten(0, 1)[:length].unflatten(1, (kv_heads, -1)) for x in (key, value)]
        k, v = (x.transpose(0, 1)[None] for x in parts)
        q = query[b][None, :, None]
        close(out[b].reshape(heads, -1), attention(q, k, v, 0.2).out[0, :, 0], HALF)
        blocks = -(-((length - 1) * stride + block) // selected)
        scores = importance(probabilities_of(q, k, 0.2), kv_heads, selected // stride, block // stride, blocks)[:, 0]
        own = best[b].reshape(kv_heads, count).cpu()
        assert (own[:, :3] == torch.tensor([0, blocks - 2, blocks - 1])).all()
        scores[:, [0, blocks - 2, blocks - 1]] = -1
        check_best(own[:, 3:], scores)


def selected_keys(indices: Tensor, size: int, keys: int) -> Tensor:
    seen = torch.zeros(-(-keys // size) * size, dtype=torch.bool)
    for number in indices.tolist():
        if number >= 0:
            seen[number * size : (number + 1) * size] = True
    return seen[:keys]


def test_selected_attention() -> None:
    rows, keys, heads, kv_heads = [3, 2], [1216, 1024], 4, 2
    query, key, value = torch.randn(5, heads, 192), torch.randn(2240, kv_heads, 192), torch.randn(2240, kv_heads, 128)
    query, key, value = query.half(), key.half(), value.half()
    blocks = torch.tensor([19] * 3 + [16] * 2)
    indices = torch.stack([torch.stack([torch.randperm(int(n))[:16] for _ in range(kv_heads)]) for n in blocks]).int()
    device = [t.npu().requires_grad_() for t in (query, key, value)]
    with called() as names:
        out, top, total = torch_npu.npu_nsa_select_attention(
            *device,
            indices.npu(),
            0.1,
            heads,
            64,
            16,
            actual_seq_qlen=list(accumulate(rows)),
            actual_seq_kvlen=list(accumulate(keys)),
        )
        out.sin().sum().backward()
    assert {"NsaSelectedAttention", "NsaSelectedAttentionGrad"} <= names
    exact = [t.double().requires_grad_() for t in (query, key, value)]
    results, stats, first = [], [], 0
    for q, k, v in zip(exact[0].split(rows), exact[1].split(keys), exact[2].split(keys), strict=True):
        seen = torch.stack(
            [
                torch.stack([selected_keys(indices[first + i, n // 2], 64, len(k)) for i in range(len(q))])
                for n in range(heads)
            ]
        )
        found = attention(*(t.transpose(0, 1)[None] for t in (q, k, v)), 0.1, seen[None])
        results.append(found.out[0].transpose(0, 1))
        stats.append([s[0].transpose(0, 1).expand(-1, -1, 8) for s in (found.maximum, found.total)])
        first += len(q)
    close(out, torch.cat(results), HALF)
    for actual, parts in zip((top, total), zip(*stats, strict=True), strict=True):
        torch.testing.assert_close(actual.cpu().double(), torch.cat(parts).detach(), rtol=1e-4, atol=1e-4)
    torch.cat(results).sin().sum().backward()
    for a, b in zip(device, exact, strict=True):
        close(a.grad, b.grad, HALF)


@pytest.mark.parametrize("layout", ["BSH", "BSND", "TND"])
def test_selected_attention_for_inference(layout: str) -> None:
    """-1 ends the list of blocks; the last block of a sequence may be short."""
    lengths, heads, kv_heads, page = [82, 130], 4, 2, 64
    query, key, value = (
        torch.randn(2, heads, 192),
        torch.randn(7, page, kv_heads, 192),
        torch.randn(7, page, kv_heads, 128),
    )
    query, key, value = query.half(), key.half(), value.half()
    table = torch.tensor([[4, 1, -1], [6, 0, 2]]).int()
    indices = torch.tensor([[[1, -1], [0, 1]], [[2, 0], [1, -1]]]).int()
    shapes = {"BSH": (2, 1, heads * 192), "BSND": (2, 1, heads, 192), "TND": (2, heads, 192)}
    caches = [x if layout == "BSND" else x.flatten(2) for x in (key, value)]
    with called() as names:
        out = torch_npu.npu_nsa_select_attention_infer(
            query.view(shapes[layout]).npu(),
            *[x.npu() for x in caches],
            indices.npu(),
            0.1,
            heads,
            kv_heads,
            64,
            2,
            page,
            layout=layout,
            block_table=table.npu(),
            actual_seq_kvlen=lengths,
        )
    assert "NsaSelectedAttentionInfer" in names
    for b, length in enumerate(lengths):
        count = -(-length // page)
        k, v = (x[table[b, :count].long()].flatten(0, 1)[:length].transpose(0, 1)[None] for x in (key, value))
        seen = torch.stack([selected_keys(indices[b, n // 2], 64, length) for n in range(heads)])[None, :, None]
        close(out[b].reshape(heads, 128), attention(query[b][None, :, None], k, v, 0.1, seen).out[0, :, 0], HALF)


def test_refusals() -> None:
    x, weight = torch.zeros(64, 2, 32).half().npu(), torch.zeros(32, 2).half().npu()
    for block, stride, ends, named in ((40, 16, [64], "multiples"), (16, 16, [64], "weight"), (32, 16, [60], "len")):
        with pytest.raises(RuntimeError, match=named):
            torch_npu.npu_nsa_compress(x, weight, block, stride, actual_seq_len=ends)
    query, key, value = (torch.zeros(s).half().npu() for s in ((1, 2, 192), (1024, 1, 192), (1024, 1, 128)))
    lengths = {"actual_seq_qlen": [1], "actual_seq_kvlen": [1024]}
    blocks = torch.arange(16).int().view(1, 1, 16)
    for indices, size, options, named in (
        (blocks + 1, 64, {}, "from 0 to 15"),
        (blocks * 0, 64, {}, "more than once"),
        (blocks, 32, {}, "sizes of blocks"),
        (blocks, 64, {"atten_mask": torch.zeros(1, 1024).bool().npu()}, "atten_mask"),
    ):
        with pytest.raises(RuntimeError, match=named):
            torch_npu.npu_nsa_select_attention(query, key, value, indices.npu(), 1.0, 2, size, 16, **options, **lengths)
    ends = {"actual_seq_qlen": [1], "actual_cmp_seq_kvlen": [1024], "actual_sel_seq_kvlen": [255]}
    with pytest.raises(RuntimeError, match="actual_sel_seq_kvlen"):
        torch_npu.npu_nsa_compress_attention(query, key, value, 1.0, 2, 32, 16, 64, 16, **ends)
