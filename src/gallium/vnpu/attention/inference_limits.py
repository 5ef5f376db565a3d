"""The documented limits of attention for inference: what may be combined, and which sizes are legal."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from gallium.vnpu import soc
from gallium.vnpu.attention import paged, sparse_modes
from gallium.vnpu.attention.dequantise import PER_CHANNEL, PER_HEAD, PER_TOKEN
from gallium.vnpu.attention.inference import Inference
from gallium.vnpu.attention.limits import need_groups, need_range
from gallium.vnpu.registry import Illegal, Unsupported, only, refuse_given

HALF = (torch.float16, torch.bfloat16)
LATENT, ROTATED = 512, 64
LATENT_LAYOUTS = ("BSH", "BSND", "BNSD", "BNSD_NBSD", "BSND_NBSD", "BSH_NBSD", "TND", "TND_NTD")
ROTATED_LAYOUTS = ("BSH", "BSND", "TND", "BNSD", "NTD", "BSH_BNSD", "BSND_BNSD", "BNSD_BSND", "NTD_TND")
PACKED_SIZES = ((64, 64), (128, 128), (192, 128), (192, 192))
NZ_HEADS = ((10, 1), (64, 8), (80, 8), (128, 16))


def check(call: Inference, page: str) -> None:
    """Raise Illegal or Unsupported for what the page does not allow."""
    refuse_given(key_rope_antiquant_scale=call.key_rope_antiquant_scale)
    refuse_given(q_start_idx=call.q_start_idx, kv_start_idx=call.kv_start_idx)
    only("pse_type", call.pse_type, 0)
    need_range(page, "num_heads", call.num_heads, 1, 256)
    need_groups(page, call.num_heads, call.kv_heads)
    groups = call.num_heads // call.kv_heads
    need_range(page, "num_heads / num_key_value_heads", groups, 1, 64 if call.query_rope is None else 128)
    for name, broken, legal in _rules(call):
        if broken:
            raise Illegal(name, getattr(call, name, name), f"{legal} ({page} page of op-plugin)")
    _check_types(call, page)
    _check_mode(call, page)
    if soc.current().family != "950":
        _check_sizes(call, page)
    if call.block_table is not None:
        _check_pages(call, page)
    if call.query_rope is not None:
        _check_rotated(call, page)
    _check_quantised(call, page)


def _rules(call: Inference) -> Iterator[tuple[str, bool, str]]:
    """(argument, whether it breaks the rule, the rule)."""
    queries = call.query_view.shape[2]
    padded = call.query_padding_size is not None or call.kv_padding_size is not None
    prefix = call.key_shared_prefix is not None
    rotated = call.query_rope is not None
    quantised = call.key_antiquant_scale is not None or call.antiquant_scale is not None
    special = prefix or padded or call.pse_shift is not None
    yield "key_rope", rotated != (call.key_rope is not None), "given together with query_rope"
    yield "value_shared_prefix", prefix != (call.value_shared_prefix is not None), "given with key_shared_prefix"
    yield "actual_shared_prefix_len", bool(call.actual_shared_prefix_len) and not prefix, "left out without a prefix"
    together = (call.key_antiquant_scale is None) == (call.value_antiquant_scale is None)
    yield "value_antiquant_scale", not together, "given together with that of the key"
    offsets = (call.key_antiquant_offset is None) == (call.value_antiquant_offset is None)
    yield "value_antiquant_offset", not offsets, "given together with that of the key"
    yield "antiquant_offset", call.antiquant_offset is not None and not quantised, "left out without a scale"
    yield "block_table", call.block_table is not None and (padded or prefix), "left out with padding or a prefix"
    yield "key_shared_prefix", prefix and padded, "left out with padding"
    yield "query_rope", rotated and special, "left out with padding, a shared prefix or pse_shift"
    yield "input_layout", call.packed and special, "another one with padding, a shared prefix or pse_shift"
    lengths = bool(call.actual_seq_lengths) and bool(call.actual_seq_lengths_kv)
    yield "actual_seq_lengths", call.packed and not lengths, "given, like actual_seq_lengths_kv, for a packed batch"
    yield "actual_seq_lengths", call.packed and len(call.actual_seq_lengths or ()) > 4096, "of at most 4096 numbers"
    yield (
        "inner_precise",
        not 0 <= call.inner_precise <= (1 if queries == 1 and not call.packed else 3),
        "0 to 3, or 0 or 1 with one query",
    )
    pair = call.layouts
    yield "input_layout", pair == ("BNSD", "BSND") and queries == 1, "another one if there is one query"
    yield "input_layout", pair[1] == "NBSD" and queries > 16, "another one if there are more than 16 queries"
    sink = call.learnable_sink
    if sink is not None:
        good = sink.dtype == torch.bfloat16 and sink.shape == (call.num_heads,)
        yield "learnable_sink", not good, f"bfloat16 [{call.num_heads}]"
        plain = not quantised and call.quant_scale2 is None
        yield (
            "learnable_sink",
            call.input_layout not in ("TND", "NTD_TND") or not plain,
            "left out but for TND, NTD_TND",
        )


def _check_types(call: Inference, page: str) -> None:
    query, key, value = call.query.dtype, call.key.dtype, call.value.dtype
    if key != value:
        raise Illegal("value", value, f"of the key's type, {key} ({page} page of op-plugin)")
    if query == torch.int8:
        if key != torch.int8:
            raise Illegal("key", key, f"int8 like the query ({page} page of op-plugin)")
        return
    if query not in HALF:
        raise Illegal("query", query, f"float16, bfloat16 or int8 ({page} page of op-plugin)")
    if key not in (query, torch.int8, torch.int32):
        raise Illegal("key", key, f"{query}, int8 or int32 ({page} page of op-plugin)")
    for name in ("pse_shift", "query_rope", "key_rope"):
        given = getattr(call, name)
        if given is not None and given.dtype != query:
            raise Illegal(name, given, f"of the query's type, {query} ({page} page of op-plugin)")


def _check_mode(call: Inference, page: str) -> None:
    mode, mask = call.sparse_mode, call.atten_mask
    padded = call.query_padding_size is not None or call.kv_padding_size is not None
    if mask is not None and padded:
        raise Unsupported("atten_mask", "given with padding", "a mask without left padding")
    if call.single:
        return
    legal = (0, 2, 3, 4, 9) if call.packed else (0, 1, 2, 3, 4, 9)
    if mode not in legal:
        raise Illegal("sparse_mode", mode, f"one of {legal} for layout {call.input_layout} ({page} page of op-plugin)")
    if mask is None:
        if mode != sparse_modes.FULL:
            raise Illegal("atten_mask", None, f"given in sparse_mode {mode} ({page} page of op-plugin)")
        return
    if call.packed and mode == sparse_modes.FULL:
        raise Unsupported("atten_mask", "given in sparse_mode 0 for a packed batch", "sparse modes 2, 3, 4 and 9")
    if mode in sparse_modes.COMPRESSED:
        sparse_modes.check_triangle(mask, mode, page)
    if mode == sparse_modes.TREE and call.query_rope is None and not _is_nz(call):
        raise Illegal("sparse_mode", mode, f"another one without query_rope ({page} page of op-plugin)")


def _is_nz(call: Inference) -> bool:
    return call.block_table is not None and call.key.dim() == 5


def _check_sizes(call: Inference, page: str) -> None:
    query, latent = call.query_view, call.query_view.shape[3]
    size = latent - (ROTATED if call.query_rope is not None else 0)
    step = 32 if call.query.dtype == torch.int8 or call.key.dtype == torch.int8 else 16
    if call.key.dtype == torch.int32:
        step = 64
    if size % step or size > 512:
        raise Illegal("the head size", size, f"a multiple of {step}, at most 512 ({page} page of op-plugin)")
    if not call.packed:
        need_range(page, "the batch", query.shape[0], 1, 65536)
        if call.key.shape != call.value.shape:
            raise Illegal("value", call.value, f"of the key's shape ({page} page of op-plugin)")
        return
    width = paged.head_size(call.value, call.kv_heads) if call.block_table is not None else call.value.shape[-1]
    if size != LATENT and (size, width) not in PACKED_SIZES:
        raise Illegal(
            "head sizes of query and value", (size, width), f"one of {PACKED_SIZES} ({page} page of op-plugin)"
        )


def _check_pages(call: Inference, page: str) -> None:
    table, key = call.block_table, call.key
    assert table is not None
    size = paged.block_size(key)
    if table.dtype != torch.int32 or table.dim() != 2 or table.shape[0] != call.batch:
        raise Illegal("block_table", table, f"int32 [{call.batch}, blocks of a sequence] ({page} page of op-plugin)")
    if call.block_size != size:
        raise Illegal("block_size", call.block_size, f"that of the cache, {size}")
    one = call.query_view.shape[2] == 1 and not call.packed
    if call.query_rope is not None or call.packed:
        good, legal = size % 16 == 0 and size <= 1024, "a multiple of 16, at most 1024"
    elif key.dim() == 5:
        good, legal = size in (128, 512), "128 or 512"
    elif one:
        step = 32 if key.dtype == torch.int8 else 16
        good, legal = size % step == 0 and 0 < size <= 512, f"a multiple of {step}, at most 512"
    else:
        good, legal = size % 128 == 0 and 0 < size <= 512, "128, 256, 384 or 512"
    if not good:
        raise Illegal("block_size", size, f"{legal} ({page} page of op-plugin)")
    if key.dim() == 3 and key.shape[2] > 65535:
        raise Illegal("the cache's last dimension", key.shape[2], f"at most 65535 ({page} page of op-plugin)")
    if key.dim() == 4 and call.layouts[0] in ("BSH", "BSND"):
        legal = f"[blocks, size, heads * head size] for layout {call.input_layout} ({page} page of op-plugin)"
        raise Illegal("the cache", key, legal)
    if not one and key.dtype not in HALF and key.dim() != 5:
        raise Illegal(
            "the cache's type", key.dtype, f"float16 or bfloat16 with several queries ({page} page of op-plugin)"
        )
    if key.dtype == torch.int32 or (call.query.dtype == torch.int8 and call.query_rope is None):
        raise Illegal("block_table", table, f"left out with 4-bit keys or int8 queries ({page} page of op-plugin)")


def _check_rotated(call: Inference, page: str) -> None:
    size = call.query_view.shape[3] - ROTATED
    legal = {LATENT: LATENT_LAYOUTS, 128: ROTATED_LAYOUTS}.get(size)
    if legal is None:
        raise Illegal(
            "the head size with query_rope", size, f"512 or 128, beside 64 rotated ({page} page of op-plugin)"
        )
    if call.input_layout not in legal:
        raise Illegal(
            "input_layout", call.input_layout, f"one of {', '.join(legal)} with query_rope of head size {size}"
        )
    if size == LATENT:
        if call.num_heads not in (1, 2, 4, 8, 16, 32, 64, 128) or call.kv_heads != 1:
            heads = (call.num_heads, call.kv_heads)
            raise Illegal("heads of query and key", heads, f"a power of 2 up to 128, and 1 ({page} page of op-plugin)")
        if call.sparse_mode not in (0, 3, 4, 9):
            raise Illegal(
                "sparse_mode", call.sparse_mode, f"0, 3, 4 or 9 with head size 512 ({page} page of op-plugin)"
            )


def _check_quantised(call: Inference, page: str) -> None:
    end = f"({page} page of op-plugin)"
    full = [call.dequant_scale1, call.quant_scale1, call.dequant_scale2]
    given = [s is not None for s in full]
    separate = call.key_antiquant_scale is not None
    if call.query.dtype == torch.int8 and call.query_rope is not None:
        modes = (call.query_quant_mode, call.key_antiquant_mode, call.value_antiquant_mode)
        if call.dequant_scale_query is None or not separate or modes != (3, 0, 0) or call.quant_scale2 is not None:
            legal = f"with scales of query, key and value in modes 3, 0 and 0, and no rounding of the output {end}"
            raise Illegal("an int8 query with query_rope", modes, legal)
        return
    refuse_given(dequant_scale_query=call.dequant_scale_query)
    if any(given) != all(given) or all(given) != (call.query.dtype == torch.int8):
        raise Illegal(
            "dequant_scale1, quant_scale1, dequant_scale2", given, f"all given if the query is int8, else none {end}"
        )
    if all(given) and (call.query_view.shape[2] == 1 or call.key_shared_prefix is not None):
        raise Illegal("query", "int8", f"float16 or bfloat16 with one query or a shared prefix {end}")
    if call.quant_offset2 is not None and call.quant_scale2 is None:
        raise Illegal("quant_offset2", "given", f"left out without quant_scale2 {end}")
    if call.quant_scale2 is not None:
        _check_rounded(call, end)
    stored = call.key.dtype in (torch.int8, torch.int32) and call.query.dtype != torch.int8
    if stored != (separate or call.antiquant_scale is not None):
        raise Illegal("the scale of keys and values", stored, f"given for 8 and 4 bit keys, and only for them {end}")
    if stored:
        _check_stored(call, separate, end)


def _check_stored(call: Inference, separate: bool, end: str) -> None:
    queries, modes = call.query_view.shape[2], (call.key_antiquant_mode, call.value_antiquant_mode)
    if call.packed:
        raise Illegal("input_layout", call.input_layout, f"not a packed one with quantised keys {end}")
    if not separate:
        if call.key.dtype != torch.int8 or call.antiquant_mode not in (PER_CHANNEL, PER_TOKEN):
            raise Illegal("antiquant_mode", call.antiquant_mode, f"0 or 1, for int8 keys {end}")
        return
    if modes[0] != modes[1] and modes != (PER_CHANNEL, PER_TOKEN):
        raise Illegal("value_antiquant_mode", modes[1], f"that of the key, {modes[0]} {end}")
    if queries > 1 and (max(modes) > PER_TOKEN or queries > 16 or call.query.dtype != torch.bfloat16):
        raise Illegal("quantised keys", modes, f"in modes 0 and 1, with up to 16 queries in bfloat16 {end}")
    for name, mode in zip(("key_antiquant_scale", "value_antiquant_scale"), modes, strict=True):
        scale = getattr(call, name)
        wanted = call.query.dtype if mode in (PER_CHANNEL, PER_HEAD) else torch.float32
        if scale.dtype != wanted:
            raise Illegal(name, scale, f"{wanted} in mode {mode} {end}")
    if call.key.dtype == torch.int32 and (max(modes) > 3 or PER_HEAD in modes):
        raise Illegal("key_antiquant_mode", modes[0], f"0, 1 or 3 for 4-bit keys {end}")
    if _is_nz(call):
        heads = (call.num_heads, call.kv_heads)
        plain = call.key_antiquant_offset is None and call.quant_scale2 is None and call.inner_precise == 1
        if heads not in NZ_HEADS or call.query_view.shape[3] != 128 or not plain or max(modes) > PER_TOKEN:
            legal = f"one of {NZ_HEADS} of size 128, without offsets, inner_precise 1, modes 0 and 1 {end}"
            raise Illegal("heads of query and key with quantised NZ keys", heads, legal)


def _check_rounded(call: Inference, end: str) -> None:
    scale = call.quant_scale2
    assert scale is not None
    if call.packed or call.query_rope is not None:
        raise Illegal("quant_scale2", "given", f"left out for packed batches and with query_rope {end}")
    wanted = (torch.float32, torch.bfloat16) if call.query.dtype == torch.bfloat16 else (torch.float32,)
    if scale.dtype not in wanted:
        raise Illegal("quant_scale2", scale, f"of type {wanted} {end}")
    padded = call.query_padding_size is not None or call.kv_padding_size is not None
    if scale.numel() > 1 and (padded or call.softmax_lse_flag):
        raise Illegal("quant_scale2", scale, f"one number with left padding or softmax_lse {end}")
    masked = call.atten_mask is not None and not call.single
    if masked and call.sparse_mode == sparse_modes.BAND and min(call.pre_tokens, call.next_tokens) < 0:
        raise Illegal("pre_tokens and next_tokens", (call.pre_tokens, call.next_tokens), f"not negative {end}")
    if call.quant_offset2 is not None and masked:
        for queries, keys in call.sizes():
            shift, pre, after = keys - queries, call.pre_tokens, call.next_tokens
            none = {0: -shift - pre > 0 or after < 0, 3: shift < 0, 4: pre < 0 or after + shift < 0}
            if none.get(call.sparse_mode, False):
                raise Illegal("quant_offset2", "given", f"left out if a query sees no key {end}")
