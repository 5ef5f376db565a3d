"""_npu_paged_attention and its forms: several tokens, one cache for keys and values, int8, a bias, graphs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch_npu
from tests.vnpu.atb_reference import Cache, attention, blocked
from torch import Tensor

COUNTS = [33, 1, 16]
TOLERANCE = {torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


def expected(query: Tensor, keys: Cache, values: Cache, scale: float, size: int | None = None) -> Tensor:
    return torch.stack(
        [attention(query[i], keys.tokens(i), values.tokens(i)[..., :size], scale)[0] for i in range(len(query))]
    )


def int32(values: list[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("heads", "kv_heads", "size", "v_size"), [(4, 2, 32, 32), (3, 3, 24, 8), (6, 1, 40, 16)])
def test_newest_tokens_attend_to_their_pages(
    dtype: torch.dtype, heads: int, kv_heads: int, size: int, v_size: int
) -> None:
    keys = Cache(COUNTS, kv_heads, size, dtype)
    values = keys.like(v_size)
    query = torch.randn(3, heads, size).to(dtype)
    out = torch.full((3, heads, v_size), 7.0).to(dtype).npu()
    torch_npu._npu_paged_attention(
        query.npu(), keys.data.npu(), values.data.npu(), kv_heads, heads, 0.3, keys.table.npu(), int32(COUNTS), out
    )
    torch.testing.assert_close(out.cpu().double(), expected(query, keys, values, 0.3), rtol=0, atol=TOLERANCE[dtype])


@pytest.mark.parametrize("on_device", [False, True])
def test_strided_query_and_lengths_on_either_side(on_device: bool) -> None:
    keys = Cache(COUNTS, 1, 16, torch.float16)
    values = keys.like(16)
    wide = torch.randn(3, 2, 32).half()
    lens = int32(COUNTS).npu() if on_device else int32(COUNTS)
    out = torch.empty(3, 2, 16).half().npu()
    torch_npu._npu_paged_attention(
        wide.npu()[..., ::2], keys.data.npu(), values.data.npu(), 1, 2, 0.5, keys.table.npu(), lens, out
    )
    torch.testing.assert_close(out.cpu().double(), expected(wide[..., ::2], keys, values, 0.5), rtol=0, atol=2e-3)


def test_a_sequence_without_tokens_gives_zeros() -> None:
    keys = Cache([5, 0], 1, 16, torch.float16)
    query = torch.randn(2, 1, 16).half()
    out = torch.ones(2, 1, 16).half().npu()
    torch_npu._npu_paged_attention(
        query.npu(), keys.data.npu(), keys.data.npu(), 1, 1, 1.0, keys.table.npu(), int32([5, 0]), out
    )
    assert not out[1].any()
    torch.testing.assert_close(
        out[0].cpu().double(), attention(query[0], *[keys.tokens(0)] * 2, 1.0)[0], rtol=0, atol=4e-3
    )


def test_values_are_a_part_of_the_keys() -> None:
    keys = Cache(COUNTS, 1, 48, torch.float16)
    query = torch.randn(3, 4, 48).half()
    out = torch.empty(3, 4, 32).half().npu()
    torch_npu._npu_paged_attention_mla(
        query.npu(), keys.data.npu(), 1, 4, 0.2, keys.table.npu(), int32(COUNTS), 32, out
    )
    torch.testing.assert_close(out.cpu().double(), expected(query, keys, keys, 0.2, 32), rtol=0, atol=2e-3)


@pytest.mark.parametrize("each", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_bias_is_added_to_the_scaled_scores(each: bool, dtype: torch.dtype) -> None:
    keys = Cache(COUNTS, 2, 16, dtype)
    values = keys.like(16)
    query = torch.randn(3, 2, 16).to(dtype)
    bias = torch.randn(3, 2, 1, 40).to(dtype) if each else torch.randn(2, 1, 40).to(dtype)
    wanted = [
        attention(query[i], keys.tokens(i), values.tokens(i), 0.4, bias=(bias[i] if each else bias)[:, 0])[0]
        for i in range(3)
    ]
    out = torch.empty(3, 2, 16).to(dtype).npu()
    torch_npu.atb._npu_paged_attention_v2(
        query.npu(), keys.data.npu(), keys.table.npu(), COUNTS, value_cache=values.data.npu(), mask=bias.npu(),
        num_kv_heads=2, num_heads=2, scale_value=0.4, mask_type=2, out=out,
    )  # fmt: skip
    torch.testing.assert_close(out.cpu().double(), torch.stack(wanted), rtol=0, atol=TOLERANCE[dtype])


@pytest.mark.parametrize("compressed", [False, True])
def test_several_tokens_of_each_sequence(compressed: bool) -> None:
    keys = Cache(COUNTS, 2, 16, torch.float16)
    values = keys.like(16)
    counts = [5, 1, 16]
    query = torch.randn(sum(counts), 4, 16).half()
    wanted, rows, row = [], [], 0
    for i, (new, total) in enumerate(zip(counts, COUNTS, strict=True)):
        for j in range(new):
            seen = total - new + 1 + j
            wanted.append(attention(query[row], keys.tokens(i), values.tokens(i), 0.25, seen)[0])
            rows.append(torch.where(torch.arange(40) < seen, 0.0, -10000.0))
            row += 1
    out = torch.empty_like(query).npu()
    before = (query.npu(), keys.data.npu(), values.data.npu(), keys.table.npu(), int32(COUNTS))
    after = (int32(counts), 2, 4, 0.25)
    if compressed:
        mask = torch.ones(2048, 2048).triu(1).mul(-10000).half()
        torch_npu._npu_paged_attention_splitfuse_v2(*before, mask.npu(), *after, out=out)
    else:
        torch_npu._npu_paged_attention_splitfuse(*before, torch.stack(rows).half().npu(), *after, out)
    torch.testing.assert_close(out.cpu().double(), torch.stack(wanted), rtol=0, atol=2e-3)


def test_caches_in_nz_format() -> None:
    keys = Cache(COUNTS, 2, 16, torch.float16)
    values = keys.like(16)
    query = torch.randn(3, 2, 16).half()
    torch.npu.config.allow_internal_format = True
    caches = [torch_npu.npu_format_cast(blocked(cache.data.flatten(2)).npu(), 29) for cache in (keys, values)]
    torch.npu.config.allow_internal_format = False
    assert [torch_npu.get_npu_format(cache) for cache in caches] == [29, 29]
    out = torch.empty_like(query).npu()
    torch_npu._npu_paged_attention(query.npu(), *caches, 2, 2, 0.3, keys.table.npu(), int32(COUNTS), out)
    torch.testing.assert_close(out.cpu().double(), expected(query, keys, values, 0.3), rtol=0, atol=2e-3)


def test_int8_with_a_scale_per_head() -> None:
    keys = Cache(COUNTS, 1, 32, torch.float16)
    values = keys.like(32)
    for cache in (keys, values):
        cache.data = torch.randint(-60, 60, cache.data.shape, dtype=torch.int8)
    query = torch.randint(-60, 60, (3, 2, 32), dtype=torch.int8)
    k_step, v_step = torch.tensor([0.002, 0.003]), torch.tensor([0.02, 0.05])
    wanted = torch.zeros(3, 2, 32, dtype=torch.float64)
    for i in range(3):
        for head in range(2):
            scores = (keys.tokens(i)[:, 0].double() @ query[i, head].double()) * float(k_step[head]) * 0.5
            numerators = torch.exp(scores - scores.max())
            product = torch.round(numerators * 127) @ values.tokens(i)[:, 0].double()
            wanted[i, head] = product * float(v_step[head]) / 127 / numerators.sum()
    out = torch.empty(3, 2, 32).bfloat16().npu()
    arguments = (query.npu(), keys.data.npu(), values.data.npu(), 1, 2, 0.5, keys.table.npu(), int32(COUNTS))
    torch_npu._npu_paged_attention_quant(*arguments, 3, 27, k_step.npu(), v_step.npu(), out)
    torch.testing.assert_close(out.cpu().double(), wanted, rtol=2e-2, atol=1e-2)
    with pytest.raises(RuntimeError, match="outdata_type"):
        torch_npu._npu_paged_attention_quant(*arguments, 3, 1, k_step.npu(), v_step.npu(), out)
    with pytest.raises(RuntimeError, match="quant_type = 2"):
        torch_npu._npu_paged_attention_quant(*arguments, 2, 27, k_step.npu(), v_step.npu(), out)


def test_workspace_is_empty_and_may_be_given() -> None:
    keys = Cache(COUNTS, 1, 16, torch.float16)
    query = torch.randn(3, 2, 16).half()
    out = torch.zeros_like(query).npu()
    arguments = (query.npu(), keys.data.npu(), keys.data.npu(), 1, 2, 0.3, keys.table.npu(), int32(COUNTS), out)
    workspace = torch_npu._npu_paged_attention_get_workspace(*arguments)
    assert workspace.numel() == 0 and not out.any(), "asking for the size of the workspace must not run the operator"
    torch_npu._npu_paged_attention(*arguments, workspace=workspace)
    torch.testing.assert_close(out.cpu().double(), expected(query, keys, keys, 0.3), rtol=0, atol=2e-3)


def test_a_graph_keeps_the_lengths_and_sees_new_tensors() -> None:
    keys = Cache(COUNTS, 1, 16, torch.float16)
    query, out = torch.randn(3, 2, 16).half().npu(), torch.zeros(3, 2, 16).half().npu()
    cache, table = keys.data.npu(), keys.table.npu()
    lens = int32(COUNTS)
    graph = torch.npu.NPUGraph()
    with torch.npu.graph(graph):
        torch_npu._npu_paged_attention(query, cache, cache, 1, 2, 0.3, table, lens, out)
    assert not out.any(), "recording must not run the operator"
    lens.fill_(1)
    query.copy_(torch.randn(3, 2, 16).half().npu())
    graph.replay()
    torch.testing.assert_close(out.cpu().double(), expected(query.cpu(), keys, keys, 0.3), rtol=0, atol=2e-3)


LEGAL: dict[str, Any] = {
    "num_heads": 2,
    "kv_heads": 1,
    "block_size": 16,
    "size": 16,
    "lens": [3, 2],
    "dtype": torch.float16,
}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"num_heads": 3, "kv_heads": 2}, "num_heads"),
        ({"kv_heads": 0}, "num_kv_heads"),
        ({"block_size": 8}, "block_size"),
        ({"block_size": 256}, "block_size"),
        ({"size": 592}, "head_size"),
        ({"dtype": torch.float32}, "query"),
        ({"lens": [3, 2, 1]}, "seq_len"),
        ({"lens": [3, -1]}, "context_lens"),
        ({"lens": [3, 99999]}, "block_table"),
    ],
)
def test_illegal_arguments_are_refused(change: dict[str, Any], named: str) -> None:
    case = LEGAL | change
    cache = torch.zeros(2, case["block_size"], case["kv_heads"], case["size"]).to(case["dtype"]).npu()
    query = torch.zeros(2, case["num_heads"], case["size"]).to(case["dtype"]).npu()
    table = torch.zeros(2, 2, dtype=torch.int32).npu()
    with pytest.raises(RuntimeError, match=rf"atb\.PagedAttention: {named}"):
        torch_npu._npu_paged_attention(
            query, cache, cache, case["kv_heads"], case["num_heads"], 1.0, table, int32(case["lens"]), query.clone()
        )


def test_masks_that_are_not_emulated_are_refused() -> None:
    keys = Cache([3], 1, 16, torch.float16)
    query = torch.zeros(1, 1, 16).half().npu()
    shared = {"value_cache": keys.data.npu(), "num_kv_heads": 1, "num_heads": 1, "out": query.clone()}
    arguments = (query, keys.data.npu(), keys.table.npu(), [3])
    with pytest.raises(RuntimeError, match=r"0 inputs .* mask_type = 1"):
        torch_npu.atb._npu_paged_attention_v2(*arguments, mask=query, mask_type=1, **shared)
    with pytest.raises(RuntimeError, match=r"mask = .* is not legal"):
        torch_npu.atb._npu_paged_attention_v2(*arguments, mask=query[..., :2], mask_type=2, **shared)
    with pytest.raises(RuntimeError, match=r"atb\.PagedAttention: key_cache is a CPU tensor"):
        torch_npu._npu_paged_attention(
            query, keys.data, keys.data.npu(), 1, 1, 1.0, keys.table.npu(), int32([3]), query.clone()
        )
