"""Paged attention: the keys of a window are gathered, then one masked product for all its sequences."""

from __future__ import annotations

import torch
from torch.nn import functional

from gallium.backends.torch.cache import Pages, flat, numbers
from gallium.backends.torch.plan import ZERO_PAGE, TorchPlan, Window
from gallium.backends.torch.routing import best_first
from gallium.ops.handles import AttentionSpec, KvCache

SELECTED_ELEMENTS = 1 << 26  # elements of latents that are gathered at once for queries with keys of their own


def gather(pages: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    """Pages `[pages, block_size, ...]` at slots `[seqs, keys]` -> `[seqs, keys, ...]`."""
    return flat(pages).index_select(0, slots.flatten()).view(*slots.shape, *pages.shape[2:])


def keys_and_values(pages: Pages, slots: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`[seqs, keys, kv_heads, width]` each, as numbers."""
    k, v, grid = gather(pages.k, slots), gather(pages.v, slots), pages.grid
    if grid is None:
        return k, v
    return numbers(k, grid.k_scale, grid.k_offset, grid.dtype), numbers(v, grid.v_scale, grid.v_offset, grid.dtype)


def attend(q: torch.Tensor, cache: KvCache, plan: TorchPlan, spec: AttentionSpec) -> torch.Tensor:
    """`softmax(q.k * scale) @ v` over positions up to the query's own -> `[tokens, heads, v_head_dim]`."""
    pages: Pages = cache.data
    q = q.to(pages.dtype)
    out = q.new_zeros((len(q), spec.num_heads, spec.v_head_dim))
    for window in plan.windows(cache.block_size):
        k, v = keys_and_values(pages, window.slots)
        out[window.rows] = attend_window(q[window.rows], k, v, window, spec.scale)
    return out


def attend_latent(
    q: torch.Tensor,
    q_rope: torch.Tensor,
    cache: KvCache,
    plan: TorchPlan,
    spec: AttentionSpec,
    selected: torch.Tensor | None,
) -> torch.Tensor:
    """score = (q.latent + q_rope.k_rope) * scale, value = latent -> `[tokens, heads, latent]`."""
    pages: Pages = cache.data
    q = torch.cat((q, q_rope), dim=-1).to(pages.k.dtype)
    out = q.new_zeros((len(q), spec.num_heads, spec.latent_dim))
    windows = plan.windows(cache.block_size)
    if selected is not None:
        windows = selected_windows(selected, cache, plan, spec)
    for window in windows:
        latent, k_rope = gather(pages.k, window.slots), gather(pages.v, window.slots)
        k, v = torch.cat((latent, k_rope), dim=-1)[:, :, None], latent[:, :, None]
        out[window.rows] = attend_window(q[window.rows], k, v, window, spec.scale)
    return out


def attend_window(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: Window, scale: float) -> torch.Tensor:
    """q `[seqs * queries, heads, width]`, k and v `[seqs, keys, kv_heads, width]` -> `[seqs * queries, heads, width]`.

    The queries of all heads that share a KV head are rows of one product.
    """
    seqs, queries, kv_heads = window.seqs, window.queries, k.shape[2]
    group = q.shape[1] // kv_heads
    rows = q.reshape(seqs, queries, kv_heads, group, -1).permute(0, 2, 3, 1, 4).reshape(seqs, kv_heads, -1, q.shape[-1])
    wider = v.shape[-1] - k.shape[-1]
    if wider > 0:  # which kernels of some devices refuse; zeros add nothing to a score
        rows, k = functional.pad(rows, (0, wider)), functional.pad(k, (0, wider))
    mask = window.mask[:, None]
    if queries > 1:
        mask = mask[:, :, None].expand(-1, -1, group, -1, -1).reshape(seqs, 1, group * queries, -1)
    out = functional.scaled_dot_product_attention(
        rows, k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask, scale=scale
    )
    out = out.view(seqs, kv_heads, group, queries, -1).permute(0, 3, 1, 2, 4)
    return out.reshape(seqs * queries, kv_heads * group, -1)


def selected_windows(selected: torch.Tensor, cache: KvCache, plan: TorchPlan, spec: AttentionSpec) -> list[Window]:
    """Each query with keys of its own at positions `[tokens, k]` (-1: none), as many at a time as memory allows."""
    tokens, k = selected.shape
    place = selected.clamp(min=0).long()
    blocks = plan.block_tables.index_select(0, plan.token_seqs).long().gather(1, place // cache.block_size)
    mask = selected >= 0
    slots = torch.where(mask, blocks * cache.block_size + place % cache.block_size, ZERO_PAGE)
    most = max(1, SELECTED_ELEMENTS // max(1, k * (spec.latent_dim + spec.rope.dim)))
    cuts = [slice(at, min(tokens, at + most)) for at in range(0, tokens, most)]
    return [Window(cut, cut.stop - cut.start, 1, slots[cut], mask[cut, None]) for cut in cuts]


def index_topk(q: torch.Tensor, weights: torch.Tensor, cache: KvCache, plan: TorchPlan, k: int) -> torch.Tensor:
    """score = sum over heads of `relu(q.key) * weight`, in float32 -> int32 `[tokens, k]`, best first, then -1."""
    pages: Pages = cache.data
    out = torch.full((len(q), k), -1, dtype=torch.int32, device=q.device)
    for window in plan.windows(cache.block_size):
        keys = gather(pages.index, window.slots).float().transpose(1, 2)
        heads = q[window.rows].float().reshape(window.seqs, window.queries, *q.shape[1:])
        gains = weights[window.rows].float().reshape(window.seqs, window.queries, -1)
        score = torch.zeros(window.mask.shape, device=q.device)
        for head in range(heads.shape[2]):  # one at a time: all of them together would not fit for a long context
            score += torch.relu(heads[:, :, head] @ keys) * gains[:, :, head, None]
        score = score.masked_fill(~window.mask, -torch.inf).flatten(0, 1)
        best = best_first(score)[:, :k]
        positions = best.masked_fill(score.gather(1, best) == -torch.inf, -1).int()
        out[window.rows, : positions.shape[1]] = positions
    return out
