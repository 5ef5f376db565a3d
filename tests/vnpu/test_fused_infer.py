"""Attention for inference (npu_fused_infer_attention_score and its v2) against float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch_npu
from tests.vnpu.attention_reference import FAR, attention, close, seen_by, triangle
from tests.vnpu.fused_infer_calls import ENDS, HALF, KEYS, QUERIES, TO, each, fused, operands, packed, pages, second
from tests.vnpu.support import called

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
