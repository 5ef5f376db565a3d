"""Sparse attention on chosen keys: SparseFlashAttention, its gradient, and the one with keys quantised in tiles."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gallium.vnpu import soc
from gallium.vnpu.attention.batches import Batches, causal, heads_first
from gallium.vnpu.attention.core import Attention, attend
from gallium.vnpu.attention.gradient import Forward, Gradients, attend_backward
from gallium.vnpu.attention.limits import need_chip
from gallium.vnpu.attention.visibility import Visible
from gallium.vnpu.named import register_named
from gallium.vnpu.registry import Illegal, only, op, refuse_given

PAGE = "npu_sparse_flash_attention"
EVERY = (1 << 63) - 1
LATENT, ROTATED = 512, 64
HEADS = (1, 2, 4, 8, 16, 32, 64, 128)


def chosen(indices: Tensor, block: int, keys: int, causal_too: bool) -> Tensor:
    """[S1, S2]: which keys each query sees, from block numbers [S1, K]; -1 and blocks after the end are none."""
    rows = torch.arange(len(indices))[:, None]
    blocks = -(-keys // block)
    good = (indices >= 0) & (indices < blocks)
    seen = torch.zeros(len(indices), blocks + 1, dtype=torch.bool)
    seen[rows, torch.where(good, indices, blocks).to(torch.int64)] = True
    seen = seen[:, :blocks].repeat_interleave(block, 1)[:, :keys]
    return seen & ~causal(len(indices), keys) if causal_too else seen


@dataclass(frozen=True, kw_only=True)
class Sparse:
    """What the operators share: lengths, chosen blocks, causality."""

    query: Tensor
    key: Tensor
    value: Tensor
    sparse_indices: Tensor
    block_table: Tensor | None = None
    actual_seq_lengths_query: Tensor | None
    actual_seq_lengths_kv: Tensor | None
    query_rope: Tensor | None = None
    key_rope: Tensor | None = None
    sinks: Tensor | None = None
    scale: float
    sparse_block_size: int
    layout_query: str
    layout_kv: str
    sparse_mode: int
    pre_tokens: int
    next_tokens: int
    attention_mode: int = 2

    def check(self) -> None:
        """Raise Illegal for what the page excludes."""
        need_chip(PAGE, "910B", "910_93", "950")
        newest = soc.current().family == "950"
        heads, size = self.query.shape[-2], self.sparse_block_size
        only("attention_mode", self.attention_mode, 2)
        only("pre_tokens and next_tokens", (self.pre_tokens, self.next_tokens), (EVERY, EVERY))
        only("sparse_mode", self.sparse_mode, 0, 3)
        if heads not in (range(1, 129) if newest else HEADS) or self.key.shape[-2] != 1:
            raise Illegal(
                "heads of query and key", heads, f"1 to 128 and 1, powers of 2 but for 950 ({PAGE} page of op-plugin)"
            )
        if size not in ((1,) if newest else (1, 2, 4, 8, 16, 32, 64, 128)):
            raise Illegal(
                "sparse_block_size", size, f"1, or on other chips than 950 a power of 2 up to 128 ({PAGE} page)"
            )
        if self.block_table is not None and (self.key.shape[1] % size or self.key.shape[1] % 16):
            raise Illegal(
                "the block size of the cache", self.key.shape[1], f"a multiple of 16 and {size} ({PAGE} page)"
            )
        if self.sparse_indices.shape[:-2] != self.query.shape[:-2] or self.sparse_indices.dtype != torch.int32:
            raise Illegal("sparse_indices", self.sparse_indices, f"int32 [.., 1, K], rows like the query ({PAGE} page)")
        if self.sinks is not None and not newest:
            raise Illegal("sinks", self.sinks, f"left out but for 950 ({PAGE} page of op-plugin)")

    def batches(self) -> Batches:
        """How the batch is cut."""
        return Batches(
            self.query,
            self.key,
            self.layout_query,
            self.layout_kv,
            self.actual_seq_lengths_query,
            self.actual_seq_lengths_kv,
            self.block_table,
        )

    def keys(self, batches: Batches, sequence: int) -> tuple[Tensor, Tensor]:
        """Keys and values [S2, 1, D] of a sequence; keys with their rotated part."""
        key, value = batches.of_keys(self.key, sequence), batches.of_keys(self.value, sequence)
        if self.key_rope is not None:
            key = torch.cat((key, batches.of_keys(self.key_rope, sequence)), -1)
        return key, value

    def work(self, batches: Batches, sequence: int) -> tuple[Attention, Tensor]:
        """The computation for a sequence, on the keys that at least one of its queries sees, and which those are."""
        query = batches.of_queries(self.query, sequence)
        if self.query_rope is not None:
            query = torch.cat((query, batches.of_queries(self.query_rope, sequence)), -1)
        key, value = self.keys(batches, sequence)
        indices = batches.of_queries(self.sparse_indices, sequence)[:, 0]
        seen = chosen(indices, self.sparse_block_size, len(key), self.sparse_mode == 3)
        used = seen.any(0).nonzero()[:, 0]
        visible = Visible(hidden=~seen[None, None, :, used])
        operands = (heads_first(query), heads_first(key[used]), heads_first(value[used]))
        return Attention(*operands, self.scale, visible, sink=self.sinks), used


@dataclass(frozen=True, kw_only=True)
class SparseFlashAttention(Sparse):
    """Latent attention (head size 512 and 64 rotated) on chosen keys."""

    return_softmax_lse: bool
    sparse_flash_attention_output: Tensor
    softmax_max: Tensor | None
    softmax_sum: Tensor | None

    def run(self) -> None:
        """Compute and write all outputs."""
        self.check()
        rope_size = 0 if self.query_rope is None else self.query_rope.shape[-1]
        if (self.query.shape[-1], rope_size) != (LATENT, ROTATED) or self.key_rope is None:
            raise Illegal("query and query_rope", self.query, f"of head sizes 512 and 64 ({PAGE} page of op-plugin)")
        batches = self.batches()
        self.sparse_flash_attention_output.zero_()
        for b in range(len(batches)):
            if not batches.rows[b]:
                continue
            work, _ = self.work(batches, b)
            out = heads_first(batches.of_queries(self.sparse_flash_attention_output, b))
            stats = [torch.empty(*work.query.shape[:3], 1) for _ in range(2)]
            attend(work, out, *stats)
            if self.return_softmax_lse and self.softmax_max is not None and self.softmax_sum is not None:
                for target, values in zip((self.softmax_max, self.softmax_sum), stats, strict=True):
                    batches.stats(target, b).copy_(values[0, :, :, 0].t()[None])


for _name in ("SparseFlashAttention", "SparseFlashAttentionV2"):
    register_named(_name, SparseFlashAttention)


@op("SparseFlashAttentionGrad", cube=True, unused={"deterministic": "every emulated operator is deterministic"})
def sparse_flash_attention_grad(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sparse_indices: Tensor,
    d_out: Tensor,
    out: Tensor,
    softmax_max: Tensor,
    softmax_sum: Tensor,
    actual_seq_qlen: Tensor | None,
    actual_seq_kvlen: Tensor | None,
    query_rope: Tensor | None,
    key_rope: Tensor | None,
    scale: float,
    sparse_block_size: int,
    layout: str,
    sparse_mode: int,
    pre_tokens: int,
    next_tokens: int,
    deterministic: bool,
    d_query: Tensor,
    d_key: Tensor,
    d_value: Tensor,
    d_query_rope: Tensor | None,
    d_key_rope: Tensor | None,
) -> None:
    """Gradients from the statistics of the forward pass; those of keys and values are separate."""
    call = Sparse(
        query=query,
        key=key,
        value=value,
        sparse_indices=sparse_indices,
        actual_seq_lengths_query=actual_seq_qlen,
        actual_seq_lengths_kv=actual_seq_kvlen,
        query_rope=query_rope,
        key_rope=key_rope,
        scale=scale,
        sparse_block_size=sparse_block_size,
        layout_query=layout,
        layout_kv=layout,
        sparse_mode=sparse_mode,
        pre_tokens=pre_tokens,
        next_tokens=next_tokens,
    )
    call.check()
    targets = [t for t in (d_query, d_key, d_value, d_query_rope, d_key_rope) if t is not None]
    for target in targets:
        target.zero_()
    batches = call.batches()
    for b in range(len(batches)):
        if not batches.rows[b]:
            continue
        work, used = call.work(batches, b)
        saved = [batches.stats(s, b)[0].t()[None, :, :, None] for s in (softmax_max, softmax_sum)]
        forward = Forward(heads_first(batches.of_queries(out, b)), *saved)
        grads = Gradients(*(torch.zeros(x.shape) for x in (work.query, work.key, work.value)))
        attend_backward(work, forward, heads_first(batches.of_queries(d_out, b)), grads)
        _put(batches.of_queries, b, slice(None), grads.query, d_query, d_query_rope)
        _put(batches.of_keys, b, used, grads.key, d_key, d_key_rope)
        _put(batches.of_keys, b, used, grads.value, d_value, None)


def _put(
    part: Callable[[Tensor, int], Tensor],
    sequence: int,
    rows: Tensor | slice,
    grad: Tensor,
    out: Tensor,
    rope: Tensor | None,
) -> None:
    """Some rows of the gradient of one sequence, [1, N, S, D]; the rotated part of a head is its end."""
    found, size = grad[0].transpose(0, 1), out.shape[-1]
    part(out, sequence)[rows] = found[..., :size].to(out.dtype)
    if rope is not None:
        part(rope, sequence)[rows] = found[..., size:].to(rope.dtype)


@dataclass(frozen=True, kw_only=True)
class KvQuantSparseFlashAttention(Sparse):
    """Keys hold 512 int8 numbers, 64 rotated ones of the query's type, and a float32 scale per tile of 128: bytes."""

    key_dequant_scale: Tensor | None
    value_dequant_scale: Tensor | None
    key_quant_mode: int
    value_quant_mode: int
    quant_scale_repo_mode: int
    tile_size: int
    rope_head_dim: int
    output: Tensor

    def run(self) -> None:
        """Compute and write all outputs."""
        page = "npu_kv_quant_sparse_flash_attention page of op-plugin"
        self.check()
        refuse_given(key_dequant_scale=self.key_dequant_scale, value_dequant_scale=self.value_dequant_scale)
        only("key_quant_mode and value_quant_mode", (self.key_quant_mode, self.value_quant_mode), (2, 2))
        only("quant_scale_repo_mode", self.quant_scale_repo_mode, 1)
        only("tile_size and rope_head_dim", (self.tile_size, self.rope_head_dim), (128, 64))
        if self.key.dtype != torch.int8 or self.sparse_block_size > 16:
            raise Illegal("key", self.key, f"int8, with blocks of at most 16 tokens ({page})")
        if self.query.shape[-1] != LATENT + ROTATED or self.key.shape[-1] != 656:
            raise Illegal("query and key", self.query, f"of head sizes 576 and 656 bytes ({page})")
        batches = self.batches()
        self.output.zero_()
        for b in range(len(batches)):
            if batches.rows[b]:
                work, _ = self.work(batches, b)
                attend(work, heads_first(batches.of_queries(self.output, b)))

    def keys(self, batches: Batches, sequence: int) -> tuple[Tensor, Tensor]:
        """The numbers that the bytes stand for; values are the first 512 of the keys."""
        stored = batches.of_keys(self.key, sequence)
        rope = stored[..., LATENT : LATENT + 2 * ROTATED].contiguous().view(self.query.dtype)
        scales = stored[..., LATENT + 2 * ROTATED :].contiguous().view(torch.float32)
        latent = stored[..., :LATENT].to(torch.float32) * scales.repeat_interleave(self.tile_size, -1)
        latent = latent.to(self.query.dtype)
        return torch.cat((latent, rope), -1), latent


register_named("KvQuantSparseFlashAttention", KvQuantSparseFlashAttention)
