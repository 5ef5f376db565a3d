"""ATB's paged attention: one or a few new tokens per sequence, keys and values in the blocks of a cache.

Meaning of the arguments: Ascend/op-plugin 517f2e7, op_plugin/python/atb/_atb_api_docs.py (_npu_paged_attention_v2), the
calls in op_plugin/ops/atb/PagedAttention*.cpp and Fa3Atb.cpp, and the tests test_atb_paged_attention.py, ..._mla.py,
..._quant.py and ..._splitfuse.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gallium.vnpu.checks import check_family
from gallium.vnpu.ops.atb_attention import (
    A2_AND_A3,
    NO_TYPE,
    Lengths,
    attend,
    causal,
    check_floats,
    check_heads,
    check_triangle,
    dense_mask,
    gather,
    lengths,
    pages,
    ranges,
    scores_of,
    weighted,
)
from gallium.vnpu.registry import Illegal, Unsupported, only, op
from gallium.vnpu.writing import write

NO_MASK, ALIBI, SPECULATIVE_MASK, COMPRESSED = 0, 2, 3, 5  # mask_type
ONE_TOKEN, SEVERAL_TOKENS = 0, 1  # calc_type: tokens of each sequence in the query
NOT_QUANTISED, ONLINE_INT8 = 0, 3  # quant_type
TYPES = {1: torch.float16, 27: torch.bfloat16}


@op("atb.PagedAttention", cube=True)
def paged_attention(
    query: Tensor,
    key_cache: Tensor,
    key_format: int,
    value_cache: Tensor | None,
    value_format: int,
    block_table: Tensor,
    context_lens: Lengths,
    mask: Tensor | None,
    mask_format: int,
    q_seq_lens: Lengths | None,
    k_descale: Tensor | None,
    v_descale: Tensor | None,
    head_num: int,
    qk_scale: float,
    kv_head_num: int,
    mask_type: int,
    batch_run_status: bool,
    quant_type: int,
    out_data_type: int,
    has_quant_offset: bool,
    compress_type: int,
    calc_type: int,
    scale_type: int,
    input_layout: int,
    mla_v_head_size: int,
    out: Tensor,
) -> None:
    """Attention of the sequences' newest tokens over all their cached ones.

    mla_v_head_size above 0: there is one cache, and the values are the first part of the keys.
    """
    only("batch_run_status", batch_run_status, False)
    only("has_quant_offset", has_quant_offset, False)
    only("compress_type", compress_type, 0)
    only("scale_type", scale_type, 0)
    only("input_layout", input_layout, 0)
    only("calc_type", calc_type, ONE_TOKEN, SEVERAL_TOKENS)
    only("quant_type", quant_type, NOT_QUANTISED, ONLINE_INT8)
    check_heads(head_num, kv_head_num)
    key = pages("key_cache", key_cache, key_format, kv_head_num)
    value = key[..., :mla_v_head_size]
    if value_cache is not None:
        value = pages("value_cache", value_cache, value_format, kv_head_num)
    context = lengths("context_lens", context_lens)
    counts = [1] * len(context) if calc_type == ONE_TOKEN else lengths("seq_len", q_seq_lens)
    _check_shapes(query, key, value, block_table, context, counts, head_num)
    biases = _biases(mask_type, calc_type, None if mask is None else dense_mask(mask, mask_format), context, counts)
    if quant_type == ONLINE_INT8:
        check_family("attention in int8", *A2_AND_A3)
        only("mask_type", mask_type, NO_MASK)
        only("calc_type", calc_type, ONE_TOKEN)
        _attend_int8(query, key, value, block_table, context, qk_scale, (k_descale, v_descale), out_data_type, out)
        return
    check_floats(query=query, key_cache=key_cache, value_cache=value_cache, out=out)
    only("outdata_type", out_data_type, NO_TYPE)
    for rows, length, table, bias in zip(ranges(counts), context, block_table, biases, strict=False):
        write(
            out[rows], attend(query[rows], gather(key, table, length), gather(value, table, length), qk_scale, bias)[0]
        )


def _check_shapes(
    query: Tensor, key: Tensor, value: Tensor, table: Tensor, context: list[int], counts: list[int], heads: int
) -> None:
    if query.dim() != 3 or query.shape[1:] != (heads, key.shape[3]):
        raise Illegal("query", query, f"[tokens, {heads}, {key.shape[3]}]")
    if len(counts) != len(context) or sum(counts) != query.shape[0]:
        raise Illegal("seq_len", counts, f"one number per sequence ({len(context)}), {query.shape[0]} together")
    if table.dim() != 2 or table.shape[0] < len(context):
        raise Illegal("block_table", table, f"[{len(context)}, blocks]")
    if value.shape[:3] != key.shape[:3]:
        raise Illegal("value_cache", value, f"{list(key.shape[:3])} and a size")
    if any(count > length for count, length in zip(counts, context, strict=True) if length):
        raise Illegal("seq_len", counts, f"at most context_lens, {context}")
    block_size, largest = key.shape[1], max(key.shape[3], value.shape[3])
    if block_size % 16 or (block_size > 128 and not block_size == largest == 256):
        raise Illegal("block_size", block_size, "a multiple of 16, at most 128 (256 if the head size is 256)")
    if not 0 < largest <= 576:
        raise Illegal("head_size", largest, "1 to 576")


def _biases(
    mask_type: int, calc_type: int, mask: Tensor | None, context: list[int], counts: list[int]
) -> list[Tensor | None]:
    """What is added to the scores of each sequence, `[heads or 1, q, kv]`."""
    if mask_type == NO_MASK and calc_type == ONE_TOKEN:
        return [None] * len(context)
    if mask is None or (mask_type, calc_type) not in (
        (ALIBI, ONE_TOKEN),
        (SPECULATIVE_MASK, SEVERAL_TOKENS),
        (COMPRESSED, SEVERAL_TOKENS),
    ):
        raise Unsupported("mask_type", mask_type, "0 or 2, and 3 or 5 if there are several tokens of each sequence")
    if mask_type == COMPRESSED:
        # The fixed [2048, 2048] triangle of float16: vllm-ascend, _310p/attention/attention_mask.py.
        check_triangle(mask, (2048,))
        return [causal(count, length) for count, length in zip(counts, context, strict=True)]
    widest = max(context, default=0)
    if mask_type == SPECULATIVE_MASK:
        if mask.dim() != 2 or mask.shape[0] < sum(counts) or mask.shape[1] < widest:
            raise Illegal("mask", mask, f"[{sum(counts)}, {widest}] or wider")
        return [mask[rows, :length].float() for rows, length in zip(ranges(counts), context, strict=True)]
    if mask.dim() not in (3, 4) or mask.shape[-2] != 1 or mask.shape[-1] < widest:
        raise Illegal("mask", mask, f"[batch, heads, 1, {widest}] or [heads, 1, {widest}], or wider")
    each = mask if mask.dim() == 4 else mask.expand(len(context), *mask.shape)
    if each.shape[0] < len(context):
        raise Illegal("mask", mask, f"of {len(context)} sequences")
    return [each[i, ..., :length].float() for i, length in enumerate(context)]


def _attend_int8(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    tables: Tensor,
    context: list[int],
    scale: float,
    descales: tuple[Tensor | None, Tensor | None],
    out_data_type: int,
    out: Tensor,
) -> None:
    """Queries, keys, values and the softmax's numerators are int8, each with a scale per head.

    The numerators exp(score - maximum) are multiplied by 127 and rounded: their largest is 1. The chip does this for
    the part of a sequence that it holds at a time, here it is done for the whole (a difference of rounding).
    """
    heads = query.shape[1]
    if TYPES.get(out_data_type) != out.dtype:
        raise Illegal("outdata_type", out_data_type, f"1 (float16) or 27 (bfloat16), and the output's, {out.dtype}")
    for name, tensor in (("query", query), ("key_cache", key), ("value_cache", value)):
        if tensor.dtype != torch.int8:
            raise Illegal(name, tensor, "int8")
    if key.shape[3] > 256 or key.shape[3] != value.shape[3] or key.shape[1] * key.shape[3] > 128 * 128:
        raise Illegal(
            "key_cache", key, "of a head size up to 256, that of the values, and at most 128 * 128 with block_size"
        )
    steps = []
    for name, descale in zip(("k_descale", "v_descale"), descales, strict=True):
        if descale is None or descale.dtype != torch.float32 or descale.numel() != heads:
            raise Illegal(name, descale, f"float32 [{heads}]")
        steps.append(descale.view(heads, 1, 1))
    for i, (length, table) in enumerate(zip(context, tables, strict=False)):
        scores = scores_of(query[i : i + 1], gather(key, table, length)) * steps[0] * scale
        if length == 0:
            out[i].zero_()
            continue
        numerators = (scores - scores.amax(-1, keepdim=True)).exp()
        product = weighted((numerators * 127).round(), gather(value, table, length)).transpose(0, 1)
        write(out[i : i + 1], (product * steps[1] / 127 / numerators.sum(-1, keepdim=True)).transpose(0, 1))
