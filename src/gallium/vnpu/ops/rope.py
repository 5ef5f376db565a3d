"""Rotary embeddings: npu_rotary_mul and its gradient, npu_apply_rotary_pos_emb, npu_interleave_rope, npu_mrope."""

from __future__ import annotations

import torch
from torch import Tensor

from gallium.vnpu import soc
from gallium.vnpu.attention.limits import need_chip
from gallium.vnpu.attention.rotary import (
    INTERLEAVED_TO_HALF,
    MODE_WORDS,
    arranged,
    arranged_back,
    check_mode,
    rotated,
    turned,
)
from gallium.vnpu.registry import Illegal, Unsupported, op
from gallium.vnpu.writing import write

ROTARY_PAGE = "npu_rotary_mul"
APPLY_LAYOUTS = {1: "BSND", 2: "SBND", 3: "BNSD", 4: "TND"}


@op("RotaryPositionEmbedding")
def rotary_position_embedding(x: Tensor, cos: Tensor, sin: Tensor, mode: int, out: Tensor) -> None:
    """The older version, without a matrix."""
    _check_rotary(x, cos, sin, mode)
    write(out, rotated(x, cos, sin, mode))


@op("RotaryPositionEmbeddingV2")
def rotary_position_embedding_v2(
    x: Tensor, cos: Tensor, sin: Tensor, mode: int, rotate: Tensor | None, out: Tensor
) -> None:
    """With `rotate`, a matrix [D, D], the turned vector is x @ rotate, whatever the mode."""
    _check_rotary(x, cos, sin, mode)
    if rotate is None:
        write(out, rotated(x, cos, sin, mode))
        return
    size = x.shape[-1]
    if rotate.shape != (size, size):
        raise Illegal("rotate", rotate, f"[{size}, {size}] ({ROTARY_PAGE} page of op-plugin)")
    numbers = x.to(torch.float32)
    turned_x = torch.matmul(numbers, rotate.to(torch.float32))
    write(out, numbers * cos.to(torch.float32) + turned_x * sin.to(torch.float32))


@op("RotaryPositionEmbeddingGrad")
def rotary_position_embedding_grad(
    grad: Tensor, cos: Tensor, sin: Tensor, x: Tensor | None, mode: int, dx: Tensor, dcos: Tensor, dsin: Tensor
) -> None:
    """torch_npu leaves x out when cos and sin need no gradient; theirs are zeros then."""
    _check_rotary(grad, cos, sin, mode)
    grad = grad.to(torch.float32)
    turned_back = turned(grad * sin.to(torch.float32), mode)  # the transpose of turning is turning the other way
    write(dx, arranged_back(grad * cos.to(torch.float32) - turned_back, mode))
    if x is None:
        dcos.zero_()
        dsin.zero_()
        return
    seen = arranged(x.to(torch.float32), mode)
    write(dcos, (grad * seen).sum_to_size(dcos.shape))
    write(dsin, (grad * turned(seen, mode)).sum_to_size(dsin.shape))


def _check_rotary(x: Tensor, cos: Tensor, sin: Tensor, mode: int) -> None:
    check_mode(mode, x.shape[-1])
    if x.dim() not in (3, 4) or cos.dim() != x.dim() or sin.shape != cos.shape:
        legal = f"of 3 or 4 dimensions, as many as cos and sin, which are alike ({ROTARY_PAGE} page of op-plugin)"
        raise Illegal("input", x, legal)
    if any(c not in (1, s) for c, s in zip(cos.shape, x.shape, strict=True)) or cos.shape[-1] != x.shape[-1]:
        raise Illegal("r1", cos, f"of a shape that broadcasts to {list(x.shape)} ({ROTARY_PAGE} page of op-plugin)")
    if soc.current().family != "950" and x.shape[-1] >= 896:
        raise Illegal("the size of a head", x.shape[-1], f"below 896 ({ROTARY_PAGE} page of op-plugin)")


@op("ApplyRotaryPosEmb")
def apply_rotary_pos_emb(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, layout: int) -> None:
    """In place, halves."""
    _apply_in_place(query, key, cos, sin, layout, "half")


@op("ApplyRotaryPosEmbV2")
def apply_rotary_pos_emb_v2(
    query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, layout: int, rotary_mode: str
) -> None:
    """In place, with the mode as a word."""
    _apply_in_place(query, key, cos, sin, layout, rotary_mode)


def _apply_in_place(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, layout: int, word: str) -> None:
    page = "npu_apply_rotary_pos_emb page of op-plugin"
    size, newest = query.shape[-1], soc.current().family == "950"
    if layout not in APPLY_LAYOUTS or (layout in (2, 3) and not newest):
        raise Illegal("layout", APPLY_LAYOUTS.get(layout, layout), f"BSND or TND; SBND and BNSD on 950 ({page})")
    if word not in MODE_WORDS or (word != "half" and not newest):
        raise Illegal("rotary_mode", word, f"half; on 950 also interleave and quarter ({page})")
    if key.shape[-1] != size or (size not in (64, 128) and not newest) or size > 1024:
        raise Illegal("the size of a head", size, f"64 or 128, on 950 at most 1024, the same of query and key ({page})")
    if len({t.dtype for t in (query, key, cos, sin)}) != 1 or cos.shape != sin.shape or cos.dim() != query.dim():
        raise Illegal("cos and sin", cos, f"of the type and dimensions of query and key ({page})")
    if cos.shape[-1] != size:
        raise Unsupported("the size of cos and sin", cos.shape[-1], f"that of a head, {size}")
    check_mode(MODE_WORDS[word], size)
    for x in (query, key):
        if any(c not in (1, s) for c, s in zip(cos.shape, x.shape, strict=True)):
            raise Illegal("cos", cos, f"of a shape that broadcasts to {list(x.shape)} ({page})")
        x.copy_(rotated(x, cos, sin, MODE_WORDS[word]))


@op("InterleaveRope")
def interleave_rope(x: Tensor, cos: Tensor, sin: Tensor, out: Tensor) -> None:
    """Neighbours are brought to halves and rotated there; [B, N, S, 64]."""
    page = "npu_interleave_rope"
    need_chip(page, "910B", "910_93", "950")
    if x.dim() != 4 or x.shape[-1] != 64 or x.dtype not in (torch.float16, torch.bfloat16):
        raise Illegal("x", x, f"float16 or bfloat16 [B, N, S, 64] ({page} page of op-plugin)")
    good = cos.shape[1] == 1 and cos.shape[2] in (1, x.shape[2]) and cos.shape[0] == x.shape[0]
    if not good or cos.shape != sin.shape or cos.shape[3] != 64 or cos.dtype != x.dtype:
        raise Illegal("cos", cos, f"[B, 1, S or 1, 64] like sin, of the type of x ({page} page of op-plugin)")
    write(out, rotated(x, cos, sin, INTERLEAVED_TO_HALF))


@op("RopeWithSinCosCache")
def rope_with_sin_cos_cache(
    positions: Tensor,
    query: Tensor,
    key: Tensor,
    cos_sin_cache: Tensor,
    mrope_section: tuple[int, ...],
    head_size: int,
    is_neox_style: bool,
    query_out: Tensor,
    key_out: Tensor,
) -> None:
    """The older version, which joins sections in order."""
    cos, sin = _sections(positions, cos_sin_cache, mrope_section, interleaved=False)
    for x, out in ((query, query_out), (key, key_out)):
        _rotate_rows(x, cos, sin, head_size, is_neox_style, out)


@op("RopeWithSinCosCacheV2")
def rope_with_sin_cos_cache_v2(
    positions: Tensor,
    query: Tensor,
    key: Tensor,
    cos_sin_cache: Tensor,
    mrope_section: tuple[int, ...],
    head_size: int,
    is_neox_style: bool,
    cache_mode: int,
    query_out: Tensor,
    key_out: Tensor,
) -> None:
    """cache_mode 0 joins the sections of a multimodal position in order, 1 interleaves them."""
    cos, sin = _sections(positions, cos_sin_cache, mrope_section, interleaved=cache_mode == 1)
    for x, out in ((query, query_out), (key, key_out)):
        _rotate_rows(x, cos, sin, head_size, is_neox_style, out)


def _sections(positions: Tensor, cache: Tensor, sections: tuple[int, ...], interleaved: bool) -> tuple[Tensor, Tensor]:
    """cos and sin [T, rotary / 2]. Positions [T], or [parts, T] of which each section takes its own part."""
    page, half = "npu_mrope page of op-plugin", cache.shape[1] // 2
    if positions.numel() and not 0 <= int(positions.min()) <= int(positions.max()) < len(cache):
        raise Illegal("positions", positions, f"rows of the cache, 0 to {len(cache) - 1} ({page})")
    found = cache[positions.to(torch.int64)].to(torch.float32)
    if positions.dim() == 1:
        return found[:, :half], found[:, half:]
    if positions.dim() != 2 or positions.shape[0] not in (3, 4) or len(sections) != positions.shape[0]:
        raise Illegal("positions", positions, f"[T], or [3 or 4, T] with as many sections ({page})")
    both = (found[..., :half], found[..., half:])
    if not interleaved:
        if sum(sections) != half:
            raise Illegal("mrope_section", sections, f"of the sum {half}, half of the cache's width ({page})")
        ends = [sum(sections[: i + 1]) for i in range(len(sections))]
        cuts = [slice(end - n, end) for n, end in zip(sections, ends, strict=True)]
        cos, sin = (torch.cat([x[i, :, cut] for i, cut in enumerate(cuts)], -1) for x in both)
        return cos, sin
    if len(sections) != 3 or sections[1] != sections[2]:
        raise Unsupported("mrope_section", sections, "three, the last two alike, if they are interleaved")
    for x in both:
        for part in (1, 2):
            place = slice(part, sections[1] * 3, 3)
            x[0, :, place] = x[part, :, place]
    return both[0][0], both[1][0]


def _rotate_rows(x: Tensor, cos: Tensor, sin: Tensor, head_size: int, neox: bool, out: Tensor) -> None:
    """Rotate the first part of each head of [T, N * head_size]; the rest stays."""
    page, width = "npu_mrope page of op-plugin", 2 * cos.shape[-1]
    if x.dim() != 2 or head_size <= 0 or x.shape[1] % head_size or width > head_size:
        raise Illegal("query or key", x, f"[T, N * {head_size}], with a cache at most as wide as a head ({page})")
    heads = torch.unflatten(x, 1, (-1, head_size))
    if neox:
        cos, sin = (torch.cat((t, t), -1)[:, None] for t in (cos, sin))
    else:
        cos, sin = (t.repeat_interleave(2, -1)[:, None] for t in (cos, sin))
    target = torch.unflatten(out, 1, (-1, head_size))
    target[..., :width] = rotated(heads[..., :width], cos, sin, 0 if neox else 1)
    target[..., width:] = heads[..., width:]
