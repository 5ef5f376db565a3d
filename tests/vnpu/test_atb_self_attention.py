"""_npu_flash_attention and its forms: masks, prompts after a prefix in a paged cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch_npu
from tests.vnpu.atb_reference import Cache, attention
from torch import Tensor

COUNTS = [5, 1, 9]
TYPES = [torch.float16, torch.bfloat16]
TOLERANCE = {torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


def int32(values: list[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def hiding(dtype: torch.dtype, size: int) -> Tensor:
    """A triangle in the form that a type asks for: added as it is, or 1 where a key is hidden."""
    return torch.ones(size, size).triu(1).mul(-10000 if dtype == torch.float16 else 1).to(dtype)


def prompts(dtype: torch.dtype, heads: int = 4, kv_heads: int = 2, size: int = 16, v_size: int = 16) -> list[Tensor]:
    rows = sum(COUNTS)
    shapes = ((rows, heads, size), (rows, kv_heads, size), (rows, kv_heads, v_size))
    return [torch.randn(shape).to(dtype) for shape in shapes]


def expected(
    query: Tensor, key: Tensor, value: Tensor, scale: float, causal: bool, bias: Tensor | None = None
) -> Tensor:
    out, start = [], 0
    for number, count in enumerate(COUNTS):
        for i in range(count):
            rows = slice(start, start + count)
            part = None if bias is None else bias[number, :, i]
            out.append(attention(query[start + i], key[rows], value[rows], scale, i + 1 if causal else count, part)[0])
        start += count
    return torch.stack(out)


def close(out: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(out.cpu().double().view(wanted.shape), wanted, rtol=0, atol=TOLERANCE[out.dtype])


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("per_sequence", [False, True])
def test_a_triangular_mask(dtype: torch.dtype, per_sequence: bool) -> None:
    query, key, value = prompts(dtype, v_size=8)
    mask = hiding(dtype, 9).expand(3, 9, 9) if per_sequence else hiding(dtype, 12)
    out = torch.empty(15, 4, 8).to(dtype).npu()
    torch_npu._npu_flash_attention(query.npu(), key.npu(), value.npu(), mask.npu(), int32(COUNTS), 0.3, 4, 2, out)
    close(out, expected(query, key, value, 0.3, causal=True))


def test_kv_head_num_zero_and_flat_rows() -> None:
    query, key, value = prompts(torch.float16, 4, 4)
    flat = [x.flatten(1).npu() for x in (query, key, value)]
    out = torch.empty(15, 64).half().npu()
    torch_npu._npu_flash_attention(*flat, hiding(torch.float16, 9).npu(), int32(COUNTS), 0.3, 4, 0, out)
    close(out, expected(query, key, value, 0.3, causal=True))


@pytest.mark.parametrize("kernel_type", [None, 0, 2])
@pytest.mark.parametrize("dtype", TYPES)
def test_without_a_mask(dtype: torch.dtype, kernel_type: int | None) -> None:
    query, key, value = prompts(dtype)
    out = torch.empty_like(query).npu()
    arguments = (query.npu(), key.npu(), value.npu(), int32(COUNTS), 0.3, 4, 2)
    if kernel_type is None:
        torch_npu._npu_flash_attention_unpad(*arguments, out)
    else:
        torch_npu._npu_flash_attention_unpad_v2(*arguments, kernel_type=kernel_type, out=out)
    close(out, expected(query, key, value, 0.3, causal=False))


@pytest.mark.parametrize("dtype", TYPES)
def test_a_compressed_triangle(dtype: torch.dtype) -> None:
    query, key, value = prompts(dtype)
    out = torch.empty_like(query).npu()
    arguments = (query.npu(), key.npu(), value.npu())
    torch_npu._npu_flash_attention_v3(*arguments, hiding(dtype, 128).npu(), int32(COUNTS), 0.3, 4, 2, out=out)
    close(out, expected(query, key, value, 0.3, causal=True))
    with pytest.raises(RuntimeError, match="a triangle that hides"):
        torch_npu._npu_flash_attention_v3(
            *arguments, torch.zeros(128, 128).to(dtype).npu(), int32(COUNTS), 1, 4, 2, out=out
        )


@pytest.mark.parametrize("dtype", TYPES)
def test_a_bias_that_is_a_triangle(dtype: torch.dtype) -> None:
    query, key, value = prompts(dtype)
    bias = (torch.randn(3, 4, 9, 9) + torch.ones(9, 9).triu(1) * -20000).to(dtype)
    out = torch.empty_like(query).npu()
    arguments = {"num_heads": 4, "num_kv_heads": 2, "scale_value": 0.3, "out": out}
    tensors = (query.npu(), key.npu(), value.npu(), COUNTS)
    torch_npu.atb._npu_flash_attention_v2(*tensors, mask=bias.npu(), mask_type=2, kernel_type=1, **arguments)
    close(out, expected(query, key, value, 0.3, True, bias))
    with pytest.raises(RuntimeError, match=r"mask = .* hidden"):
        torch_npu.atb._npu_flash_attention_v2(*tensors, mask=bias.abs().npu(), mask_type=2, **arguments)
    with pytest.raises(RuntimeError, match="slopes"):
        torch_npu.atb._npu_flash_attention_v2(*tensors, mask=bias.npu(), slopes=bias.npu(), mask_type=4, **arguments)
    torch_npu.atb._npu_flash_attention_v2(*tensors, mask=hiding(dtype, 9).npu(), mask_type=1, **arguments)
    close(out, expected(query, key, value, 0.3, causal=True))


def after_prefix(news: list[int], totals: list[int], dtype: torch.dtype) -> tuple[Tensor, Cache, Cache, Tensor]:
    keys = Cache(totals, 2, 16, dtype, block_size=128)
    values = keys.like(16)
    query = torch.randn(sum(news), 4, 16).to(dtype)
    wanted, row = [], 0
    for i, (new, total) in enumerate(zip(news, totals, strict=True)):
        for j in range(new):
            wanted.append(attention(query[row], keys.tokens(i), values.tokens(i), 0.3, total - new + j + 1)[0])
            row += 1
    return query, keys, values, torch.stack(wanted)


def through_qlens(query: Tensor, keys: Cache, values: Cache, news: list[int], totals: list[int], out: Tensor) -> None:
    torch_npu._npu_flash_attention_qlens(
        query, keys.data.npu(), values.data.npu(), keys.table.npu(), hiding(query.dtype, 128).npu(), int32(news),
        int32(totals), 2, 4, 0.3, out,
    )  # fmt: skip


def through_prefix_v2(
    query: Tensor, keys: Cache, values: Cache, news: list[int], totals: list[int], out: Tensor
) -> None:
    torch_npu.atb._npu_flash_attention_prefix_v2(
        query, keys.data.flatten(2).npu(), values.data.flatten(2).npu(), keys.table.npu(),
        hiding(query.dtype, 128).npu(), news, totals, num_kv_heads=2, num_heads=4, scale_value=0.3, out=out,
    )  # fmt: skip


def through_function(
    query: Tensor, keys: Cache, values: Cache, news: list[int], totals: list[int], out: Tensor
) -> None:
    torch_npu.atb.npu_self_attention_prefix_encoder(
        query, keys.data.npu(), values.data.npu(), keys.table.npu(), news, totals, 4, 0.3, 2, output=out
    )


PREFIX = [through_qlens, through_prefix_v2, through_function]
Way = Callable[[Tensor, Cache, Cache, list[int], list[int], Tensor], None]


@pytest.mark.parametrize("way", PREFIX)
@pytest.mark.parametrize("dtype", TYPES)
def test_new_tokens_after_a_prefix(way: Way, dtype: torch.dtype) -> None:
    news, totals = [3, 1, 5], [131, 129, 5]
    query, keys, values, wanted = after_prefix(news, totals, dtype)
    for _ in range(2):  # the second call uses the operation of the first again
        out = torch.empty_like(query).npu()
        way(query.npu(), keys, values, news, totals, out)
        close(out, wanted)


@pytest.mark.parametrize("way", PREFIX)
@pytest.mark.parametrize(
    ("news", "totals", "named"),
    [([3, 2], [131, 129], "kv_seq_len"), ([3, 1], [2, 129], "kv_seq_len"), ([3, 2], [131, 130, 5], "seq_len")],
)
def test_a_prefix_is_a_multiple_of_128(way: Way, news: list[int], totals: list[int], named: str) -> None:
    query, keys, values, _ = after_prefix([3, 2], [131, 130], torch.float16)
    with pytest.raises(RuntimeError, match=rf"atb\.SelfAttention\w*: {named}"):
        way(query[: sum(news)].npu(), keys, values, news, totals, torch.empty_like(query[: sum(news)]).npu())


def test_the_result_of_the_function_is_new() -> None:
    query, keys, values, wanted = after_prefix([3], [131], torch.float16)
    arguments = (query.npu(), keys.data.npu(), values.data.npu(), keys.table.npu(), [3], [131], 4, 0.3, 2)
    close(torch_npu.atb.npu_self_attention_prefix_encoder(*arguments), wanted)
    with pytest.raises(RuntimeError, match="mask_type = 3"):
        torch_npu.atb.npu_self_attention_prefix_encoder(*arguments, mask_type="mask_type_norm_compress")
    with pytest.raises(RuntimeError, match="slopes"):
        torch_npu.atb.npu_self_attention_prefix_encoder(*arguments, slopes=query.npu())


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"lens": int32([5, 1])}, "seq_len"),
        ({"heads": 3}, "num_heads"),
        ({"mask": torch.zeros(4, 4).half()}, "mask"),
        ({"dtype": torch.float32}, "query"),
        ({"mask": torch.full((9, 9), 0.5).bfloat16(), "dtype": torch.bfloat16}, "mask"),
    ],
)
def test_illegal_arguments_are_refused(change: dict[str, Any], named: str) -> None:
    case = {"lens": int32(COUNTS), "heads": 4, "mask": torch.zeros(9, 9).half(), "dtype": torch.float16} | change
    query, key, value = (x.npu() for x in prompts(case["dtype"]))
    with pytest.raises(RuntimeError, match=rf"atb\.SelfAttention: {named}"):
        torch_npu._npu_flash_attention(
            query, key, value, case["mask"].npu(), case["lens"], 0.3, case["heads"], 2, torch.empty_like(query)
        )
    with pytest.raises(RuntimeError, match="mask is a CPU tensor"):
        torch_npu._npu_flash_attention(
            query, key, value, case["mask"], int32(COUNTS), 0.3, 4, 2, torch.empty_like(query)
        )
