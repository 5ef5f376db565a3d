"""Norm, rotation and cache update in one: KvRmsNormRopeCache, QkvRmsNormRopeCache, DequantRopeQuantKvcache."""

from __future__ import annotations

import torch
from torch import Tensor

from gallium.vnpu.attention import slots
from gallium.vnpu.attention.limits import need_chip
from gallium.vnpu.attention.rotary import HALF, INTERLEAVED_TO_HALF, rotated
from gallium.vnpu.registry import Illegal, only, op, refuse_given

KV_PAGE = "npu_kv_rmsnorm_rope_cache"
KV_MODES = ("Norm", "PA", "PA_BNSD", "PA_NZ", "PA_BLK_BNSD", "PA_BLK_NZ")


@op("KvRmsNormRopeCache")
def kv_rms_norm_rope_cache(
    kv: Tensor,
    gamma: Tensor,
    cos: Tensor,
    sin: Tensor,
    index: Tensor,
    k_cache: Tensor,
    ckv_cache: Tensor,
    k_rope_scale: Tensor | None,
    c_kv_scale: Tensor | None,
    k_rope_offset: Tensor | None,
    c_kv_offset: Tensor | None,
    epsilon: float,
    cache_mode: str,
    is_output_kv: bool,
    k_rope: Tensor,
    c_kv: Tensor,
) -> None:
    """kv [B, 1, S, 512 + 64]: the first part is normalised, the second rotated; both go to their caches."""
    _check_kv(kv, cos, (k_rope_scale, c_kv_scale), (k_rope_offset, c_kv_offset), cache_mode)
    if kv.shape[3] != 576 or gamma.shape != (512,):
        raise Illegal("kv", kv, f"[B, 1, S, 576] with gamma [512] ({KV_PAGE} page of op-plugin)")
    compressed = slots.normalised(kv[..., :512], gamma, epsilon)
    turned = rotated(kv[..., 512:], cos, sin, INTERLEAVED_TO_HALF)
    _store(turned, k_rope_scale, k_cache, index, cache_mode)
    _store(compressed, c_kv_scale, ckv_cache, index, cache_mode)
    _write_if(is_output_kv, k_rope, turned)
    _write_if(is_output_kv, c_kv, compressed)


@op("KvRmsNormRopeCacheV2")
def kv_rms_norm_rope_cache_v2(
    kv: Tensor,
    gamma: Tensor,
    cos: Tensor,
    sin: Tensor,
    index: Tensor,
    k_cache: Tensor,
    ckv_cache: Tensor,
    k_rope_scale: Tensor | None,
    c_kv_scale: Tensor | None,
    k_rope_offset: Tensor | None,
    c_kv_offset: Tensor | None,
    value: Tensor | None,
    epsilon: float,
    cache_mode: str,
    is_output_kv: bool,
    k_rope: Tensor,
    c_kv: Tensor,
) -> None:
    """kv [B, 1, S, 192] is the whole key: normalised, its first 64 rotated; the value [B, 1, S, 128] is only stored."""
    _check_kv(kv, cos, (k_rope_scale, c_kv_scale), (k_rope_offset, c_kv_offset), cache_mode)
    if value is None or kv.shape[3] != 192 or gamma.shape != (192,) or value.shape != (*kv.shape[:3], 128):
        raise Illegal("kv", kv, "[B, 1, S, 192] with gamma [192] and a value [B, 1, S, 128]")
    key = slots.normalised(kv, gamma, epsilon)
    key = torch.cat((rotated(key[..., :64], cos, sin, INTERLEAVED_TO_HALF), key[..., 64:]), -1)
    _store(key, k_rope_scale, k_cache, index, cache_mode)
    _store(value.to(torch.float32), c_kv_scale, ckv_cache, index, cache_mode)
    _write_if(is_output_kv, k_rope, key)
    _write_if(is_output_kv, c_kv, value)


def _check_kv(
    kv: Tensor,
    cos: Tensor,
    scales: tuple[Tensor | None, Tensor | None],
    offsets: tuple[Tensor | None, Tensor | None],
    mode: str,
) -> None:
    need_chip(KV_PAGE, "910B", "910_93", "950")
    if kv.dim() != 4 or kv.shape[1] != 1 or cos.shape != (*kv.shape[:3], 64):
        raise Illegal("cos", cos, f"[B, 1, S, 64] for kv [B, 1, S, D] ({KV_PAGE} page of op-plugin)")
    if mode not in KV_MODES:
        raise Illegal("cache_mode", mode, f"one of {', '.join(KV_MODES)} ({KV_PAGE} page of op-plugin)")
    if (scales[0] is None) != (scales[1] is None):
        raise Illegal("k_rope_scale and c_kv_scale", "one of them", f"given together ({KV_PAGE} page of op-plugin)")
    for name, offset in zip(("k_rope_offset", "c_kv_offset"), offsets, strict=True):
        if offset is not None:
            raise Illegal(name, offset, f"left out ({KV_PAGE} page of op-plugin)")


def _store(rows: Tensor, scale: Tensor | None, cache: Tensor, index: Tensor, mode: str) -> None:
    """rows [B, 1, S, D] to a cache [B, 1, length, D] (Norm) or [blocks, size, 1, D], whose memory may be NZ."""
    batch, _, length, width = rows.shape
    if (cache.dtype == torch.int8) != (scale is not None):
        raise Illegal("a cache's type", cache.dtype, f"int8 with scales, and only then ({KV_PAGE} page of op-plugin)")
    if cache.dim() != 4 or cache.shape[3] != width:
        raise Illegal("a cache", cache, f"of four dimensions, the last {width} ({KV_PAGE} page of op-plugin)")
    values = slots.rounded(rows, scale).to(cache.dtype).reshape(-1, width)
    if mode == "Norm":
        if index.shape != (batch, length) or cache.shape[0] != batch:
            raise Illegal("index", index, f"[{batch}, {length}] in mode Norm ({KV_PAGE} page of op-plugin)")
        first = torch.arange(batch)[:, None] * cache.shape[2]
        places = torch.where(index >= 0, index + first, -1).flatten()
        slots.put(cache, places, values, cache.shape[2], nz=False)
        return
    size = cache.shape[1]
    places = _places(index, batch, length, size) if "BLK" in mode else index
    if places.shape != (batch * length,):
        raise Illegal("index", index, f"[{batch * length}] in mode {mode} ({KV_PAGE} page of op-plugin)")
    slots.put(cache, places, values, size, nz=mode.endswith("NZ"))


def _places(index: Tensor, batch: int, length: int, size: int) -> Tensor:
    """Slots of tokens from the slots at which their pages begin."""
    pages = -(-length // size)
    if index.shape != (batch * pages,):
        raise Illegal("index", index, f"[{batch * pages}], one per page ({KV_PAGE} page of op-plugin)")
    token = torch.arange(length)
    starts = index.view(batch, pages)[:, token // size]
    return torch.where(starts >= 0, starts // size * size + token % size, -1).flatten()


def _write_if(wanted: bool, out: Tensor, values: Tensor) -> None:
    if wanted:
        out.copy_(values)
    else:
        out.zero_()


@op("QkvRmsNormRopeCache")
def qkv_rms_norm_rope_cache(
    qkv: Tensor,
    q_gamma: Tensor,
    k_gamma: Tensor,
    cos: Tensor,
    sin: Tensor,
    index: Tensor,
    q_out: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k_scale: Tensor | None,
    v_scale: Tensor | None,
    k_offset: Tensor | None,
    v_offset: Tensor | None,
    qkv_size: tuple[int, ...],
    head_nums: tuple[int, ...],
    epsilon: float,
    cache_mode: str,
    q_out_before_quant: Tensor | None,
    k_out_before_quant: Tensor | None,
    v_out_before_quant: Tensor | None,
) -> None:
    """qkv [B * S, (Nq + Nk + Nv) * D]: query and key are normalised per head and rotated; key and value are stored.

    The formula is that of op-plugin's test: quantised as x / scale + offset, in NZ pages.
    """
    only("cache_mode", cache_mode, "PA_NZ")
    batch, length, heads, size = qkv_size
    if qkv.shape != (batch * length, heads * size) or sum(head_nums) != heads:
        raise Illegal("qkv_size", qkv_size, f"[B, S, N, D] of qkv {list(qkv.shape)} with the heads {head_nums}")
    parts = torch.split(torch.unflatten(qkv, 1, (heads, size)), list(head_nums), 1)
    cos, sin = (t.view(-1, 1, size) for t in (cos, sin))
    if len(cos) != len(qkv):
        raise Illegal("cos", cos, f"[{len(qkv)}, {size}]")
    query, key = (
        rotated(slots.normalised(x, gamma, epsilon), cos, sin, HALF)
        for x, gamma in zip(parts, (q_gamma, k_gamma), strict=False)
    )
    q_out.copy_(query.flatten(1))
    stores = ((key, k_scale, k_offset, k_cache), (parts[2], v_scale, v_offset, v_cache))
    for values, scale, offset, cache in stores:
        if (cache.dtype == torch.int8) != (scale is not None) or (offset is not None and scale is None):
            raise Illegal("a cache's type", cache.dtype, "int8 with a scale, and only then")
        rows = slots.rounded(values, scale, divide=True, offset=offset).flatten(1)
        inner = cache.shape[3]
        if cache.dim() != 4 or inner != slots.nz_width(cache) or cache.shape[1] * inner != rows.shape[1]:
            raise Illegal("a cache", cache, "[blocks, N * D / c, size, c] with c of 32 bytes")
        slots.put(cache, index, rows, cache.shape[2], nz=True)
    kept = ((q_out_before_quant, query), (k_out_before_quant, key), (v_out_before_quant, parts[2]))
    for out, values in kept:
        if out is not None:
            out.copy_(values.flatten(1))


@op("DequantRopeQuantKvcache")
def dequant_rope_quant_kvcache(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    indices: Tensor,
    scale_k: Tensor,
    scale_v: Tensor,
    offset_k: Tensor | None,
    offset_v: Tensor | None,
    weight_scale: Tensor | None,
    activation_scale: Tensor | None,
    bias: Tensor | None,
    size_splits: tuple[int, ...],
    quant_mode: str,
    input_layout: str,
    kv_output: bool,
    cache_mode: str,
    q_output: Tensor,
    k_output: Tensor,
    v_output: Tensor,
) -> None:
    """x [B, S, H] or [T, H] of query, key and value: rotated by halves; key and value are stored as x * scale + offset.

    The formula is that of op-plugin's test of npu_rope_quant_kvcache. Modes: contiguous, indices are where each
    sequence goes on; page, indices are the slots of the tokens.
    """
    refuse_given(weight_scale=weight_scale, activation_scale=activation_scale, bias=bias)
    only("quant_mode", quant_mode, "static")
    only("input_layout", input_layout, "BSND")
    if cache_mode not in ("contiguous", "page"):
        raise Illegal("cache_mode", cache_mode, "contiguous or page")
    if x.dtype not in (torch.float16, torch.bfloat16) or k_cache.dtype != torch.int8 or v_cache.dtype != torch.int8:
        raise Illegal("x", x, "float16 or bfloat16, with int8 caches")
    size = v_cache.shape[3]
    query, key, value = (torch.unflatten(t, -1, (-1, size)) for t in torch.split(x, list(size_splits), -1))
    query, key = (rotated(t, cos, sin, HALF) for t in (query, key))
    q_output.copy_(query)
    for values, scale, offset, cache in ((key, scale_k, offset_k, k_cache), (value, scale_v, offset_v, v_cache)):
        rows = slots.rounded(values, scale, offset=offset).flatten(-2)
        places = indices
        if cache_mode == "contiguous":
            if x.dim() != 3 or indices.shape != (len(x),) or len(cache) != len(x):
                raise Illegal("indices", indices, f"[{len(x)}] for x [B, S, H] in mode contiguous")
            if not 0 <= int(indices.min()) <= int(indices.max()) <= cache.shape[1] - x.shape[1]:
                raise Illegal("indices", indices.tolist(), f"room for {x.shape[1]} tokens in {cache.shape[1]}")
            steps = torch.arange(x.shape[1]) + torch.arange(len(x))[:, None] * cache.shape[1]
            places = (steps + indices[:, None]).flatten()
        slots.put(cache, places, rows.reshape(-1, rows.shape[-1]), cache.shape[1], nz=False)
    if kv_output:
        k_output.copy_(key)
        v_output.copy_(value)
