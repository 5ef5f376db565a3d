"""Attention for inference (npu_fused_infer_attention_score, its v2, prompt, incremental) against float64."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import pytest
import torch
import torch_npu
from tests.vnpu.attention_reference import FAR, attention, close, seen_by, triangle
from tests.vnpu.support import called
from torch import Tensor

from gallium.vnpu.registry import operators

HALF = torch.float16
TO = {
    "BNSD": lambda x: x,
    "BSND": lambda x: x.transpose(1, 2).contiguous(),
    "BSH": lambda x: x.transpose(1, 2).flatten(2),
    "NBSD": lambda x: x.transpose(0, 1).contiguous(),
}


def operands(
    heads: int = 4, kv_heads: int = 2, queries: int = 6, keys: int = 10, size: int = 32, dtype: torch.dtype = HALF
) -> list[Tensor]:
    return [torch.randn(2, n, s, size).to(dtype) for n, s in ((heads, queries), (kv_heads, keys), (kv_heads, keys))]


def fused(x: list[Tensor], layout: str = "BNSD", expect: str = "V3", **options: Any) -> tuple[Tensor, Tensor]:
    """npu_fused_infer_attention_score on [B, N, S, D] operands; options on the CPU are brought to the device."""
    source = layout.split("_")[0]
    device = {k: v.npu() if isinstance(v, Tensor) else v for k, v in options.items()}
    device.setdefault("num_heads", x[0].shape[1])
    device.setdefault("num_key_value_heads", x[1].shape[1])
    device.setdefault("scale", 0.2)
    with called() as names:
        out, lse = torch_npu.npu_fused_infer_attention_score(
            *[TO[source](t).npu() for t in x], input_layout=layout, **device
        )
    assert f"FusedInferAttentionScore{expect}" in names
    return out.cpu(), lse.cpu()


LAYOUTS = ["BNSD", "BSND", "BSH", "BNSD_BSND", "BSND_BNSD", "BSH_BNSD", "BSH_NBSD", "BSND_NBSD", "BNSD_NBSD"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_and_lse(layout: str) -> None:
    x = operands()
    out, lse = fused(x, layout, softmax_lse_flag=True)
    expected = attention(*x, 0.2)
    close(out, TO[layout.split("_")[-1]](expected.out), HALF)
    close(lse, expected.maximum + expected.total.log(), torch.float32)


def test_bfloat16_and_no_lse() -> None:
    x = operands(dtype=torch.bfloat16, kv_heads=4)
    out, lse = fused(x, num_key_value_heads=0)
    assert lse.numel() <= 1
    close(out, attention(*x, 0.2).out, torch.bfloat16)


MODES = [(0, 3, 2), (0, FAR, 1), (1, 0, 0), (2, 0, 0), (3, 0, 0), (4, 4, 2)]


@pytest.mark.parametrize(("mode", "pre", "after"), MODES)
def test_sparse_modes(mode: int, pre: int, after: int) -> None:
    x, mask = operands(), torch.rand(2, 1, 6, 10) < 0.2
    given = triangle() if mode >= 2 else mask
    out, lse = fused(
        x, sparse_mode=mode, pre_tokens=pre, next_tokens=after, atten_mask=given, inner_precise=2, softmax_lse_flag=True
    )
    seen = seen_by(mode, 6, 10, pre, after)
    expected = attention(*x, 0.2, seen if mode >= 2 else seen & ~mask)
    close(out, expected.out, HALF)
    close(lse, expected.maximum + expected.total.log(), torch.float32)


@pytest.mark.parametrize("shape", [(2, 1, 6, 10), (1, 1, 6, 10), (1, 6, 10), (6, 10), (2, 1, 16, 32)])
@pytest.mark.parametrize("dtype", [torch.bool, torch.int8, torch.uint8])
def test_mask_shapes(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """The last is larger than needed, as masks of aligned sizes are."""
    x, mask = operands(), torch.rand(shape) < 0.3
    out, _ = fused(x, atten_mask=mask.to(dtype), inner_precise=2)
    close(out, attention(*x, 0.2, ~mask[..., :6, :10].reshape(-1, 1, 6, 10)).out, HALF)


@pytest.mark.parametrize("mode", [0, 3])
def test_one_query_ignores_modes_and_limits(mode: int) -> None:
    x, mask = operands(queries=1), torch.rand(2, 10) < 0.3
    given = triangle() if mode == 3 else mask
    out, _ = fused(x, atten_mask=given, sparse_mode=mode, pre_tokens=0, next_tokens=0)
    close(out, attention(*x, 0.2, None if mode == 3 else ~mask[:, None, None]).out, HALF)


@pytest.mark.parametrize("queries", [1, 6])
def test_lengths(queries: int) -> None:
    """Rows after a sequence's length become zeros; with one query its length means nothing."""
    x, lengths, kv_lengths = operands(queries=queries), [min(4, queries), queries], [10, 7]
    out, _ = fused(x, actual_seq_lengths=lengths, actual_seq_lengths_kv=kv_lengths)
    for b in range(2):
        part = [x[0][b : b + 1, :, : lengths[b]], *(t[b : b + 1, :, : kv_lengths[b]] for t in x[1:])]
        close(out[b : b + 1, :, : lengths[b]], attention(*part, 0.2).out, HALF)
        assert out[b, :, lengths[b] :].abs().sum() == 0


def test_one_length_for_all_and_causal_masks_that_follow_it() -> None:
    x = operands()
    out, _ = fused(x, actual_seq_lengths_kv=[8], sparse_mode=3, atten_mask=triangle())
    close(out, attention(x[0], x[1][:, :, :8], x[2][:, :, :8], 0.2, seen_by(3, 6, 8)).out, HALF)


@pytest.mark.parametrize("queries", [1, 6])
def test_left_padding(queries: int) -> None:
    x, lengths = operands(queries=queries), [5, 8]
    options: dict[str, Any] = {"actual_seq_lengths_kv": lengths, "kv_padding_size": torch.tensor([1])}
    rows = [slice(0, 6)] * 2
    if queries > 1:
        options |= {"actual_seq_lengths": [3, 4], "query_padding_size": torch.tensor([2])}
        rows = [slice(1, 4), slice(0, 4)]
    out, _ = fused(x, **options)
    for b in range(2):
        keys = slice(9 - lengths[b], 9)
        part = [x[0][b : b + 1, :, rows[b]], *(t[b : b + 1, :, keys] for t in x[1:])]
        close(out[b : b + 1, :, rows[b]], attention(*part, 0.2).out, HALF)


def test_one_query_with_padding_beyond_the_start_gives_zeros() -> None:
    x = operands(queries=1)
    out, _ = fused(x, actual_seq_lengths_kv=[9, 4], kv_padding_size=torch.tensor([2]))
    assert out[0].abs().sum() == 0 and out[1].abs().sum() > 0


@pytest.mark.parametrize("length", [None, [3]])
def test_shared_prefix(length: list[int] | None) -> None:
    x, prefix = operands(), [torch.randn(1, 2, 5, 32).half() for _ in range(2)]
    n = 5 if length is None else 3
    mask = torch.rand(2, 1, 6, 10 + n) < 0.3
    out, _ = fused(
        x, key_shared_prefix=prefix[0], value_shared_prefix=prefix[1], actual_shared_prefix_len=length, atten_mask=mask
    )
    key, value = (torch.cat((p[:, :, :n].expand(2, -1, -1, -1), t), 2) for p, t in zip(prefix, x[1:], strict=True))
    close(out, attention(x[0], key, value, 0.2, ~mask).out, HALF)


@pytest.mark.parametrize("shape", [(2, 4, 6, 10), (1, 4, 6, 16)])
def test_position_encoding_is_added_to_scaled_scores(shape: tuple[int, ...]) -> None:
    x, pse = operands(), torch.randn(shape).half()
    out, _ = fused(x, pse_shift=pse)
    close(out, attention(*x, 0.2, bias=pse[..., :10]).out, HALF)


def pages(x: Tensor, block: int, kind: str) -> tuple[Tensor, Tensor]:
    """A cache with the tokens of [B, Nkv, S, D] in shuffled blocks, and its block table."""
    batch, heads, keys, size = x.shape
    per = -(-keys // block)
    order = torch.randperm(batch * per + 1)
    padded = torch.nn.functional.pad(x, (0, 0, 0, per * block - keys)).view(batch, heads, per, block, size)
    cache = torch.full((batch * per + 1, heads, block, size), 9).to(x.dtype)
    table = order[: batch * per].view(batch, per).to(torch.int32)
    for b in range(batch):
        cache[table[b].long()] = padded[b].transpose(0, 1)
    c = 32 if x.dtype == torch.int8 else 16
    layouts = {
        "BnNBsD": lambda t: t,
        "BnBsH": lambda t: t.transpose(1, 2).flatten(2),
        "NZ": lambda t: t.unflatten(3, (-1, c)).permute(0, 1, 3, 2, 4),
    }
    return layouts[kind](cache).contiguous(), table


@pytest.mark.parametrize("kind", ["BnNBsD", "BnBsH", "NZ"])
@pytest.mark.parametrize("queries", [1, 5])
def test_paged_caches(kind: str, queries: int) -> None:
    x, lengths = operands(queries=queries, keys=300), [300, 140]
    torch.manual_seed(3)
    key, table = pages(x[1], 128, kind)
    torch.manual_seed(3)
    value, _ = pages(x[2], 128, kind)
    mode = {} if queries == 1 else {"sparse_mode": 3, "atten_mask": triangle().npu()}
    with called() as names:
        out, _ = torch_npu.npu_fused_infer_attention_score(
            x[0].npu(),
            key.npu(),
            value.npu(),
            num_heads=4,
            num_key_value_heads=2,
            scale=0.2,
            input_layout="BNSD",
            block_table=table.npu(),
            block_size=128,
            actual_seq_lengths_kv=lengths,
            **mode,
        )
    assert "FusedInferAttentionScoreV3" in names
    for b, n in enumerate(lengths):
        part = [x[0][b : b + 1], *(t[b : b + 1, :, :n] for t in x[1:])]
        seen = None if queries == 1 else seen_by(3, queries, n)
        close(out[b : b + 1], attention(*part, 0.2, seen).out, HALF)


QUERIES, KEYS = [3, 1, 4], [5, 6, 4]
ENDS = {"actual_seq_lengths": list(accumulate(QUERIES)), "actual_seq_lengths_kv": list(accumulate(KEYS))}


def packed(
    size: int = 128, value_size: int = 128, dtype: torch.dtype = HALF, heads: tuple[int, int] = (4, 2)
) -> list[Tensor]:
    n, kv = heads
    shapes = ((sum(QUERIES), n, size), (sum(KEYS), kv, size), (sum(KEYS), kv, value_size))
    return [torch.randn(s).to(dtype) for s in shapes]


def each(x: list[Tensor]) -> list[list[Tensor]]:
    """The operands [1, N, S, D] of each packed sequence."""
    queries, keys = x[0].split(QUERIES), [t.split(KEYS) for t in x[1:]]
    return [[t.transpose(0, 1)[None] for t in (q, k, v)] for q, k, v in zip(queries, *keys, strict=True)]


@pytest.mark.parametrize("layout", ["TND", "NTD", "NTD_TND"])
@pytest.mark.parametrize("mode", [0, 3, 4])
def test_packed_batches(layout: str, mode: int) -> None:
    x = packed(size=192)
    given = [t.transpose(0, 1).contiguous() if layout.startswith("NTD") else t for t in x]
    mask = {} if mode == 0 else {"atten_mask": triangle().npu()}
    out, lse = torch_npu.npu_fused_infer_attention_score(
        *[t.npu() for t in given],
        num_heads=4,
        num_key_value_heads=2,
        scale=0.1,
        input_layout=layout,
        sparse_mode=mode,
        pre_tokens=2,
        next_tokens=1,
        softmax_lse_flag=True,
        **ENDS,
        **mask,
    )
    expected = [
        attention(*p, 0.1, None if mode == 0 else seen_by(mode, q, k, 2, 1))
        for p, q, k in zip(each(x), QUERIES, KEYS, strict=True)
    ]
    rows = torch.cat([r.out[0] for r in expected], 1)
    close(out, rows if layout == "NTD" else rows.transpose(0, 1), HALF)
    lses = torch.cat([(r.maximum + r.total.log())[0] for r in expected], 1).transpose(0, 1)
    close(lse, lses, torch.float32)


def test_packed_queries_with_paged_keys() -> None:
    """Lengths of keys are then not cumulative; rows after the last sequence become zeros."""
    x = [torch.randn(9, 4, 128).half(), *(torch.randn(3, 2, 200, 128).half() for _ in range(2))]
    lengths = [200, 130, 5]
    torch.manual_seed(3)
    key, table = pages(x[1], 128, "BnBsH")
    torch.manual_seed(3)
    value, _ = pages(x[2], 128, "BnBsH")
    out, _ = torch_npu.npu_fused_infer_attention_score(
        x[0].npu(),
        key.npu(),
        value.npu(),
        num_heads=4,
        num_key_value_heads=2,
        scale=0.1,
        input_layout="TND",
        block_table=table.npu(),
        block_size=128,
        actual_seq_lengths=ENDS["actual_seq_lengths"],
        actual_seq_lengths_kv=lengths,
        sparse_mode=3,
        atten_mask=triangle().npu(),
    )
    for b, (q, n) in enumerate(zip(x[0][:8].split(QUERIES), lengths, strict=True)):
        part = [q.transpose(0, 1)[None], x[1][b : b + 1, :, :n], x[2][b : b + 1, :, :n]]
        first = sum(QUERIES[:b])
        close(out[first : first + len(q)].transpose(0, 1)[None], attention(*part, 0.1, seen_by(3, len(q), n)).out, HALF)
    assert out[8:].cpu().abs().sum() == 0


@pytest.mark.parametrize("layout", ["BNSD", "BSND", "BSH", "BSND_NBSD"])
@pytest.mark.parametrize("queries", [1, 3])
def test_latent_attention(layout: str, queries: int) -> None:
    x = operands(kv_heads=1, size=512, queries=queries)
    ropes = [torch.randn(2, 4, queries, 64).half(), torch.randn(2, 1, 10, 64).half()]
    mode = {} if queries == 1 else {"sparse_mode": 3, "atten_mask": triangle()}
    source = layout.split("_")[0]
    out, _ = fused(x, layout, query_rope=TO[source](ropes[0]), key_rope=TO[source](ropes[1]), scale=0.05, **mode)
    joined = [torch.cat((x[0], ropes[0]), -1), torch.cat((x[1], ropes[1]), -1), x[2]]
    expected = attention(*joined, 0.05, None if queries == 1 else seen_by(3, queries, 10)).out
    close(out, TO[layout.split("_")[-1]](expected), HALF)


def test_latent_attention_in_nz_pages() -> None:
    x = operands(kv_heads=1, size=512, queries=2, keys=40)
    rope = torch.randn(2, 4, 2, 64).half()
    caches = []
    key_rope = torch.randn(2, 1, 40, 64).half()
    for t in (x[1], key_rope):
        torch.manual_seed(3)
        caches.append(pages(t, 16, "NZ"))
    table = caches[0][1]
    out, _ = torch_npu.npu_fused_infer_attention_score(
        x[0].npu(),
        caches[0][0].npu(),
        caches[0][0].npu(),
        query_rope=rope.npu(),
        key_rope=caches[1][0].npu(),
        num_heads=4,
        num_key_value_heads=1,
        scale=0.05,
        input_layout="BNSD",
        block_table=table.npu(),
        block_size=16,
        actual_seq_lengths_kv=[40, 17],
        sparse_mode=3,
        atten_mask=triangle().npu(),
    )
    query, key = torch.cat((x[0], rope), -1), torch.cat((x[1], key_rope), -1)
    for b, n in enumerate((40, 17)):
        part = (query[b : b + 1], key[b : b + 1, :, :n], x[1][b : b + 1, :, :n])
        close(out[b : b + 1], attention(*part, 0.05, seen_by(3, 2, n)).out, HALF)


def second(x: list[Tensor], layout: str = "BNSD", **options: Any) -> Tensor:
    """npu_fused_infer_attention_score_v2 on operands [B, N, S, D]."""
    device = {k: v.npu() if isinstance(v, Tensor) else v for k, v in options.items()}
    device.setdefault("num_query_heads", x[0].shape[1])
    device.setdefault("num_key_value_heads", x[1].shape[1])
    device.setdefault("softmax_scale", 0.2)
    with called() as names:
        out, _ = torch_npu.npu_fused_infer_attention_score_v2(*[t.npu() for t in x], input_layout=layout, **device)
    assert "FusedInferAttentionScoreV4" in names
    return out.cpu()


@pytest.mark.parametrize("layout", ["TND", "BSND"])
def test_tree_masks(layout: str) -> None:
    """Queries see all keys but the last ones, and of those what the mask says."""
    if layout == "TND":
        x, ropes = packed(), [torch.randn(8, 4, 64).half(), torch.randn(15, 2, 64).half()]
        squares = [torch.rand(q, q) < 0.4 for q in QUERIES]
        mask = torch.cat([s.flatten() for s in squares])
        ends = {"actual_seq_qlen": ENDS["actual_seq_lengths"], "actual_seq_kvlen": ENDS["actual_seq_lengths_kv"]}
        out = second(
            x,
            "TND",
            query_rope=ropes[0],
            key_rope=ropes[1],
            atten_mask=mask,
            sparse_mode=9,
            num_query_heads=4,
            num_key_value_heads=2,
            **ends,
        )
        joined = each([torch.cat((x[0], ropes[0]), -1), torch.cat((x[1], ropes[1]), -1), x[2]])
        expected = []
        for parts, square, k in zip(joined, squares, KEYS, strict=True):
            seen = torch.nn.functional.pad(~square, (k - len(square), 0), value=True)
            expected.append(attention(*parts, 0.2, seen).out[0].transpose(0, 1))
        close(out, torch.cat(expected), HALF)
        return
    source = operands(kv_heads=1, size=512)
    x = [TO["BSND"](t) for t in source]
    ropes = [torch.randn(2, 6, 4, 64).half(), torch.randn(2, 10, 1, 64).half()]
    mask = torch.rand(2, 6, 6) < 0.4
    out = second(
        x,
        "BSND",
        query_rope=ropes[0],
        key_rope=ropes[1],
        atten_mask=mask,
        sparse_mode=9,
        softmax_scale=0.05,
        num_query_heads=4,
        num_key_value_heads=1,
    )
    joined = [torch.cat((t, r.transpose(1, 2)), -1) for t, r in zip(source[:2], ropes, strict=True)]
    seen = torch.nn.functional.pad(~mask, (4, 0), value=True)[:, None]
    close(out, TO["BSND"](attention(*joined, source[2], 0.05, seen).out), HALF)


def test_learnable_sink() -> None:
    x, sink = packed(dtype=torch.bfloat16), torch.randn(4).bfloat16()
    ends = {"actual_seq_qlen": ENDS["actual_seq_lengths"], "actual_seq_kvlen": ENDS["actual_seq_lengths_kv"]}
    out = second(x, "TND", learnable_sink=sink, num_query_heads=4, num_key_value_heads=2, **ends)
    expected = [attention(*p, 0.2, sink=sink).out[0].transpose(0, 1) for p in each(x)]
    close(out, torch.cat(expected), torch.bfloat16)


def quantise(x: Tensor, bits: int = 8) -> Tensor:
    return torch.randint(-(1 << (bits - 1)), 1 << (bits - 1), x.shape, dtype=torch.int8)


SCALES: dict[int, Any] = {
    0: [(1, 2, 1, 64), (1, 2, 64), (1, 128), (1,)],
    1: [(1, 2, 10), (2, 10)],
    2: [(2,)],
    3: [(2, 2, 10)],
}
SCALE_VIEWS = {
    0: lambda s: s.reshape(1, 2, 1, 64) if s.numel() > 1 else s,
    1: lambda s: s.reshape(2, 1, 10, 1),
    2: lambda s: s.view(1, 2, 1, 1),
    3: lambda s: s[..., None],
}


@pytest.mark.parametrize("offsets", [False, True])
@pytest.mark.parametrize(
    ("mode", "shape", "bits"),
    [(m, s, bits) for m, shapes in SCALES.items() for s in shapes for bits in (8, 4) if (m, bits) != (2, 4)],
)
def test_quantised_keys_and_values(mode: int, shape: tuple[int, ...], bits: int, offsets: bool) -> None:
    """x = (q + offset) * scale; 4-bit numbers come eight in an int32, the lowest first."""
    x = operands(queries=1, size=64)
    raw = [quantise(t, bits) for t in x[1:]]
    dtype = HALF if mode in (0, 2) else torch.float32
    scales = [(torch.rand(shape) / 2**bits).to(dtype) for _ in range(2)]
    shifts = [torch.randn(shape).to(dtype) for _ in range(2)] if offsets else [None, None]
    view = SCALE_VIEWS[mode]
    numbers = [
        (r.double() + (0 if o is None else view(o.double()))) * view(s.double())
        for r, s, o in zip(raw, scales, shifts, strict=True)
    ]
    if bits == 4:
        raw = [sum((r[..., i::8].to(torch.int32) & 15) << (4 * i) for i in range(8)) for r in raw]
    out, _ = fused(
        [x[0], *raw],
        num_key_value_heads=2,
        key_antiquant_scale=scales[0],
        value_antiquant_scale=scales[1],
        key_antiquant_offset=shifts[0],
        value_antiquant_offset=shifts[1],
        key_antiquant_mode=mode,
        value_antiquant_mode=mode,
        inner_precise=1,
    )
    close(out, attention(x[0], *numbers, 0.2).out, HALF)


@pytest.mark.parametrize("mode", [0, 4, 5])
def test_quantised_pages(mode: int) -> None:
    """Modes 4 and 5 keep scales in pages too."""
    x = operands(queries=1, keys=150, size=32)
    raw = [quantise(t) for t in x[1:]]
    shape = {0: (1, 2, 1, 32), 4: (2, 1, 150, 1), 5: (2, 2, 150, 1)}[mode]
    scales = [torch.rand(shape) / 256 for _ in range(2)]
    caches = []
    for t in raw:
        torch.manual_seed(3)
        caches.append(pages(t, 64, "BnNBsD"))
    given = []
    if mode >= 4:
        for s in scales:
            torch.manual_seed(3)
            cache = pages(s, 64, "BnNBsD")[0][..., 0]
            given.append(cache[:, 0].contiguous() if mode == 4 else cache)
    else:
        scales = [s.half() for s in scales]
        given = [s.reshape(1, 2, 32) for s in scales]
    out, _ = torch_npu.npu_fused_infer_attention_score(
        x[0].npu(),
        caches[0][0].npu(),
        caches[1][0].npu(),
        num_heads=4,
        num_key_value_heads=2,
        scale=0.2,
        input_layout="BNSD",
        block_table=caches[0][1].npu(),
        block_size=64,
        actual_seq_lengths_kv=[150, 70],
        key_antiquant_scale=given[0].npu(),
        value_antiquant_scale=given[1].npu(),
        key_antiquant_mode=mode,
        value_antiquant_mode=mode,
    )
    numbers = [r.double() * s.double() for r, s in zip(raw, scales, strict=True)]
    for b, n in enumerate((150, 70)):
        part = [x[0][b : b + 1], *(t[b : b + 1, :, :n] for t in numbers)]
        close(out[b : b + 1], attention(*part, 0.2).out, HALF)


@pytest.mark.parametrize("shape", [(2,), (2, 2, 1, 32), (2, 64)])
def test_common_scales_of_keys_and_values(shape: tuple[int, ...]) -> None:
    x = operands(queries=1)
    raw, scale, shift = [quantise(t) for t in x[1:]], (torch.rand(shape) / 256).half(), torch.randn(shape).half()
    out, _ = fused([x[0], *raw], antiquant_scale=scale, antiquant_offset=shift)

    def numbers(i: int) -> Tensor:
        s, o = (t[i].double().reshape((1, 2, 1, 32) if t[i].numel() > 1 else ()) for t in (scale, shift))
        return (raw[i].double() + o) * s

    close(out, attention(x[0], numbers(0), numbers(1), 0.2).out, HALF)


@pytest.mark.parametrize("shape", [(1,), (1, 4, 1, 32), (4, 32)])
def test_rounded_outputs(shape: tuple[int, ...]) -> None:
    x, scale = operands(), torch.rand(shape) * 90 + 10
    offset = torch.randn(shape)
    out, _ = fused(x, quant_scale2=scale, quant_offset2=offset)
    view = (1, 4, 1, 32) if scale.numel() > 1 else (1,)
    exact = attention(*x, 0.2).out * scale.double().view(view) + offset.double().view(view)
    assert out.dtype == torch.int8
    assert (out.double() - exact.round().clamp(-128, 127)).abs().max() <= 1
    assert (out.double() - exact.clamp(-128, 127)).abs().max() < 0.51


@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize("encoded", [False, True])
def test_int8_throughout(rounded: bool, encoded: bool) -> None:
    """dequant_scale may be a float32 in the low half of a uint64."""
    x = [quantise(t) for t in operands()]
    d1, q1, d2, q2 = 1e-4, 127.0, 2e-4, 20.0
    scales = [torch.tensor([s]) for s in (d1, q1, d2)]
    if encoded:
        scales[0], scales[2] = (s.view(torch.int32).to(torch.int64).view(torch.uint64) for s in (scales[0], scales[2]))
    after = {"quant_scale2": torch.tensor([q2])} if rounded else {}
    out, _ = fused(x, dequant_scale1=scales[0], quant_scale1=scales[1], dequant_scale2=scales[2], **after)
    key, value = (t.double().repeat_interleave(2, 1) for t in x[1:])
    scores = x[0].double() @ key.transpose(-1, -2) * d1 * 0.2
    weights = (scores - scores.amax(-1, keepdim=True)).exp()
    exact = (weights * q1).round() @ value * d2 / weights.sum(-1, keepdim=True)
    if rounded:
        assert (out.double() - (exact * q2).clamp(-128, 127)).abs().max() < 0.6
    else:
        close(out, exact, HALF)


def test_int8_latent_attention() -> None:
    """The scales hold for the rotated parts too, as MlaProlog writes them."""
    x = [torch.randint(-9, 9, (2, n, 3, 512), dtype=torch.int8) for n in (4, 1, 1)]
    ropes = [torch.randn(2, n, 3, 64).bfloat16() for n in (4, 1)]
    per_row, k, v = torch.rand(2, 4, 3) / 9, torch.tensor([0.02]), torch.tensor([0.03])
    out = second(
        [x[0], x[1], x[1]],
        query_rope=ropes[0],
        key_rope=ropes[1],
        dequant_scale_query=per_row,
        dequant_scale_key=k,
        dequant_scale_value=v,
        query_quant_mode=3,
        sparse_mode=3,
        atten_mask=triangle(),
    )
    query = torch.cat((x[0].double(), ropes[0].double()), -1) * per_row.double()[..., None]
    key = torch.cat((x[1].double(), ropes[1].double()), -1) * k.double()
    close(out, attention(query, key, x[1].double() * v.double(), 0.2, seen_by(3, 3, 3)).out, torch.bfloat16)


def test_prompt_attention() -> None:
    """Its default for next_tokens is 0, and modes 10 to 14 ask for high precision."""
    x, mask = operands(), torch.zeros(6, 10, dtype=torch.bool)
    with called() as names:
        out = torch_npu.npu_prompt_flash_attention(
            *[t.npu() for t in x],
            num_heads=4,
            num_key_value_heads=2,
            scale_value=0.2,
            input_layout="BNSD",
            atten_mask=mask.npu(),
            sparse_mode=10,
        )
    assert "PromptFlashAttentionV3" in names
    close(out, attention(*x, 0.2, seen_by(0, 6, 10, FAR, 0)).out, HALF)


def test_incremental_attention() -> None:
    x, mask = operands(queries=1, keys=300), torch.rand(2, 1, 1, 384) < 0.3
    caches = []
    for t in x[1:]:
        torch.manual_seed(3)
        caches.append(pages(t, 128, "BnBsH"))
    with called() as names:
        out = torch_npu.npu_incre_flash_attention(
            TO["BSH"](x[0]).npu(),
            caches[0][0].npu(),
            caches[1][0].npu(),
            num_heads=4,
            num_key_value_heads=2,
            scale_value=0.2,
            input_layout="BSH",
            block_table=caches[0][1].npu(),
            block_size=128,
            actual_seq_lengths=[300, 150],
            atten_mask=mask.npu(),
        )
    assert "IncreFlashAttentionV4" in names
    for b, n in enumerate((300, 150)):
        part = [x[0][b : b + 1], *(t[b : b + 1, :, :n] for t in x[1:])]
        close(out[b : b + 1], TO["BSH"](attention(*part, 0.2, ~mask[b, 0, :, :n]).out), HALF)


def test_keys_of_length_0_give_zeros() -> None:
    x = operands()
    out, lse = fused([x[0], x[1][:, :, :0], x[2][:, :, :0]], softmax_lse_flag=True)
    assert out.abs().sum() == 0 and torch.isneginf(lse).all()


def test_the_oldest_version_by_its_body() -> None:
    """torch_npu calls V2 only with a CANN older than 8.1."""
    x, out = operands(), torch.empty(2, 4, 6, 32, dtype=HALF)
    none = (None,) * 5
    operators()["FusedInferAttentionScoreV2"].body(
        x[0],
        (x[1],),
        (x[2],),
        None,
        None,
        None,
        None,
        *none,
        None,
        None,
        None,
        None,
        None,
        None,
        None,
        None,
        None,
        None,
        None,
        None,
        4,
        0.2,
        FAR,
        FAR,
        "BNSD",
        2,
        0,
        0,
        0,
        0,
        False,
        0,
        0,
        out,
        None,
    )
    close(out, attention(*x, 0.2).out, HALF)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"sparse_mode": 5}, "sparse_mode"),
    ({"sparse_mode": 1}, "atten_mask"),
    ({"sparse_mode": 3, "atten_mask": torch.ones(6, 10, dtype=torch.bool)}, "atten_mask"),
    ({"atten_mask": torch.ones(6, 9, dtype=torch.bool)}, "atten_mask"),
    ({"inner_precise": 4}, "inner_precise"),
    ({"quant_scale2": torch.ones(7)}, "quant_scale2"),
    ({"quant_scale2": torch.ones(1).half()}, "quant_scale2"),
    ({"quant_offset2": torch.ones(1)}, "quant_offset2"),
    ({"key_antiquant_scale": torch.ones(1).half()}, "value_antiquant_scale"),
    ({"antiquant_scale": torch.ones(2).half()}, "scale of keys and values"),
    ({"query_rope": torch.ones(2, 4, 6, 64).half()}, "key_rope"),
    ({"key_shared_prefix": torch.ones(1, 2, 3, 32).half()}, "value_shared_prefix"),
    ({"actual_seq_lengths_kv": [11]}, "actual_seq_lengths_kv"),
    ({"block_table": torch.zeros(2, 1, dtype=torch.int32), "block_size": 128}, "block_size"),
    ({"dequant_scale1": torch.ones(1)}, "dequant_scale1"),
    ({"num_key_value_heads": 3}, "the number of heads"),
    ({"key_rope_antiquant_scale": torch.ones(1)}, "key_rope_antiquant_scale"),
    ({"pse_shift": torch.zeros(2, 4, 6, 9).half()}, "pse_shift"),
    ({"query_padding_size": torch.tensor([1]), "atten_mask": torch.zeros(6, 10, dtype=torch.bool)}, "atten_mask"),
]


@pytest.mark.parametrize(("options", "named"), REFUSED)
def test_refusals(options: dict[str, Any], named: str) -> None:
    with pytest.raises(RuntimeError, match=named):
        fused(operands(), **options)


def test_refuses_sizes_that_the_pages_exclude() -> None:
    for size in (24, 528):
        with pytest.raises(RuntimeError, match="head size"):
            fused(operands(size=size))
    with pytest.raises(RuntimeError, match="head sizes of query and value"):
        torch_npu.npu_fused_infer_attention_score(
            *[t.npu() for t in packed(96, 96)], num_heads=4, num_key_value_heads=2, input_layout="TND", **ENDS
        )
    x = operands(queries=1, keys=300)
    key, table = pages(x[1], 128, "BnNBsD")
    options = {"num_heads": 4, "num_key_value_heads": 2, "input_layout": "BNSD", "block_size": 128}
    for bad, named in ((table + 10, "block_table"), (table[:, :1], "block_table")):
        with pytest.raises(RuntimeError, match=named):
            torch_npu.npu_fused_infer_attention_score(
                x[0].npu(),
                key.npu(),
                key.npu(),
                block_table=bad.contiguous().npu(),
                actual_seq_lengths_kv=[300, 9],
                **options,
            )
