"""Attention by torch_npu's fused operators over a paged cache: grouped heads, latents, and chosen positions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch_npu
from torch import Tensor

from gallium.backends.ascend.cache import Antiquant, AscendPages
from gallium.ops.handles import AttentionSpec

if TYPE_CHECKING:
    from gallium.backends.ascend.plan import AscendPlan, Part

CAUSAL = 3  # sparse_mode: aligned at the lower right corner, told by a compressed triangle
TRIANGLE = 2048  # its side, whatever the lengths
MOST_INDEX_HEADS = 64  # of npu_lightning_indexer


def triangle(device: torch.device) -> Tensor:
    """The mask that `sparse_mode` 3 wants: bool `[2048, 2048]`, True where a key is hidden."""
    return torch.ones(TRIANGLE, TRIANGLE, dtype=torch.bool).triu(1).to(device)


def paged(pages: Tensor) -> Tensor:
    """`[blocks, block_size, heads, width]` as `[blocks, block_size, heads * width]`, without a copy."""
    return pages.flatten(2)


def decode(q: Tensor, pages: AscendPages, plan: AscendPlan, spec: AttentionSpec) -> Tensor:
    """One query per sequence, `[seqs, heads, width]`: layout BSND, in which its mask and modes mean nothing.

    An 8-bit cache is read as it is.
    """
    grid = pages.antiquant
    codes = {} if grid is None else grid.arguments
    out, _ = torch_npu.npu_fused_infer_attention_score(
        q.unsqueeze(1),
        paged(pages.k),
        paged(pages.v),
        num_heads=spec.num_heads,
        num_key_value_heads=spec.num_kv_heads,
        input_layout="BSND",
        scale=spec.scale,
        block_table=plan.block_tables,
        block_size=pages.k.shape[1],
        actual_seq_lengths_kv=plan.lengths,
        **codes,
    )
    found: Tensor = out.squeeze(1)
    return found


def _causal(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kv_heads: int,
    plan: AscendPlan | Part,
    spec: AttentionSpec,
    mask: Tensor,
    **rotated: Tensor,
) -> Tensor:
    """Layout TND over pages `[blocks, block_size, width]`, with a part that rotates apart if there is one."""
    out: Tensor = torch_npu.npu_fused_infer_attention_score(
        q,
        k,
        v,
        **rotated,
        atten_mask=mask,
        sparse_mode=CAUSAL,
        num_heads=spec.num_heads,
        num_key_value_heads=kv_heads,
        input_layout="TND",
        scale=spec.scale,
        block_table=plan.block_tables,
        block_size=k.shape[1],
        actual_seq_lengths=plan.query_ends,
        actual_seq_lengths_kv=plan.lengths,
    )[0]
    return out


def packed(q: Tensor, k: Tensor, v: Tensor, plan: AscendPlan | Part, spec: AttentionSpec, mask: Tensor) -> Tensor:
    """Any mix of prefill and decode, `[tokens, heads, width]`: layout TND, causal from the lower right corner."""
    return _causal(q, paged(k), paged(v), spec.num_kv_heads, plan, spec, mask)


def packed_codes(
    q: Tensor, pages: AscendPages, grid: Antiquant, plan: AscendPlan, spec: AttentionSpec, mask: Tensor
) -> Tensor:
    """As `packed`, over an 8-bit cache, which layout TND does not take: the pages become numbers before."""
    found = []
    for part in plan.parts(pages.k.shape[1]):
        k = _numbers(pages.k, part.pages, grid.k_scale, grid.k_offset)
        v = _numbers(pages.v, part.pages, grid.v_scale, grid.v_offset)
        found.append(packed(q[part.rows], k, v, part, spec, mask))
    return torch.cat(found) if len(found) > 1 else found[0]


def _numbers(pages: Tensor, chosen: Tensor, scale: Tensor, offset: Tensor | None) -> Tensor:
    """Exactly what `decode` computes with: `code + offset` has at most 8 bits, and is rounded only by the scale."""
    found = pages.index_select(0, chosen).to(scale.dtype)
    if offset is not None:
        found += offset
    return found.mul_(scale)


def latent(
    q: Tensor, q_rope: Tensor, k: Tensor, k_rope: Tensor, plan: AscendPlan, spec: AttentionSpec, mask: Tensor
) -> Tensor:
    """All heads over one latent, which is key and value at once; `[tokens, heads, latent]`, layout TND."""
    return _causal(q, k, k, 1, plan, spec, mask, query_rope=q_rope, key_rope=k_rope)


def latent_over(
    q: Tensor, q_rope: Tensor, k: Tensor, k_rope: Tensor, plan: AscendPlan, spec: AttentionSpec, selected: Tensor
) -> Tensor:
    """Attention over the `selected` positions `[tokens, chosen]` of each query; -1 is none."""
    out, _, _ = torch_npu.npu_sparse_flash_attention(
        q,
        k.unsqueeze(2),
        k.unsqueeze(2),
        selected.unsqueeze(1),
        spec.scale,
        block_table=plan.block_tables,
        actual_seq_lengths_query=plan.query_ends_on_device,
        actual_seq_lengths_kv=plan.context_lens,
        query_rope=q_rope,
        key_rope=k_rope.unsqueeze(2),
        layout_query="TND",
        layout_kv="PA_BSND",
        sparse_mode=CAUSAL,
        attention_mode=2,
    )
    found: Tensor = out
    return found


def choose(q: Tensor, weights: Tensor, keys: Tensor, plan: AscendPlan, k: int) -> Tensor:
    """The `k` best positions of each query's index heads `[tokens, heads, width]`, -1 where there are fewer."""
    ids, _ = torch_npu.npu_lightning_indexer(
        q,
        keys.unsqueeze(2),
        weights,
        actual_seq_lengths_query=plan.query_ends_on_device,
        actual_seq_lengths_key=plan.context_lens,
        block_table=plan.block_tables,
        layout_query="TND",
        layout_key="PA_BSND",
        sparse_count=k,
        sparse_mode=CAUSAL,
    )
    found: Tensor = ids.squeeze(1)
    return found
