"""Attention on chosen blocks of keys per block of queries and head: BlockSparseAttention and its gradient."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from gallium.vnpu.attention import layouts
from gallium.vnpu.attention.core import LOWEST, Attention, attend, log_sum_exp
from gallium.vnpu.attention.gradient import Forward, Gradients, attend_backward
from gallium.vnpu.attention.limits import need_chip, need_groups
from gallium.vnpu.attention.visibility import UNLIMITED, Visible
from gallium.vnpu.named import register_named
from gallium.vnpu.registry import Illegal, only, refuse_given

PAGE = "npu_block_sparse_attention"
Ints = tuple[int, ...] | None


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """block_sparse_mask [B, N, query blocks, key blocks]: 1 where a block takes part. Lengths are never cumulative."""

    query: Tensor
    key: Tensor
    value: Tensor
    block_sparse_mask: Tensor
    atten_mask: Tensor | None
    block_shape: tuple[int, ...]
    actual_seq_lengths: Ints
    actual_seq_lengths_kv: Ints
    q_input_layout: str
    kv_input_layout: str
    num_key_value_heads: int
    mask_type: int
    scale: float
    pre_tokens: int
    next_tokens: int

    def works(self) -> Iterator[tuple[Attention, slice, slice, slice]]:
        """The computation of each sequence, and its place: batch, queries, keys."""
        self._check()
        query, key, value = (self.view(x) for x in (self.query, self.key, self.value))
        for b, (rows, keys) in enumerate(zip(*self._ranges(query, key), strict=True)):
            batch = slice(None) if self.packed else slice(b, b + 1)
            q, k = slice(rows.start, rows.stop), slice(keys.start, keys.stop)
            seen = self.block_sparse_mask[b : b + 1].repeat_interleave(self.block_shape[0], 2)[:, :, : len(rows)]
            seen = seen.repeat_interleave(self.block_shape[1], 3)[..., : len(keys)]
            visible = Visible(hidden=seen == 0)
            yield Attention(query[batch, :, q], key[batch, :, k], value[batch, :, k], self.scale, visible), batch, q, k

    @property
    def packed(self) -> bool:
        """Whether the layout is TND."""
        return self.q_input_layout == "TND"

    def view(self, x: Tensor) -> Tensor:
        """[B, N, S, D], or [1, N, T, D]."""
        return layouts.view("an operand", x, self.q_input_layout, x.shape[1])

    def _ranges(self, query: Tensor, key: Tensor) -> list[list[range]]:
        """Of queries and keys, per sequence."""
        ranges = []
        for lengths, x in ((self.actual_seq_lengths, query), (self.actual_seq_lengths_kv, key)):
            if not self.packed:
                ranges.append([range(0, n) for n in (lengths or [x.shape[2]] * x.shape[0])])
                continue
            ends = [sum((lengths or ())[: i + 1]) for i in range(len(lengths or ()))]
            ranges.append([range(end - n, end) for n, end in zip(lengths or (), ends, strict=True)])
            if not ends or ends[-1] > x.shape[2]:
                raise Illegal("actual_seq_lengths", lengths, f"given for layout TND, {x.shape[2]} tokens in all")
        return ranges

    def _check(self) -> None:
        end = f"({PAGE} page of op-plugin)"
        need_chip(PAGE, "910B", "910_93", "950")
        refuse_given(atten_mask=self.atten_mask)
        only("mask_type", self.mask_type, 0)
        only("pre_tokens and next_tokens", (self.pre_tokens, self.next_tokens), (UNLIMITED, UNLIMITED))
        if self.q_input_layout not in ("TND", "BNSD") or self.kv_input_layout != self.q_input_layout:
            raise Illegal("q_input_layout", self.q_input_layout, f"TND or BNSD, like that of the keys {end}")
        need_groups(PAGE, self.query.shape[1], self.num_key_value_heads)
        if self.key.shape[1] != self.num_key_value_heads or self.key.shape[-1] not in (64, 128):
            raise Illegal("key", self.key, f"of {self.num_key_value_heads} heads of size 64 or 128 {end}")
        if self.query.dtype not in (torch.float16, torch.bfloat16) or self.key.dtype != self.query.dtype:
            raise Illegal("query", self.query, f"float16 or bfloat16, like key and value {end}")
        if len(self.block_shape) < 2 or min(self.block_shape[:2]) <= 0 or self.block_shape[1] % 128:
            raise Illegal("block_shape", self.block_shape, f"two numbers above 0, the second a multiple of 128 {end}")
        if (self.actual_seq_lengths is None) != (self.actual_seq_lengths_kv is None):
            raise Illegal("actual_seq_lengths_kv", self.actual_seq_lengths_kv, f"given with actual_seq_lengths {end}")
        if self.block_sparse_mask.dtype != torch.int8 or self.block_sparse_mask.dim() != 4:
            raise Illegal("block_sparse_mask", self.block_sparse_mask, f"int8 of four dimensions {end}")


@dataclass(frozen=True, kw_only=True)
class BlockSparseAttention(Blocks):
    """The output, and the log-sum-exp of each query if asked for."""

    block_table: Tensor | None
    inner_precise: int
    block_size: int
    softmax_lse_flag: int
    attention_out: Tensor
    softmax_lse_out: Tensor

    def run(self) -> None:
        """Compute and write all outputs."""
        refuse_given(block_table=self.block_table)
        only("block_size", self.block_size, 0)
        if self.inner_precise not in (0, 1) or (self.query.dtype == torch.bfloat16 and self.inner_precise):
            raise Illegal("inner_precise", self.inner_precise, f"0 or 1, for bfloat16 0 ({PAGE} page of op-plugin)")
        self.attention_out.zero_()
        self.softmax_lse_out.zero_()
        out, lse = self.view(self.attention_out), self.view(self.softmax_lse_out)
        for work, batch, rows, _ in self.works():
            stats = [torch.empty(*work.query.shape[:3], 1) for _ in range(2)]
            attend(work, out[batch, :, rows], *stats)
            if self.softmax_lse_flag:
                lse[batch, :, rows] = log_sum_exp(*stats)


@dataclass(frozen=True, kw_only=True)
class BlockSparseAttentionGrad(Blocks):
    """Gradients from the output and its log-sum-exp."""

    d_out: Tensor
    attention_out: Tensor
    softmax_lse: Tensor
    d_query: Tensor
    d_key: Tensor
    d_value: Tensor

    def run(self) -> None:
        """Compute and write all outputs."""
        grads = (self.d_query, self.d_key, self.d_value)
        for grad in grads:
            grad.zero_()
        d_query, d_key, d_value = (self.view(x) for x in grads)
        d_out, out, lse = (self.view(x) for x in (self.d_out, self.attention_out, self.softmax_lse))
        for work, batch, rows, keys in self.works():
            place = (batch, slice(None), rows)
            columns = (batch, slice(None), keys)
            forward = Forward(out[place], lse[place].clamp(min=LOWEST), torch.ones(lse[place].shape))
            attend_backward(work, forward, d_out[place], Gradients(d_query[place], d_key[columns], d_value[columns]))


register_named("BlockSparseAttention", BlockSparseAttention)
register_named("BlockSparseAttentionGrad", BlockSparseAttentionGrad)
