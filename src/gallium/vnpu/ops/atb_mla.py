"""ATB's latent attention (MLA): over the latent cache for new tokens, and over a long prompt chunk by chunk.

Meaning of the arguments: Ascend/op-plugin 517f2e7, op_plugin/python/atb/_atb_api_docs.py
(npu_multi_head_latent_attention, npu_ring_mla), the calls in op_plugin/ops/atb and the test test_atb_ring_mla.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gallium.vnpu.checks import check_family
from gallium.vnpu.ops.atb_attention import (
    A2_AND_A3,
    ND,
    NZ,
    Lengths,
    attend,
    causal,
    check_floats,
    check_heads,
    check_triangle,
    gather,
    lengths,
    pages,
    ranges,
)
from gallium.vnpu.registry import Illegal, Unsupported, only, op, refuse_given
from gallium.vnpu.writing import write

LATENT, ROPE, HEAD = 512, 64, 128  # sizes that these kernels are made for
CACHE_FORMATS = {1: ND, 3: NZ}  # cache_mode krope_ctkv and nzcache; int8_nzcache (2) quantises
DECODE, RING = 0, 2  # calc_type of MLA
MERGE, FIRST = 0, 1  # calc_type of RingMLA
NO_MASK, TRIANGLE = 0, 1  # mask_type of RingMLA


@op("atb.MLA", cube=True)
def mla(
    q_nope: Tensor,
    q_rope: Tensor,
    ctkv: Tensor,
    ctkv_format: int,
    k_rope: Tensor,
    k_rope_format: int,
    block_tables: Tensor,
    context_lens: Lengths,
    mask: Tensor | None,
    qseqlen: Lengths | None,
    qk_descale: Tensor | None,
    pv_descale: Tensor | None,
    head_num: int,
    qk_scale: float,
    kv_head_num: int,
    mask_type: int,
    calc_type: int,
    cache_mode: int,
    out: Tensor,
    lse: Tensor | None,
) -> None:
    """One new token per sequence over its cached latents, which are keys (with the rotated part) and values at once."""
    only("cache_mode", cache_mode, *CACHE_FORMATS)
    only("ctkv's format", ctkv_format, CACHE_FORMATS[cache_mode])
    only("k_rope's format", k_rope_format, CACHE_FORMATS[cache_mode])
    only("mask_type", mask_type, 0)
    only("calc_type", calc_type, DECODE, RING)
    refuse_given(mask=mask, qseqlen=qseqlen, qk_descale=qk_descale, pv_descale=pv_descale)
    if (lse is not None) != (calc_type == RING):
        raise Illegal("lse", lse, "asked for with calc_type='calc_type_ring', and only then")
    check_floats(q_nope=q_nope, q_rope=q_rope, ctkv=ctkv, k_rope=k_rope, output=out)
    check_heads(head_num, kv_head_num)
    latents = pages("ctkv", ctkv, ctkv_format, kv_head_num)
    rotated = pages("k_rope", k_rope, k_rope_format, kv_head_num)
    context = lengths("context_lens", context_lens)
    tokens = len(context)
    for name, tensor, size in (("q_nope", q_nope, LATENT), ("q_rope", q_rope, ROPE), ("output", out, LATENT)):
        if tensor.shape != (tokens, head_num, size):
            raise Illegal(name, tensor, f"[{tokens}, {head_num}, {size}], as there are {tokens} context_lens")
    if latents.shape[3] != LATENT or rotated.shape != (*latents.shape[:3], ROPE) or latents.shape[1] > 128:
        raise Illegal("ctkv", ctkv, f"[blocks, block_size up to 128, {kv_head_num}, {LATENT}], and k_rope with {ROPE}")
    if block_tables.dim() != 2 or block_tables.shape[0] != tokens or tokens > 8192:
        raise Illegal("block_tables", block_tables, f"[{tokens}, blocks], for at most 8192 sequences")
    for i, (length, table) in enumerate(zip(context, block_tables, strict=True)):
        value = gather(latents, table, length)
        key = torch.cat((value, gather(rotated, table, length)), dim=-1)
        query = torch.cat((q_nope[i : i + 1], q_rope[i : i + 1]), dim=-1)
        result, logsumexp = attend(query, key, value, qk_scale)
        write(out[i : i + 1], result)
        if lse is not None:
            write(lse[i], logsumexp)


@op(
    "atb.RingMLA",
    cube=True,
    unused={"kernel_type": "chooses the precision inside the kernel, which is float32 here"},
)
def ring_mla(
    q_nope: Tensor,
    q_rope: Tensor,
    k_nope: Tensor,
    k_rope: Tensor,
    value: Tensor,
    mask: Tensor | None,
    seqlen: Lengths,
    pre_out: Tensor | None,
    prev_lse: Tensor | None,
    head_num: int,
    kv_head_num: int,
    qk_scale: float,
    kernel_type: int,
    mask_type: int,
    input_layout: int,
    calc_type: int,
    out: Tensor,
    softmax_lse: Tensor,
) -> None:
    """Attention over one chunk of keys; the result over the chunks before comes in and is merged with it."""
    check_family("npu_ring_mla", *A2_AND_A3)
    only("mask_type", mask_type, NO_MASK, TRIANGLE)
    only("input_layout", input_layout, 0)
    only("calc_type", calc_type, MERGE, FIRST)
    check_heads(head_num, kv_head_num)
    check_floats(q_nope=q_nope, q_rope=q_rope, k_nope=k_nope, k_rope=k_rope, value=value, pre_out=pre_out, output=out)
    q_lens, kv_lens = _two_lengths(lengths("seqlen", seqlen), q_nope.shape[0], k_nope.shape[0])
    q_rows, kv_rows = sum(q_lens), sum(kv_lens)
    for name, tensor, rows, heads, size in (
        ("q_nope", q_nope, q_rows, head_num, HEAD), ("q_rope", q_rope, q_rows, head_num, ROPE),
        ("k_nope", k_nope, kv_rows, kv_head_num, HEAD), ("k_rope", k_rope, kv_rows, kv_head_num, ROPE),
        ("value", value, kv_rows, kv_head_num, HEAD), ("output", out, q_rows, head_num, HEAD),
    ):  # fmt: skip
        if tensor.shape != (rows, heads, size):
            raise Illegal(name, tensor, f"[{rows}, {heads}, {size}], by seqlen")
    _check_ring(mask_type, mask, q_lens, kv_lens)
    before = _before(calc_type, pre_out, prev_lse, softmax_lse, (head_num, q_rows))
    query, key = torch.cat((q_nope, q_rope), dim=-1), torch.cat((k_nope, k_rope), dim=-1)
    for part, columns in zip(ranges(q_lens), ranges(kv_lens), strict=True):
        bias = causal(part.stop - part.start, columns.stop - columns.start) if mask_type == TRIANGLE else None
        result, lse = attend(query[part], key[columns], value[columns], qk_scale, bias)
        if before is not None:
            result, lse = _merged(result, lse, before[0][part].float(), before[1][:, part])
        write(out[part], result)
        write(softmax_lse[:, part], lse)


def _two_lengths(given: list[int], q_rows: int, kv_rows: int) -> tuple[list[int], list[int]]:
    """Lengths of queries and of keys, given as `[batch]` for both or as `[2, batch]`; only the values come here."""
    if sum(given) == q_rows == kv_rows:
        return given, given
    if len(given) % 2:
        raise Illegal("seqlen", given, f"of {q_rows} queries and {kv_rows} keys together")
    return given[: len(given) // 2], given[len(given) // 2 :]


def _check_ring(mask_type: int, mask: Tensor | None, q_lens: list[int], kv_lens: list[int]) -> None:
    if any(q == 0 or 0 < kv < q for q, kv in zip(q_lens, kv_lens, strict=True)):
        raise Illegal("seqlen", [q_lens, kv_lens], "of queries, above 0 and at most that of the keys")
    if 0 in kv_lens:
        raise Unsupported(
            "seqlen", [q_lens, kv_lens], "sequences that have keys: what stands for none is not documented"
        )
    if mask_type == TRIANGLE:
        if mask is None or q_lens != kv_lens:
            raise Unsupported("mask_type", mask_type, "a triangular mask, given, where queries and keys are as many")
        check_triangle(mask, (512,))


def _before(
    calc_type: int, pre_out: Tensor | None, prev_lse: Tensor | None, lse: Tensor, shape: tuple[int, int]
) -> tuple[Tensor, Tensor] | None:
    """Output and log-sum-exp of the chunks before; None for the first. Copies: the outputs may be the same tensors."""
    if lse.shape != shape or lse.dtype != torch.float32:
        raise Illegal("softmax_lse", lse, f"float32 {list(shape)}")
    if calc_type == FIRST:
        refuse_given(pre_out=pre_out, prev_lse=prev_lse)
        return None
    if pre_out is None or prev_lse is None or prev_lse.shape != shape or prev_lse.dtype != torch.float32:
        raise Illegal("prev_lse", prev_lse, f"float32 {list(shape)}, with pre_out, unless calc_type is the first ring")
    return pre_out.clone(), prev_lse.clone()


def _merged(out: Tensor, lse: Tensor, out_before: Tensor, lse_before: Tensor) -> tuple[Tensor, Tensor]:
    """The attention over two sets of keys, from that over each: `[q, heads, size]` and `[heads, q]`."""
    both = torch.logaddexp(lse, lse_before)
    part, part_before = ((each - both).exp().transpose(0, 1).unsqueeze(-1) for each in (lse, lse_before))
    return out * part + out_before * part_before, both
