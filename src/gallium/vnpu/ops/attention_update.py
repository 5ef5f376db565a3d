"""Joining partial attention: AttentionUpdate by log-sum-exp, RingAttentionUpdate by maximum and sum."""

from __future__ import annotations

import torch
from torch import Tensor

from gallium.vnpu.attention import layouts
from gallium.vnpu.registry import Illegal, only, op
from gallium.vnpu.writing import write

PAGE = "npu_attention_update page of op-plugin"


@op("AttentionUpdate")
def attention_update(
    lse: tuple[Tensor, ...], local_out: tuple[Tensor, ...], update_type: int, out: Tensor, lse_out: Tensor | None
) -> None:
    """out = sum of out_i * exp(lse_i - lse), lse = log of the sum of exp(lse_i). Parts that saw nothing weigh 0."""
    if update_type not in (0, 1) or (update_type == 1) != (lse_out is not None):
        raise Illegal("update_type", update_type, f"0, or 1 to write lse_out too ({PAGE})")
    if len(lse) != len(local_out) or not 1 <= len(lse) <= 16:
        raise Illegal("lse and local_out", len(lse), f"lists of equal length, 1 to 16 ({PAGE})")
    size = local_out[0].shape[-1]
    if size % 8 or not 8 <= size <= 512 or any(x.dtype != torch.float32 for x in lse):
        raise Illegal("local_out", local_out[0], f"of head size 8 to 512, a multiple of 8, with float32 lse ({PAGE})")
    parts = torch.stack(list(lse))
    total = parts.logsumexp(0)
    weights = torch.nan_to_num((parts - total).exp_(), nan=0.0)
    write(
        out, sum((w[:, None] * x.to(torch.float32) for w, x in zip(weights, local_out, strict=True)), torch.zeros(()))
    )
    if lse_out is not None:
        write(lse_out, total)


@op("RingAttentionUpdateV2")
def ring_attention_update(
    prev_attn_out: Tensor,
    prev_softmax_max: Tensor,
    prev_softmax_sum: Tensor,
    cur_attn_out: Tensor,
    cur_softmax_max: Tensor,
    cur_softmax_sum: Tensor,
    actual_seq_qlen: Tensor | None,
    input_layout: str,
    input_softmax_layout: str,
    attn_out: Tensor,
    softmax_max: Tensor,
    softmax_sum: Tensor,
) -> None:
    """Join two rounds of ring attention; out [S, B, H] with statistics [B, N, S, 8], or [T, N, D] with [T, N, 8].

    The formula is that of op-plugin's test.
    """
    only("input_layout", input_layout, "SBH", "TND")
    top = torch.maximum(prev_softmax_max, cur_softmax_max)
    earlier = prev_softmax_sum * (prev_softmax_max - top).exp()
    later = cur_softmax_sum * (cur_softmax_max - top).exp()
    total = earlier + later
    divisor = total + (total == 0)
    shares = [(x / divisor)[..., :1] for x in (earlier, later)]
    if input_layout == "TND":
        _check_packed(input_softmax_layout, actual_seq_qlen)
        if input_softmax_layout != "TND":
            shares = [_by_token(x, actual_seq_qlen) for x in shares]
        views = [prev_attn_out, cur_attn_out, attn_out]
    else:
        heads = prev_softmax_max.shape[1]
        views = [layouts.view("attn_out", x, "SBH", heads) for x in (prev_attn_out, cur_attn_out, attn_out)]
    views[2].copy_(views[0].to(torch.float32) * shares[0] + views[1].to(torch.float32) * shares[1])
    write(softmax_max, top)
    write(softmax_sum, total)


def _check_packed(softmax_layout: str, lengths: Tensor | None) -> None:
    if softmax_layout not in ("", "SBH", "TND") or lengths is None:
        raise Illegal("input_softmax_layout", softmax_layout, "TND or nothing, with actual_seq_qlen, for layout TND")


def _by_token(stats: Tensor, ends: Tensor | None) -> Tensor:
    """Statistics in blocks [N, s] of the sequences, as [T, N, 1]."""
    assert ends is not None
    heads, rows = stats.shape[1], torch.empty_like(stats)
    cuts = [int(n) for n in ends.tolist()]
    cuts = cuts[1:] if cuts and cuts[0] == 0 else cuts
    for first, last in zip((0, *cuts), cuts, strict=False):
        flat = stats.reshape(-1, 1)[heads * first : heads * last]
        rows[first:last] = flat.view(heads, last - first, 1).transpose(0, 1)
    return rows
