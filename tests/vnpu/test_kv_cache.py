"""Operators on KV caches against the loops of op-plugin's own tests."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch_npu
from tests.vnpu.attention_reference import close
from tests.vnpu.support import called
from torch import Tensor

HALF = torch.float16


@pytest.mark.parametrize("slot_type", [torch.int32, torch.int64])
@pytest.mark.parametrize("mode", ["Norm", "PA_NZ", None])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int8])
def test_scatter(mode: str | None, dtype: torch.dtype, slot_type: torch.dtype) -> None:
    """Negative slots are left out; keys and values may have other head sizes."""
    tokens, heads, size, blocks, c = 6, 2, 8, 4, 32 if dtype == torch.int8 else 16
    slots = torch.tensor([3, 31, -1, 0, 17, 8]).to(slot_type)
    operands, caches = [], []
    for width in (32, 64):
        operands.append(torch.randint(-50, 50, (tokens, heads, width)).to(dtype))
        shape = (blocks, heads * width // c, size, c) if mode == "PA_NZ" else (blocks, size, heads, width)
        caches.append(torch.full(shape, 7).to(dtype))
    device = [t.npu() for t in caches]
    with called() as names:
        torch_npu.npu_scatter_pa_kv_cache(*[t.npu() for t in operands], *device, slots.npu(), cache_mode=mode)
    assert "ScatterPaKvCache" in names
    for x, cache, actual in zip(operands, caches, device, strict=True):
        for token, slot in enumerate(slots.tolist()):
            if slot < 0:
                continue
            block, offset = divmod(slot, size)
            if mode == "PA_NZ":
                for k, part in enumerate(x[token].reshape(-1, c)):
                    cache[block][k][offset] = part
            else:
                cache[block][offset] = x[token]
        assert torch.equal(actual.cpu(), cache)


def test_scatter_of_keys_alone() -> None:
    key, cache, slots = torch.randn(3, 1, 16).half(), torch.zeros(2, 4, 1, 16).half(), torch.tensor([5, 0, 2]).int()
    device = cache.npu()
    with called() as names:
        torch_npu.npu_scatter_pa_cache(key.npu(), slots.npu(), key_cache=device)
    assert "ScatterPaCache" in names
    cache.view(8, 1, 16)[slots.long()] = key
    assert torch.equal(device.cpu(), cache)


@pytest.mark.parametrize("cumulative", [False, True])
@pytest.mark.parametrize("offsets", [False, True])
def test_gather(cumulative: bool, offsets: bool) -> None:
    """Blocks that the table lacks, or that do not exist, give zeros."""
    lengths, size = [5, 1, 9], 4
    key_cache, value_cache = torch.randn(6, size, 2, 16).half(), torch.randn(6, size, 2, 8).half()
    table = torch.tensor([[2, 5, 0], [1, 9, -1], [4, -1, 3]]).int()
    starts = [4, 0, 4] if offsets else [0, 0, 0]
    key, value = torch.full((15, 2, 16), 9.0).half(), torch.full((15, 2, 8), 9.0).half()
    lens = torch.tensor([0, 5, 6, 15] if cumulative else lengths).int()
    device = [key.npu(), value.npu()]
    with called() as names:
        torch_npu.npu_gather_pa_kv_cache(
            key_cache.npu(),
            value_cache.npu(),
            table.npu(),
            lens.npu(),
            *device,
            seq_offset=torch.tensor(starts).int().npu() if offsets else None,
            is_seq_lens_cumsum=cumulative,
        )
    assert "GatherPaKvCache" in names
    for cache, out, actual in ((key_cache, key, device[0]), (value_cache, value, device[1])):
        row = 0
        for b, length in enumerate(lengths):
            for j in range(length):
                place = starts[b] // size + j // size
                block = int(table[b][place]) if place < 3 else -1
                out[row] = cache[block][j % size] if 0 <= block < 6 else 0
                row += 1
        assert torch.equal(actual.cpu(), out)


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_quant_scatter(pairs: bool, zeros: bool, dtype: torch.dtype) -> None:
    x = torch.randint(-9, 9, (4, 10, 32), dtype=torch.int8)
    updates, scales = (torch.randn(3, 2, 32) * 9).to(dtype), torch.rand(32) + 0.1
    points = torch.randint(-3, 3, (32,), dtype=torch.int32) if zeros else None
    rows = [3, 0, 2] if pairs else [0, 1, 2]
    starts = [7, 0, 4]
    indices = torch.tensor(list(zip(rows, starts, strict=True)) if pairs else starts).int()
    device = x.npu()
    args = (indices.npu(), updates.npu(), scales.npu(), None if points is None else points.npu())
    with called() as names:
        copied = torch_npu.npu_quant_scatter(device, *args, axis=-2, quant_axis=-1)
    assert "InplaceQuantScatter" in names and torch.equal(device.cpu(), x)
    torch_npu.npu_quant_scatter_(device, *args, axis=1, quant_axis=2)
    values = (updates.float() / scales + (0 if points is None else points)).round().clamp(-128, 127).to(torch.int8)
    for row, start, value in zip(rows, starts, values, strict=True):
        x[row, start : start + 2] = value
    assert torch.equal(device.cpu(), x) and torch.equal(copied.cpu(), x)


def test_advance_step() -> None:
    block, lens = 4, torch.tensor([3, 8, 5, 2])
    tables = torch.randint(0, 50, (4, 4))
    state = {"tokens": torch.zeros(4), "positions": torch.zeros(4), "lens": lens, "slots": torch.zeros(4)}
    device = {k: v.long().npu() for k, v in state.items()}
    sampled = torch.tensor([[11], [12], [13]])
    with called() as names:
        torch_npu.npu_advance_step_flashattn(
            device["tokens"],
            sampled.npu(),
            device["positions"],
            device["lens"],
            device["slots"],
            tables.npu(),
            4,
            3,
            block,
        )
    assert "AdvanceStep" in names
    assert device["tokens"].tolist() == [11, 12, 13, 0]
    assert device["positions"].tolist() == [3, 8, 5, 0]
    assert device["lens"].tolist() == [4, 9, 6, 2]
    slots = [int(tables[i, p // block]) * block + p % block for i, p in enumerate([3, 8, 5])]
    assert device["slots"].tolist() == [*slots, -1]


def test_advance_step_with_drafts() -> None:
    block, tables = 4, torch.randint(0, 50, (2, 6))
    sampled, spec = torch.tensor([[7, 8, -1], [4, 5, 6]]), torch.tensor([[20, 21], [30, 31]])
    accepted, positions = torch.tensor([1, 2]), torch.tensor([2, 3, 4, 8, 9, 10])
    device = [
        torch.zeros(6, dtype=torch.int64).npu(),
        positions.npu(),
        torch.zeros(6, dtype=torch.int64).npu(),
        torch.zeros(6, dtype=torch.int64).npu(),
    ]
    with called() as names:
        torch_npu.npu_advance_step_flashattn(
            device[0],
            sampled.npu(),
            device[1],
            device[2],
            device[3],
            tables.npu(),
            2,
            2,
            block,
            spec_token=spec.npu(),
            accepted_num=accepted.npu(),
        )
    assert "AdvanceStepV2" in names
    moved = [4, 5, 6, 11, 12, 13]
    assert device[0].tolist() == [8, 20, 21, 6, 30, 31]
    assert device[1].tolist() == moved and device[2].tolist() == [p + 1 for p in moved]
    assert device[3].tolist() == [int(tables[i // 3, p // block]) * block + p % block for i, p in enumerate(moved)]


def rms(x: Tensor, gamma: Tensor, epsilon: float) -> Tensor:
    return x.double() / torch.sqrt(x.double().square().mean(-1, keepdim=True) + epsilon) * gamma.double()


def turn(x: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    return torch.cat((-b, a), -1)


def interleaved(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    k = x.double().reshape(*x.shape[:-1], -1, 2).transpose(-1, -2).reshape(x.shape)
    return k * cos.double() + turn(k) * sin.double()


def store(cache: Tensor, rows: Tensor, index: Tensor, mode: str) -> None:
    """Rows [B, S, D] into a cache, as in op-plugin's test."""
    batch, length, _ = rows.shape
    d0 = 32 if cache.dtype == torch.int8 else 16
    for b in range(batch):
        for s in range(length):
            if mode == "Norm":
                cache[b, 0, index[b, s]] = rows[b, s]
                continue
            blocks, size = cache.shape[:2]
            if "BLK" in mode:
                page = int(index[b * -(-length // size) + s // size])
                slot = -1 if page < 0 else page // size * size + s % size
            else:
                slot = int(index[b * length + s])
            if slot < 0:
                continue
            if mode.endswith("NZ"):
                cache.view(blocks, -1, size, d0)[slot // size, :, slot % size] = rows[b, s].view(-1, d0)
            else:
                cache[slot // size, slot % size, 0] = rows[b, s]


@pytest.mark.parametrize("quantised", [False, True])
@pytest.mark.parametrize("mode", ["Norm", "PA", "PA_BNSD", "PA_NZ", "PA_BLK_BNSD", "PA_BLK_NZ"])
@pytest.mark.parametrize("version", [1, 2])
def test_kv_rmsnorm_rope_cache(version: int, mode: str, quantised: bool) -> None:
    batch, length, size = 2, 5, 4
    widths = (64, 512) if version == 1 else (192, 128)
    kv = torch.randn(batch, 1, length, 576 if version == 1 else 192).half()
    gamma = torch.randn(512 if version == 1 else 192).half()
    cos, sin = (torch.randn(batch, 1, length, 64).half() for _ in range(2))
    value = torch.randn(batch, 1, length, 128).half() if version == 2 else None
    index = {
        "Norm": torch.stack([torch.randperm(9)[:length] for _ in range(batch)]),
        "PA": torch.tensor([7, -1, 0, 12, 3, 19, 4, 8, 9, 10]),
        "BLK": torch.tensor([8, 0, 16, -1]),
    }["Norm" if mode == "Norm" else "BLK" if "BLK" in mode else "PA"]
    kind = torch.int8 if quantised else HALF
    lead = (batch, 1, 9) if mode == "Norm" else (5, size, 1)
    caches = [torch.full((*lead, w), 9).to(kind) for w in widths]
    scales = [torch.rand(w) * 20 for w in widths] if quantised else [None, None]
    options: dict[str, Any] = {"epsilon": 1e-4, "cache_mode": mode, "is_output_kv": True}
    device = [None if t is None else t.npu() for t in (kv, gamma, cos, sin, index, *caches, *scales, value)]
    with called() as names:
        out = torch_npu.npu_kv_rmsnorm_rope_cache(
            *device[:7], k_rope_scale=device[7], c_kv_scale=device[8], v=device[9], **options
        )
    assert ("KvRmsNormRopeCacheV2" if version == 2 else "KvRmsNormRopeCache") in names
    if value is None:
        second = rms(kv[..., :512], gamma, 1e-4)
        first = interleaved(kv[..., 512:], cos, sin)
    else:
        key = rms(kv, gamma, 1e-4)
        first, second = torch.cat((interleaved(key[..., :64], cos, sin), key[..., 64:]), -1), value.double()
    close(out[2], first, HALF)
    close(out[3], second, HALF)
    for cache, rows, scale, actual in zip(caches, (first, second), scales, device[5:7], strict=True):
        numbers = rows[:, 0] if scale is None else (rows[:, 0] * scale.double()).round().clamp(-128, 127)
        store(cache, numbers.to(kind), index, mode)
        assert actual is not None
        difference = (actual.cpu().double() - cache.double()).abs().max()
        assert difference <= (1 if quantised else 1e-2)
        assert (actual.cpu() == cache).double().mean() > 0.95


@pytest.mark.parametrize("quantised", [False, True])
def test_qkv_rms_norm_rope_cache(quantised: bool) -> None:
    batch, length, heads, size, block = 2, 3, (3, 2, 1), 64, 4
    total = sum(heads)
    qkv = torch.randn(batch * length, total * size).half()
    gammas = [torch.randn(size).half() for _ in range(2)]
    cos, sin = (torch.randn(batch * length, size).half() for _ in range(2))
    index = torch.tensor([5, 0, -1, 11, 2, 7])
    kind, c = (torch.int8, 32) if quantised else (HALF, 16)
    caches = [torch.full((3, n * size // c, block, c), 9).to(kind) for n in heads[1:]]
    scales = [torch.rand(n, size) / 9 + 0.05 for n in heads[1:]] if quantised else [None, None]
    out = torch.zeros(batch * length, heads[0] * size).half()
    device = [t.npu() for t in (qkv, *gammas, cos, sin, index, out, *caches)]
    given = [None if s is None else s.npu() for s in scales]
    with called() as names:
        kept = torch_npu.npu_qkv_rms_norm_rope_cache(
            *device, [batch, length, total, size], list(heads), k_scale=given[0], v_scale=given[1], is_output_qkv=True
        )
    assert "QkvRmsNormRopeCache" in names
    parts = qkv.view(-1, total, size).split(heads, 1)
    angles = [t.double()[:, None] for t in (cos, sin)]
    normed = [rms(x, g, 1e-6) for x, g in zip(parts, gammas, strict=False)]
    query, key = (x * angles[0] + turn(x) * angles[1] for x in normed)
    close(device[6], query.flatten(1), HALF)
    for actual, expected in zip(kept, (query, key, parts[2]), strict=True):
        close(actual, expected.flatten(1).double(), HALF)
    for cache, rows, scale, actual in zip(caches, (key, parts[2].double()), scales, device[7:], strict=True):
        numbers = rows if scale is None else (rows / scale.double()).round().clamp(-128, 127)
        for token, slot in enumerate(index.tolist()):
            if slot >= 0:
                cache[slot // block, :, slot % block] = numbers[token].reshape(-1, c).to(kind)
        assert (actual.cpu().double() - cache.double()).abs().max() <= (1 if quantised else 1e-2)


@pytest.mark.parametrize("mode", ["contiguous", "page"])
@pytest.mark.parametrize("offsets", [False, True])
def test_rope_quant_kvcache(mode: str, offsets: bool) -> None:
    batch, length, size = 2, 2, 32
    x = torch.randn(batch, length, (3 + 2 + 2) * size).half()
    cos, sin = (torch.randn(batch, length, 1, size).half() for _ in range(2))
    caches = [torch.full((batch, 5, 2, size), 9, dtype=torch.int8) for _ in range(2)]
    scales, shifts = [torch.rand(size) * 20 for _ in range(2)], [torch.randn(size) for _ in range(2)]
    indices = torch.tensor([3, 0] if mode == "contiguous" else [9, 1, 4, 6]).int()
    device = [t.npu() for t in (x, cos, sin, *caches, indices, *scales)]
    shift = {"offset_k": shifts[0].npu(), "offset_v": shifts[1].npu()} if offsets else {}
    with called() as names:
        out = torch_npu.npu_rope_quant_kvcache(
            *device, [3 * size, 2 * size, 2 * size], kv_output=True, cache_mode=mode, **shift
        )
    assert "DequantRopeQuantKvcache" in names
    query, key, value = (t.view(batch, length, -1, size).double() for t in x.split([3 * size, 2 * size, 2 * size], -1))
    query, key = (t * cos.double() + turn(t) * sin.double() for t in (query, key))
    for actual, expected in zip(out[:3], (query, key, value), strict=True):
        close(actual, expected, HALF)
    for cache, rows, scale, o, actual in zip(caches, (key, value), scales, shifts, device[3:5], strict=True):
        numbers = (rows * scale.double() + (o.double() if offsets else 0)).round().clamp(-128, 127).to(torch.int8)
        if mode == "page":
            cache.view(10, 2, size)[indices.long()] = numbers.view(4, 2, size)
        else:
            for b, start in enumerate(indices.tolist()):
                cache[b, start : start + length] = numbers[b]
        assert (actual.cpu().int() - cache.int()).abs().max() <= 1


def test_refusals() -> None:
    key, cache = torch.zeros(3, 2, 32).half().npu(), torch.zeros(2, 4, 2, 32).half().npu()
    scatter = torch_npu.npu_scatter_pa_kv_cache
    slots = torch.tensor([0, 1, 8]).npu()
    with pytest.raises(RuntimeError, match="slot_mapping"):
        scatter(key, key, cache, cache, slots, cache_mode="Norm")
    with pytest.raises(RuntimeError, match="a cache"):
        scatter(key, key, cache, cache, slots, cache_mode="PA_NZ")
    with pytest.raises(RuntimeError, match="compress_lens"):
        scatter(key, key, cache, cache, slots, compress_lens=slots, cache_mode="Norm")
    with pytest.raises(RuntimeError, match="cache_mode"):
        scatter(key, key, cache, cache, slots, cache_mode="BNSD")
    x, updates = torch.zeros(2, 4, 32, dtype=torch.int8).npu(), torch.zeros(2, 1, 32).half().npu()
    scales = torch.ones(32).npu()
    with pytest.raises(RuntimeError, match="axis and quant_axis"):
        torch_npu.npu_quant_scatter(x, torch.zeros(2).int().npu(), updates, scales, axis=0, quant_axis=-1)
    with pytest.raises(RuntimeError, match="indices"):
        torch_npu.npu_quant_scatter(x, torch.tensor([0, 4]).int().npu(), updates, scales, axis=1, quant_axis=-1)
    with pytest.raises(RuntimeError, match="quant_mode"):
        splits = [32, 32, 32]
        one = torch.zeros(1, 1, 96).half().npu()
        angle, int8 = torch.zeros(1, 1, 1, 32).half().npu(), torch.zeros(1, 2, 1, 32, dtype=torch.int8).npu()
        place = torch.zeros(1).int().npu()
        torch_npu.npu_rope_quant_kvcache(one, angle, angle, int8, int8, place, scales, scales, splits, quant_mode=1)
