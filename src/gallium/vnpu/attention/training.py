"""Attention for training, dense and packed: what all versions of FlashAttentionScore and its gradient share."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from gallium.vnpu.attention import layouts, sparse_modes
from gallium.vnpu.attention.core import Attention
from gallium.vnpu.attention.dropout import keep_bits, keep_random
from gallium.vnpu.attention.limits import TRAINING_CHIPS, need_chip, need_float, need_groups, need_range
from gallium.vnpu.attention.positions import ALIBI, Positions
from gallium.vnpu.attention.visibility import Visible
from gallium.vnpu.registry import Illegal, only, refuse_given

PAGE = "npu_fusion_attention"
Ints = tuple[int, ...] | None
DENSE = ("BSH", "SBH", "BSND", "BNSD")


class Part(NamedTuple):
    """A part of the batch that is computed at once: some sequences, or one of a packed batch."""

    batch: slice
    number: int
    queries: slice = slice(None)
    keys: slice = slice(None)
    packed: layouts.Packed | None = None

    def sequences(self, packed: bool) -> slice:
        """Which sequences of the batch these are; a packed batch is one in the layout's eyes."""
        return slice(self.number, self.number + 1) if packed else self.batch

    def of_queries(self, x: Tensor) -> Tensor:
        """From a view [B, N, Sq, ..]."""
        return x[self.batch, :, self.queries]

    def of_keys(self, x: Tensor) -> Tensor:
        """From a view [B, N, Skv, ..]."""
        return x[self.batch, :, self.keys]


@dataclass(frozen=True, kw_only=True)
class Training:
    """The arguments that all versions share, with the defaults of those that only some have.

    ac_seq_qlen and ac_seq_kvlen: cumulative lengths, for packed batches (TND) only.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    pse: Tensor | None
    drop_mask: Tensor | None
    padding_mask: Tensor | None
    atten_mask: Tensor | None
    prefix_n: Ints
    scale: float
    keep_prob: float
    pre_tokens: int
    next_tokens: int
    head_num: int
    input_layout: str
    inner_precise: int
    sparse_mode: int
    pse_type: int = 1
    q_start_idx: Ints = None
    kv_start_idx: Ints = None
    sink: Tensor | None = None
    query_rope: Tensor | None = None
    key_rope: Tensor | None = None
    ac_seq_qlen: Ints = None
    ac_seq_kvlen: Ints = None
    softmax_layout: str | None = None
    d_scale_q: Tensor | None = None
    d_scale_k: Tensor | None = None
    d_scale_v: Tensor | None = None
    out_dtype: int = 0
    seed: int = 0
    offset: int = 0

    draws_dropout: ClassVar[bool] = False  # whether the kernel draws the mask itself, from seed and offset

    @property
    def packed(self) -> bool:
        """Whether sequences lie one after the other, without a batch dimension."""
        return self.input_layout == "TND"

    def views(self) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value as [B, N, S, D], after all checks; rotated parts are joined to the heads."""
        self._check()
        size = self.query.shape[-1] // (self.head_num if self.input_layout in ("BSH", "SBH") else 1)
        kv_heads = layouts.kv_heads(self.key, self.input_layout, size)
        need_groups(PAGE, self.head_num, kv_heads)
        query = layouts.view("query", self.query, self.input_layout, self.head_num)
        key = layouts.view("key", self.key, self.input_layout, kv_heads)
        value = layouts.view("value", self.value, self.input_layout, kv_heads)
        if query.shape[3] != key.shape[3] or key.shape[3] < value.shape[3] or key.shape[:3] != value.shape[:3]:
            legal = f"like the key {list(key.shape)}, with head sizes query = key >= value ({PAGE} page of op-plugin)"
            raise Illegal("value", value, legal)
        if query.shape[0] != key.shape[0]:
            raise Illegal("key's batch", key.shape[0], f"that of the query, {query.shape[0]}")
        need_range(PAGE, "the head size", query.shape[3], 1, 768)
        if self.query_rope is not None and self.key_rope is not None:
            query_rope = layouts.view("query_rope", self.query_rope, self.input_layout, self.head_num)
            key_rope = layouts.view("key_rope", self.key_rope, self.input_layout, kv_heads)
            query, key = torch.cat((query, query_rope), -1), torch.cat((key, key_rope), -1)
        return query, key, value

    def _check(self) -> None:
        need_chip(PAGE, *TRAINING_CHIPS)
        need_float(PAGE, query=self.query, key=self.key, value=self.value)
        refuse_given(padding_mask=self.padding_mask)
        refuse_given(d_scale_q=self.d_scale_q, d_scale_k=self.d_scale_k, d_scale_v=self.d_scale_v)
        only("out_dtype", self.out_dtype, 0)
        only("softmax_layout", self.softmax_layout or "", "", "same_as_input")
        need_range(PAGE, "head_num", self.head_num, 1, 256)
        need_range(PAGE, "inner_precise", self.inner_precise, 0, 2)
        if not 0 < self.keep_prob <= 1:
            raise Illegal("keep_prob", self.keep_prob, f"above 0 and at most 1 ({PAGE} page of op-plugin)")
        if self.input_layout not in DENSE and self.input_layout != "TND":
            raise Illegal("input_layout", self.input_layout, "BSH, SBH, BSND, BNSD or TND")
        if self.packed and (not self.ac_seq_qlen or not self.ac_seq_kvlen):
            raise Illegal("actual_seq_qlen", self.ac_seq_qlen, "given for layout TND, like actual_seq_kvlen")
        if (self.query_rope is None) != (self.key_rope is None):
            raise Illegal("query_rope and key_rope", "one of them", "given together")
        if self.sink is not None and (self.sink.dtype != torch.float32 or self.sink.shape != (self.head_num,)):
            raise Illegal("sink", self.sink, f"float32 of shape [{self.head_num}] ({PAGE} page of op-plugin)")
        self._check_mode()

    def _check_mode(self) -> None:
        mode, legal = self.sparse_mode, (0, 1, 2, 3, 4, 6, 7, 8) if self.packed else (0, 1, 2, 3, 4, 5, 6)
        if mode not in legal:
            raise Illegal("sparse_mode", mode, f"in {legal} for layout {self.input_layout} ({PAGE} page of op-plugin)")
        if self.atten_mask is None:
            return
        if mode in sparse_modes.COMPRESSED or mode == sparse_modes.PREFIX_COMPRESSED:
            sparse_modes.check_triangle(self.atten_mask, mode, PAGE)
        if mode in (sparse_modes.RIGHT_DOWN_CUT, sparse_modes.LEFT_UP_CUT) and self.pse is not None:
            raise Illegal("pse", self.pse, f"left out in sparse_mode {mode} ({PAGE} page of op-plugin)")
        if mode in (sparse_modes.PREFIX, sparse_modes.PREFIX_COMPRESSED):
            count = len(self.ac_seq_qlen) if self.packed and self.ac_seq_qlen else self._batch
            if self.prefix_n is None or len(self.prefix_n) != count:
                raise Illegal("prefix", self.prefix_n, f"{count} numbers, one per sequence, in sparse_mode {mode}")
            need_range(PAGE, "the batch with prefix", count, 1, 32)

    @property
    def _batch(self) -> int:
        return self.query.shape[1 if self.input_layout == "SBH" else 0]

    def parts(self, query: Tensor, key: Tensor, value: Tensor) -> Iterator[tuple[Part, Attention]]:
        """The computations that make up the call."""
        keep, first = self._keep(query, key), 0
        for part in self._cuts(query, key):
            q, k, v = part.of_queries(query), part.of_keys(key), part.of_keys(value)
            work = Attention(q, k, v, self.scale, self._visible(part, q.shape[2], k.shape[2]), keep_prob=self.keep_prob)
            if self.pse is not None:
                positions = self.positions(self.pse)
                bias = positions.bias(part.sequences(self.packed), work.full_shape, self.packed)
                work = replace(work, bias=bias, bias_scale=positions.weight(self.scale))
            if self.sink is not None:
                work = replace(work, sink=self.sink)
            if keep is not None:
                count = math.prod(work.full_shape)
                work = replace(work, keep=keep[first : first + count].view(work.full_shape))
                first += count
            yield part, work

    def _cuts(self, query: Tensor, key: Tensor) -> Iterator[Part]:
        if self.packed:
            for cut in layouts.sequences(self.ac_seq_qlen or (), self.ac_seq_kvlen or (), query.shape[2], key.shape[2]):
                if len(cut.queries):
                    q, k = cut.queries, cut.keys
                    yield Part(slice(None), cut.index, slice(q.start, q.stop), slice(k.start, k.stop), cut)
        elif self.prefix_n and self.atten_mask is not None:
            for b in range(query.shape[0]):
                yield Part(slice(b, b + 1), b)
        else:
            yield Part(slice(None), 0)

    def _keep(self, query: Tensor, key: Tensor) -> Tensor | None:
        """All dropout bits in the order of the probabilities: [B, N, Sq, Skv], packed batches one after the other."""
        if self.keep_prob == 1:
            return None
        shapes = [(part.of_queries(query).shape[2], part.of_keys(key).shape[2]) for part in self._cuts(query, key)]
        each = self.head_num if self.packed or len(shapes) > 1 else self.head_num * query.shape[0]
        count = each * sum(q * k for q, k in shapes)
        if self.drop_mask is not None:
            return keep_bits(self.drop_mask, 0, (count,))
        if not self.draws_dropout:
            raise Illegal("drop_mask", None, "given when keep_prob is below 1")
        return keep_random(self.seed, self.offset, self.keep_prob, (count,))

    def positions(self, pse: Tensor) -> Positions:
        """The position encoding, checked."""
        starts = [0 if not start else start[0] for start in (self.q_start_idx, self.kv_start_idx)]
        if self.pse_type != ALIBI and any(starts):
            raise Illegal("q_start_idx and kv_start_idx", tuple(starts), "left out unless pse_type is 2 or 3")
        if self.pse_type != ALIBI and pse.dtype != self.query.dtype:
            raise Illegal("pse", pse, f"of the query's type ({PAGE} page of op-plugin)")
        return Positions(pse, self.pse_type, *starts)

    def _visible(self, part: Part, queries: int, keys: int) -> Visible:
        """Without a mask tensor everything is seen, whatever the mode (page of op-plugin)."""
        mode, pre, after = self.sparse_mode, self.pre_tokens, self.next_tokens
        if self.atten_mask is None:
            return Visible()
        if mode in (sparse_modes.RIGHT_DOWN_CUT, sparse_modes.LEFT_UP_CUT):
            from_right = mode == sparse_modes.RIGHT_DOWN_CUT
            cut_off = self._last if from_right else 0
            other = sparse_modes.RIGHT_DOWN if from_right else sparse_modes.LEFT_UP
            mode = sparse_modes.BAND if part.number == cut_off else other
        if mode in (sparse_modes.PREFIX, sparse_modes.PREFIX_COMPRESSED):
            prefix = (self.prefix_n or ())[part.number]
            need_range(PAGE, "prefix", prefix, max(0, keys - queries), keys)
            seen = Visible(high=keys - queries, prefix=prefix)
        else:
            seen = sparse_modes.limited(mode, queries, keys, pre, after)
        if mode in (sparse_modes.FULL, sparse_modes.ALL, sparse_modes.PREFIX):
            seen = replace(seen, hidden=self._mask(part, queries, keys))
        return seen

    @property
    def end(self) -> int:
        """How many rows of a packed batch belong to a sequence."""
        return (self.ac_seq_qlen or (0,))[self._last]

    @property
    def _last(self) -> int:
        """The last sequence that takes part."""
        ends = list(self.ac_seq_qlen or ())
        while len(ends) > 1 and ends[-1] == 0:
            ends.pop()
        return len(ends) - 1

    def _mask(self, part: Part, queries: int, keys: int) -> Tensor:
        """The given mask for these sequences: [Sq, Skv], or [B or 1, N or 1, Sq, Skv] if the batch is not packed."""
        assert self.atten_mask is not None
        mask = sparse_modes.as_bool(self.atten_mask)
        if self.packed:
            if mask.dim() != 2 or mask.shape[0] < queries or mask.shape[1] < keys:
                raise Illegal("atten_mask", mask, f"[max Sq, max Skv] for layout TND ({PAGE} page of op-plugin)")
            return mask[None, None, :queries, :keys]
        batch, heads = self._batch, self.head_num
        legal = [(batch, heads), (batch, 1), (1, 1)][: 2 if self.sparse_mode == sparse_modes.PREFIX else 3]
        full = mask[None, None] if mask.dim() == 2 and self.sparse_mode != sparse_modes.PREFIX else mask
        if full.dim() != 4 or tuple(full.shape[2:]) != (queries, keys) or tuple(full.shape[:2]) not in legal:
            shapes = "[B, N, Sq, Skv], [B, 1, Sq, Skv]" + ("" if len(legal) == 2 else ", [1, 1, Sq, Skv] or [Sq, Skv]")
            raise Illegal("atten_mask", mask, f"{shapes} with Sq, Skv = {queries}, {keys} ({PAGE} page of op-plugin)")
        return full if full.shape[0] == 1 else full[part.batch]

    def stats(self, stats: Tensor, part: Part) -> Tensor:
        """The statistics [b, N, Sq, 8] of a part."""
        if part.packed is None:
            return stats[part.batch]
        as_input = self.softmax_layout == "same_as_input"
        return layouts.per_sequence(stats, part.packed, self.head_num, as_input)[None]
