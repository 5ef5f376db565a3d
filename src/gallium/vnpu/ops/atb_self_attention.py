"""ATB's self attention of whole prompts, packed one after another, their keys beside them or in a paged cache.

Meaning of the arguments: Ascend/op-plugin 517f2e7, op_plugin/python/atb/_atb_api_docs.py (_npu_flash_attention_v2,
_npu_flash_attention_prefix_v2, npu_self_attention_prefix_encoder), the calls in op_plugin/ops/atb/SelfAttention*.cpp
and test/test_custom_ops/test_atb_flash_attention_qlens.py.
"""

from __future__ import annotations

from torch import Tensor

from gallium.vnpu.ops.atb_attention import (
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
    mask_bias,
    on_310p,
    pages,
    ranges,
    split_heads,
)
from gallium.vnpu.registry import Illegal, Unsupported, only, op, refuse_given
from gallium.vnpu.writing import write

NO_MASK, NORM, ALIBI, COMPRESSED = 0, 1, 2, 3  # mask_type
PROMPT, PROMPT_AFTER_PREFIX = 3, 4  # calc_type
CAUSAL = 9  # mask_type of AtbSelfAttentionPrefixEncoder


@op("atb.SelfAttention", cube=True)
def self_attention(
    query: Tensor,
    key: Tensor,
    key_format: int,
    value: Tensor,
    value_format: int,
    block_table: Tensor | None,
    mask: Tensor | None,
    mask_format: int,
    seq_len: Lengths,
    kv_seq_len: Lengths | None,
    slopes: Tensor | None,
    quant_type: int,
    out_data_type: int,
    head_num: int,
    kv_head_num: int,
    q_scale: float,
    qk_scale: float,
    batch_run_status: bool,
    is_triu_mask: int,
    calc_type: int,
    kernel_type: int,
    clamp_type: int,
    clamp_min: float,
    clamp_max: float,
    mask_type: int,
    kv_cache_cfg: int,
    scale_type: int,
    input_layout: int,
    mla_v_head_size: int,
    cache_type: int,
    window_size: int,
    out: Tensor,
) -> None:
    """Attention of each sequence's tokens over its own keys. kv_head_num 0: as many as head_num."""
    settled = {
        "quant_type": (quant_type, 0), "out_data_type": (out_data_type, NO_TYPE), "q_scale": (q_scale, 1),
        "batch_run_status": (batch_run_status, False), "clamp_type": (clamp_type, 0), "clamp_min": (clamp_min, 0),
        "clamp_max": (clamp_max, 0), "kv_cache_cfg": (kv_cache_cfg, 0), "scale_type": (scale_type, 0),
        "input_layout": (input_layout, 0), "mla_v_head_size": (mla_v_head_size, 0), "cache_type": (cache_type, 0),
        "window_size": (window_size, 0),
    }  # fmt: skip
    for name, (given, supported) in settled.items():
        only(name, given, supported)
    only("kernel_type", kernel_type, 0, 1, 2)  # the precision inside the kernel, which is float32 here
    refuse_given(slopes=slopes)
    mask = None if mask is None else dense_mask(mask, mask_format)
    kv_heads = kv_head_num or head_num
    if calc_type == PROMPT_AFTER_PREFIX:
        if kernel_type != 1 or is_triu_mask != 1:
            raise Illegal("kernel_type", kernel_type, "1 (high precision), with a triangular mask")
        keys = pages("key_cache", key, key_format, kv_heads), pages("value_cache", value, value_format, kv_heads)
        _after_prefix(query, keys, block_table, mask, (seq_len, kv_seq_len), (head_num, qk_scale), mask_type, out)
        return
    only("calc_type", calc_type, PROMPT, PROMPT_AFTER_PREFIX)
    _prompts(query, key, value, mask, seq_len, (head_num, kv_heads, qk_scale), (mask_type, is_triu_mask), out)


def _prompts(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    seq_len: Lengths,
    heads: tuple[int, int, float],
    masking: tuple[int, int],
    out: Tensor,
) -> None:
    head_num, kv_heads, scale = heads
    check_heads(head_num, kv_heads)
    check_floats(query=query, key=key, value=value, out=out)
    counts = lengths("seq_len", seq_len)
    q, k, v = (
        split_heads("query", query, head_num),
        split_heads("key", key, kv_heads),
        split_heads("value", value, kv_heads),
    )
    result = split_heads("out", out, head_num)
    if not q.shape[0] == k.shape[0] == v.shape[0] or q.shape[2] != k.shape[2]:
        raise Illegal("key", key, f"[{q.shape[0]}, {kv_heads}, {q.shape[2]}]")
    if max(q.shape[2], v.shape[2]) > 576:
        raise Illegal("head_size", max(q.shape[2], v.shape[2]), "1 to 576")
    rows_needed = sum(counts)
    if q.shape[0] < rows_needed or (q.shape[0] > rows_needed and not on_310p()):
        raise Illegal("seq_len", counts, f"{q.shape[0]} together, the rows of query")
    for i, rows in enumerate(ranges(counts)):
        bias = _prompt_bias(masking, mask, i, counts[i])
        write(result[rows], attend(q[rows], k[rows], v[rows], scale, bias)[0])
    result[rows_needed:].zero_()  # what pads the rows to a multiple of 16 on 310P


def _prompt_bias(masking: tuple[int, int], mask: Tensor | None, index: int, count: int) -> Tensor | None:
    """What is added to the scores of one prompt. A triangular mask is not read above its diagonal."""
    mask_type, triangular = masking
    if mask_type == NO_MASK:
        return None
    only("is_triu_mask", triangular, 0, 1)
    if mask is None or mask_type not in (NORM, ALIBI, COMPRESSED):
        raise Unsupported("mask_type", mask_type, "0 to 3")
    if mask_type == COMPRESSED:
        check_triangle(mask, (128, 2048) if on_310p() else (128,))
        return causal(count, count)
    if mask_type == ALIBI and mask.dim() != 4:
        raise Illegal("mask", mask, "[batch, heads, n, n]")
    if mask_type == NORM and mask.dim() not in (2, 3):
        raise Illegal("mask", mask, "[n, n] or [batch, n, n]")
    each = mask if mask.dim() == 2 else mask[index if mask.shape[0] > 1 else 0]
    if min(each.shape[-2:]) < count:
        raise Illegal("mask", mask, f"at least {count} wide and high")
    part = each[..., :count, :count]
    bias = part.float() if mask_type == ALIBI else mask_bias(part)
    if triangular and count > 1:
        hidden = causal(count, count)
        if hidden is not None and bool((bias.masked_select(hidden != 0) > -1000).any()):
            raise Illegal("mask", mask, "hidden (-1000 or less) above the diagonal, as this mask type is a triangle")
        bias = bias if hidden is None else bias + hidden
    return bias


def _after_prefix(
    query: Tensor,
    keys: tuple[Tensor, Tensor],
    block_table: Tensor | None,
    mask: Tensor | None,
    counts: tuple[Lengths, Lengths | None],
    heads: tuple[int, float],
    mask_type: int,
    out: Tensor,
) -> None:
    """The last tokens of each sequence, over all of its tokens in the cache; none sees a later one."""
    head_num, scale = heads
    key, value = keys
    check_heads(head_num, key.shape[2])
    check_floats(query=query, key_cache=key, value_cache=value, out=out)
    if mask_type == COMPRESSED and mask is not None:
        check_triangle(mask, (128,))
    elif mask_type != CAUSAL or mask is not None:
        raise Unsupported("mask_type", mask_type, "3 (compressed triangle) with a mask, or 9 (causal) without")
    news, totals = lengths("seq_len", counts[0]), lengths("kv_seq_len", counts[1])
    q, result = split_heads("query", query, head_num), split_heads("out", out, head_num)
    if len(news) != len(totals) or sum(news) != q.shape[0]:
        raise Illegal("seq_len", news, f"one number per sequence ({len(totals)}), {q.shape[0]} together")
    if block_table is None or block_table.dim() != 2 or block_table.shape[0] != len(news):
        raise Illegal("block_table", block_table, f"[{len(news)}, blocks]")
    if any(new > total or (total - new) % 128 for new, total in zip(news, totals, strict=True)):
        raise Illegal("kv_seq_len", totals, f"seq_len = {news} and a multiple of 128 more")
    if key.shape != value.shape or key.shape[1] != 128 or key.shape[3] > 128 or key.shape[3] % 16:
        raise Illegal("key_cache", key, "of blocks of 128 and a head size of 16 to 128, and like value_cache")
    for rows, new, total, table in zip(ranges(news), news, totals, block_table, strict=True):
        page_key, page_value = gather(key, table, total), gather(value, table, total)
        write(result[rows], attend(q[rows], page_key, page_value, scale, causal(new, total))[0])


@op("atb.SelfAttentionPrefixEncoder", cube=True)
def self_attention_prefix_encoder(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    block_tables: Tensor,
    mask: Tensor | None,
    seqlen: Lengths,
    kv_seqlen: Lengths,
    slopes: Tensor | None,
    mask_type: int,
    head_num: int,
    kv_head_num: int,
    qk_scale: float,
    out: Tensor,
) -> None:
    """The same as a C function. Only the causal mask, which needs no tensor, is documented as supported."""
    only("mask_type", mask_type, CAUSAL)
    refuse_given(mask=mask, slopes=slopes)
    caches = pages("key", key, 2, kv_head_num), pages("value", value, 2, kv_head_num)
    _after_prefix(query, caches, block_tables, None, (seqlen, kv_seqlen), (head_num, qk_scale), mask_type, out)
