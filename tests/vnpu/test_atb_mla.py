"""npu_multi_head_latent_attention, npu_ring_mla, and the refusal of npu_mla_preprocess."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch_npu
from tests.vnpu.atb_reference import Cache, attention, blocked
from torch import Tensor

COUNTS = [20, 1, 33]
SCALE = 0.05


def latent(dtype: torch.dtype, kv_heads: int = 1) -> tuple[Tensor, Tensor, Cache, Cache, Tensor, Tensor]:
    heads = 3 * kv_heads
    ctkv = Cache(COUNTS, kv_heads, 512, dtype)
    k_rope = ctkv.like(64)
    q_nope, q_rope = torch.randn(3, heads, 512).to(dtype), torch.randn(3, heads, 64).to(dtype)
    results = [
        attention(
            torch.cat((q_nope[i], q_rope[i]), -1),
            torch.cat((ctkv.tokens(i), k_rope.tokens(i)), -1),
            ctkv.tokens(i),
            SCALE,
        )
        for i in range(3)
    ]
    return q_nope, q_rope, ctkv, k_rope, torch.stack([r[0] for r in results]), torch.stack([r[1] for r in results])


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 4e-3), (torch.bfloat16, 3e-2)])
def test_new_tokens_over_the_latents(dtype: torch.dtype, tolerance: float) -> None:
    q_nope, q_rope, ctkv, k_rope, wanted, wanted_lse = latent(dtype)
    arguments = (q_nope.npu(), q_rope.npu(), ctkv.data.npu(), k_rope.data.npu(), ctkv.table.npu(), COUNTS, 3, SCALE, 1)
    out = torch_npu.atb.npu_multi_head_latent_attention(*arguments)
    torch.testing.assert_close(out.cpu().double(), wanted, rtol=0, atol=tolerance)
    torch_npu.atb.npu_multi_head_latent_attention(*arguments, output=out.zero_())
    torch.testing.assert_close(out.cpu().double(), wanted, rtol=0, atol=tolerance)
    out, lse = torch_npu.atb.npu_multi_head_latent_attention(*arguments, True, calc_type="calc_type_ring")
    torch.testing.assert_close(out.cpu().double(), wanted, rtol=0, atol=tolerance)
    torch.testing.assert_close(lse.cpu().double(), wanted_lse.unsqueeze(-1), rtol=0, atol=8 * tolerance)


def test_several_latents_per_token_and_the_nz_cache() -> None:
    q_nope, q_rope, ctkv, k_rope, wanted, _ = latent(torch.float16, 2)
    caches = (ctkv.data.npu(), k_rope.data.npu())
    arguments = (ctkv.table.npu(), COUNTS, 6, SCALE, 2)
    out = torch_npu.atb.npu_multi_head_latent_attention(q_nope.npu(), q_rope.npu(), *caches, *arguments)
    torch.testing.assert_close(out.cpu().double(), wanted, rtol=0, atol=4e-3)
    torch.npu.config.allow_internal_format = True
    caches = tuple(torch_npu.npu_format_cast(blocked(cache.data.flatten(2)).npu(), 29) for cache in (ctkv, k_rope))
    torch.npu.config.allow_internal_format = False
    nz = torch_npu.atb.npu_multi_head_latent_attention(
        q_nope.npu(), q_rope.npu(), *caches, *arguments, cache_mode="nzcache"
    )
    assert torch.equal(nz.cpu(), out.cpu())
    with pytest.raises(RuntimeError, match="ctkv's format"):
        torch_npu.atb.npu_multi_head_latent_attention(q_nope.npu(), q_rope.npu(), *caches, *arguments)


def test_a_graph_with_a_workspace() -> None:
    q_nope, q_rope, ctkv, k_rope, wanted, _ = latent(torch.float16)
    arguments = (
        q_nope.npu(),
        q_rope.npu(),
        ctkv.data.npu(),
        k_rope.data.npu(),
        ctkv.table.npu(),
        COUNTS,
        3,
        SCALE,
        1,
        True,
    )
    ring = {"calc_type": "calc_type_ring"}
    workspace = torch_npu.atb._npu_multi_head_latent_attention_get_workspace(*arguments, **ring)
    out, lse = torch.zeros(3, 3, 512).half().npu(), torch.zeros(3, 3, 1).half().npu()
    outputs = {"workspace": workspace, "output": out, "lse": lse}
    graph = torch.npu.NPUGraph()
    with torch.npu.graph(graph):
        torch_npu.atb.npu_multi_head_latent_attention(*arguments, **ring, **outputs)
    assert not out.any() and not lse.any()
    graph.replay()
    torch.testing.assert_close(out.cpu().double(), wanted, rtol=0, atol=4e-3)
    out.zero_()
    torch_npu.atb.npu_multi_head_latent_attention(*arguments, **ring, **outputs)
    torch.testing.assert_close(out.cpu().double(), wanted, rtol=0, atol=4e-3)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"calc_type": "calc_type_spec"}, "calc_type = 1"),
        ({"mask_type": "mask_type_free"}, "mask_type = 2"),
        ({"cache_mode": "int8_nzcache"}, "cache_mode = 2"),
        ({"qseqlen": [1, 1, 1]}, "qseqlen"),
        ({"mask": torch.zeros(4)}, "mask"),
        ({"qk_descale": torch.zeros(4)}, "qk_descale"),
        ({"pv_descale": torch.zeros(4)}, "pv_descale"),
    ],
)
def test_forms_of_latent_attention_that_are_not_emulated(change: dict[str, Any], named: str) -> None:
    q_nope, q_rope, ctkv, k_rope, _, _ = latent(torch.float16)
    arguments = (q_nope.npu(), q_rope.npu(), ctkv.data.npu(), k_rope.data.npu(), ctkv.table.npu(), COUNTS, 3, SCALE, 1)
    given = {name: value.npu() if isinstance(value, Tensor) else value for name, value in change.items()}
    with pytest.raises(RuntimeError, match=rf"atb\.MLA: {named}"):
        torch_npu.atb.npu_multi_head_latent_attention(*arguments, **given)


def ring(q_lens: list[int], kv_lens: list[int], heads: int = 4, kv_heads: int = 2) -> list[Tensor]:
    q_rows, kv_rows = sum(q_lens), sum(kv_lens)
    shapes = ((q_rows, heads, 128), (q_rows, heads, 64), (kv_rows, kv_heads, 128), (kv_rows, kv_heads, 64))
    return [torch.randn(shape).bfloat16() for shape in (*shapes, (kv_rows, kv_heads, 128))]


def ring_expected(tensors: list[Tensor], q_lens: list[int], kv_lens: list[int], causal: bool) -> tuple[Tensor, Tensor]:
    query, key, value = torch.cat(tensors[:2], -1), torch.cat(tensors[2:4], -1), tensors[4]
    out, lse, row, column = [], [], 0, 0
    for new, total in zip(q_lens, kv_lens, strict=True):
        rows = slice(column, column + total)
        for i in range(new):
            result = attention(query[row], key[rows], value[rows], SCALE, i + 1 if causal else total)
            out.append(result[0])
            lse.append(result[1])
            row += 1
        column += total
    return torch.stack(out), torch.stack(lse, dim=1)


TRIANGLE = torch.ones(512, 512).triu(1).bfloat16()
FIRST = {"calc_type": "calc_type_first_ring", "qk_scale": SCALE}


def test_first_chunk_with_a_triangle_and_one_length_for_both() -> None:
    lens = [5, 3]
    tensors = ring(lens, lens)
    out, lse = torch_npu.atb.npu_ring_mla(
        *[t.npu() for t in tensors], TRIANGLE.npu(), torch.tensor(lens, dtype=torch.int32), 4, 2,
        mask_type="mask_type_triu", **FIRST,
    )  # fmt: skip
    wanted, wanted_lse = ring_expected(tensors, lens, lens, causal=True)
    torch.testing.assert_close(out.cpu().double(), wanted, rtol=0, atol=1.6e-2)
    torch.testing.assert_close(lse.cpu().double(), wanted_lse, rtol=1e-4, atol=1e-4)


def test_chunks_are_merged_into_the_attention_over_all_of_them() -> None:
    q_lens, first, second = [2, 3], [4, 3], [6, 9]
    tensors, more = ring(q_lens, first), ring(q_lens, second)
    more[:2] = tensors[:2]
    lengths = [torch.tensor([q_lens, kv], dtype=torch.int32) for kv in (first, second)]
    out, lse = torch_npu.atb.npu_ring_mla(*[t.npu() for t in tensors], TRIANGLE.npu(), lengths[0], 4, 2, **FIRST)
    torch_npu.atb.npu_ring_mla(
        *[t.npu() for t in more], TRIANGLE.npu(), lengths[1], 4, 2, pre_out=out, prev_lse=lse, qk_scale=SCALE,
        calc_type="calc_type_default", output=out, softmax_lse=lse,
    )  # fmt: skip
    joined = tensors[:2] + [
        torch.cat([part for a, b in zip(x.split(first), y.split(second), strict=True) for part in (a, b)])
        for x, y in zip(tensors[2:], more[2:], strict=True)
    ]
    wanted, wanted_lse = ring_expected(
        joined, q_lens, [a + b for a, b in zip(first, second, strict=True)], causal=False
    )
    torch.testing.assert_close(out.cpu().double(), wanted, rtol=0, atol=1.6e-2)
    torch.testing.assert_close(lse.cpu().double(), wanted_lse, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("q_lens", "kv_lens", "options", "named"),
    [
        ([2, 3], [4, 0], FIRST, "seqlen"),
        ([4], [3], FIRST, "seqlen"),
        ([2], [4], {**FIRST, "mask_type": "mask_type_triu"}, "mask_type"),
        ([2], [4], {"calc_type": "calc_type_default"}, "prev_lse"),
    ],
)
def test_ring_arguments_that_are_refused(
    q_lens: list[int], kv_lens: list[int], options: dict[str, Any], named: str
) -> None:
    tensors = [t.npu() for t in ring(q_lens, kv_lens)]
    seqlen = torch.tensor([q_lens, kv_lens], dtype=torch.int32)
    with pytest.raises(RuntimeError, match=rf"atb\.RingMLA: {named}"):
        torch_npu.atb.npu_ring_mla(*tensors, TRIANGLE.npu(), seqlen, 4, 2, **options)


def test_preprocessing_says_that_it_is_not_emulated() -> None:
    some = torch.zeros(1, 1, 1).half().npu()
    with pytest.raises(RuntimeError, match=r"atb\.MLAPreprocess .* is not emulated .* fused weights"):
        torch_npu.atb.npu_mla_preprocess(*[some] * 16)
