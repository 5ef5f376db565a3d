"""Attention for inference: what FusedInferAttentionScore, PromptFlashAttention and IncreFlashAttention share.

A call becomes spans: sequences whose queries and keys are computed at once. A span gathers its keys (dense, packed or
paged), makes them numbers, puts the shared prefix before and the rotated part beside them, and goes to the core.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from gallium.vnpu.attention import layouts, paged
from gallium.vnpu.attention.core import Attention, attend, log_sum_exp
from gallium.vnpu.attention.dequantise import PER_CHANNEL, KvScale, number, quantised, unpack_int32
from gallium.vnpu.attention.masks import full_mask, position_bias, tree_mask
from gallium.vnpu.attention.sparse_modes import ALL, COMPRESSED, FULL, TREE, limited
from gallium.vnpu.attention.visibility import UNLIMITED, Visible
from gallium.vnpu.registry import Illegal, Unsupported
from gallium.vnpu.tensors import dense

Ints = tuple[int, ...] | None
LAYOUTS = {
    name: (name.split("_")[0], name.split("_")[-1])
    for name in (
        *("BSH", "BSND", "BNSD", "TND", "NTD", "NSD", "BNSD_BSND", "BSH_BNSD", "BSND_BNSD"),
        *("NTD_TND", "BSH_NBSD", "BSND_NBSD", "BNSD_NBSD", "TND_NTD"),
    )
}
PACKED = ("TND", "NTD")


class Span(NamedTuple):
    """Sequences that are computed at once: their place in the batch, their queries and their keys."""

    batch: slice
    rows: range
    keys: range

    @property
    def number(self) -> int:
        """The first of the sequences."""
        return int(self.batch.start)


@dataclass(frozen=True, kw_only=True)
class Inference:
    """The arguments of the newest version, with the defaults of those that older ones lack."""

    query: Tensor
    key_tensors: tuple[Tensor, ...] | Tensor
    value_tensors: tuple[Tensor, ...] | Tensor
    pse_shift: Tensor | None
    atten_mask: Tensor | None
    actual_seq_lengths: Ints = None
    actual_seq_lengths_kv: Ints = None
    dequant_scale1: Tensor | None
    quant_scale1: Tensor | None
    dequant_scale2: Tensor | None
    quant_scale2: Tensor | None
    quant_offset2: Tensor | None
    antiquant_scale: Tensor | None = None
    antiquant_offset: Tensor | None = None
    block_table: Tensor | None = None
    query_padding_size: Tensor | None = None
    kv_padding_size: Tensor | None = None
    key_antiquant_scale: Tensor | None = None
    key_antiquant_offset: Tensor | None = None
    value_antiquant_scale: Tensor | None = None
    value_antiquant_offset: Tensor | None = None
    key_shared_prefix: Tensor | None = None
    value_shared_prefix: Tensor | None = None
    actual_shared_prefix_len: Ints = None
    query_rope: Tensor | None = None
    key_rope: Tensor | None = None
    key_rope_antiquant_scale: Tensor | None = None
    dequant_scale_query: Tensor | None = None
    learnable_sink: Tensor | None = None
    q_start_idx: Ints = None
    kv_start_idx: Ints = None
    num_heads: int
    scale: float
    pre_tokens: int = UNLIMITED
    next_tokens: int = UNLIMITED
    input_layout: str
    num_key_value_heads: int
    sparse_mode: int = FULL
    inner_precise: int
    block_size: int = 0
    antiquant_mode: int = 0
    softmax_lse_flag: bool = False
    key_antiquant_mode: int = 0
    value_antiquant_mode: int = 0
    query_quant_mode: int = 0
    pse_type: int = 0
    output: Tensor
    softmax_lse: Tensor | None = None

    def compute(self) -> None:
        """Write the outputs; the caller has checked the documented limits. Rows of no sequence become zeros."""
        out = layouts.view("the output", self.output, self.layouts[1], self.num_heads)
        lse = self._lse_view()
        spans = list(self._spans())
        batch, _, rows, _ = self.query_view.shape
        if sum((s.batch.stop - s.batch.start) * len(s.rows) for s in spans) < (1 if self.packed else batch) * rows:
            out.zero_()
            if lse is not None:
                lse.fill_(-torch.inf)
        for span in spans:
            self._run(span, out, lse)

    @cached_property
    def layouts(self) -> tuple[str, str]:
        """Of the inputs and of the output."""
        if self.input_layout not in LAYOUTS:
            raise Illegal("input_layout", self.input_layout, ", ".join(LAYOUTS))
        return LAYOUTS[self.input_layout]

    @property
    def packed(self) -> bool:
        """Whether sequences lie one after the other, without a batch dimension."""
        return self.layouts[0] in PACKED

    @property
    def kv_heads(self) -> int:
        """Heads of the key."""
        return self.num_key_value_heads or self.num_heads

    @cached_property
    def key(self) -> Tensor:
        """The key as it is stored; lists of tensors do not come through torch_npu."""
        return _only(self.key_tensors, "key")

    @cached_property
    def value(self) -> Tensor:
        """The value as it is stored."""
        return _only(self.value_tensors, "value")

    @cached_property
    def query_view(self) -> Tensor:
        """[B, N, S, D], or [1, N, T, D] of a packed batch; the rotated part is joined.

        Scales of int8 queries and keys hold for their rotated parts too: MlaProlog writes query_rope divided by them.
        """
        query = layouts.view("query", self.query, self.layouts[0], self.num_heads)
        if self.query_rope is not None:
            rope = layouts.view("query_rope", self.query_rope, self.layouts[0], self.num_heads)
            query = _joined(query, rope)
        return query if self.dequant_scale_query is None else query * self._query_scale(query)

    @property
    def single(self) -> bool:
        """One query per sequence and no rotated part: then sparse modes and token limits mean nothing (page)."""
        return not self.packed and self.query_view.shape[2] == 1 and self.query_rope is None

    @cached_property
    def batch(self) -> int:
        """The number of sequences."""
        return len(self.actual_seq_lengths or ()) if self.packed else self.query_view.shape[0]

    @cached_property
    def _key_view(self) -> Tensor:
        return layouts.view("key", self.key, self.layouts[0], self.kv_heads)

    def _query_scale(self, query: Tensor) -> Tensor:
        """Scales of int8 queries, one per token and head, in the layout of the query without its last dimension."""
        scale = self.dequant_scale_query
        assert scale is not None
        if scale.numel() != query.shape[0] * query.shape[1] * query.shape[2]:
            raise Illegal("dequant_scale_query", scale, "one number per token and head")
        layout = {"BSH": "BSND"}.get(self.layouts[0], self.layouts[0])
        shape = (query.shape[0], query.shape[2], query.shape[1], 1) if layout == "BSND" else (*self.query.shape[:-1], 1)
        return layouts.view("dequant_scale_query", scale.reshape(shape), layout, self.num_heads).to(torch.float32)

    def _lse_view(self) -> Tensor | None:
        lse = self.softmax_lse
        if not self.softmax_lse_flag or lse is None:
            if lse is not None:
                lse.zero_()
            return None
        return lse.transpose(0, 1)[None] if self.packed else lse

    def _spans(self) -> Iterator[Span]:
        """One span for all sequences if they are alike, else one for each."""
        if self.packed:
            rows = layouts.ranges("actual_seq_lengths", self.actual_seq_lengths or (), self.query_view.shape[2])
            lengths = self.actual_seq_lengths_kv or ()
            if self.block_table is None:
                keys = layouts.ranges("actual_seq_lengths_kv", lengths, self._key_view.shape[2])
            else:
                keys = [range(0, n) for n in self._lengths("actual_seq_lengths_kv", lengths, None)]
            if len(keys) != len(rows):
                raise Illegal("actual_seq_lengths_kv", lengths, f"as long as actual_seq_lengths, {len(rows)}")
        else:
            rows, keys = self._query_ranges(), self._key_ranges()
            if self.block_table is None and len(set(rows)) == 1 and len(set(keys)) == 1:
                if rows[0]:
                    yield Span(slice(0, self.batch), rows[0], keys[0])
                return
        for b, (r, k) in enumerate(zip(rows, keys, strict=True)):
            if r:
                yield Span(slice(b, b + 1), r, k)

    def sizes(self) -> list[tuple[int, int]]:
        """How many queries and keys each span has."""
        return [(len(span.rows), len(span.keys)) for span in self._spans()]

    def _lengths(self, name: str, lengths: Ints, most: int | None) -> list[int]:
        """One length per sequence; a single one is for all."""
        if not lengths:
            if most is None:
                raise Illegal(name, lengths, "given with a block table")
            return [most] * self.batch
        if len(lengths) != 1 and len(lengths) < self.batch:
            raise Illegal(name, lengths, f"of length 1 or at least {self.batch}")
        each = list(lengths[: self.batch]) if len(lengths) > 1 else [lengths[0]] * self.batch
        if min(each) < 0 or (most is not None and max(each) > most):
            raise Illegal(name, lengths, f"from 0 to {most}")
        return each

    def _query_ranges(self) -> list[range]:
        size = self.query_view.shape[2]
        if size == 1:
            return [range(0, 1)] * self.batch
        lengths = self._lengths("actual_seq_lengths", self.actual_seq_lengths, size)
        if self.query_padding_size is None or not self.actual_seq_lengths:
            return [range(0, n) for n in lengths]
        stop = size - max(0, int(self.query_padding_size))
        if stop < max(lengths):
            raise Illegal("query_padding_size", size - stop, f"at most {size - max(lengths)}")
        return [range(stop - n, stop) for n in lengths]

    def _key_ranges(self) -> list[range]:
        if self.block_table is not None:
            return [range(0, n) for n in self._lengths("actual_seq_lengths_kv", self.actual_seq_lengths_kv, None)]
        size = self._key_view.shape[2]
        lengths = self._lengths("actual_seq_lengths_kv", self.actual_seq_lengths_kv, size)
        if self.kv_padding_size is None or not self.actual_seq_lengths_kv:
            return [range(0, n) for n in lengths]
        stop = size - max(0, int(self.kv_padding_size))
        if stop < max(lengths) and self.query_view.shape[2] > 1:
            raise Illegal("kv_padding_size", size - stop, f"at most {size - max(lengths)}")
        return [range(stop - n, stop) if n <= stop else range(0, 0) for n in lengths]

    def _run(self, span: Span, out: Tensor, lse: Tensor | None) -> None:
        rows = slice(span.rows.start, span.rows.stop)
        place = (slice(None) if self.packed else span.batch, slice(None), rows)
        query = self.query_view[place]
        key, value = self._keys(span)
        work = Attention(query, key, value, self.scale, self._visible(span, query.shape[2], key.shape[2]))
        if self.pse_shift is not None:
            work = replace(work, bias=position_bias(self.pse_shift, self.batch, span.batch, work.full_shape))
        if self.learnable_sink is not None:
            work = replace(work, sink=self.learnable_sink)
        full = self._full_quantisation()
        if full is not None:
            work = replace(work, scale=self.scale * full[0], weight_scale=full[1])
        target = out[place]
        rounded = self.quant_scale2 is not None or full is not None
        result = torch.empty(target.shape) if rounded else target
        stats = [torch.empty(*query.shape[:3], 1) for _ in range(2)] if lse is not None else [None, None]
        attend(work, result, *stats)
        if full is not None:
            result.mul_(full[2])
        if self.quant_scale2 is not None:
            result = quantised(result, self.quant_scale2, self.quant_offset2, "quant_scale2")
        if rounded:
            target.copy_(result)
        if lse is not None and stats[0] is not None and stats[1] is not None:
            lse[place] = log_sum_exp(stats[0], stats[1])

    def _full_quantisation(self) -> tuple[float, float, float] | None:
        """Of int8 operands: what the scores, the exponentials (before rounding) and the output are multiplied with.

        The page says only "before the second product" of quant_scale1. Here it meets exp(score - maximum).
        """
        scales = (self.dequant_scale1, self.quant_scale1, self.dequant_scale2)
        if any(s is None for s in scales):
            return None
        names = ("dequant_scale1", "quant_scale1", "dequant_scale2")
        first, weight, second = (number(n, s) for n, s in zip(names, scales, strict=True) if s is not None)
        return first, weight, second

    def _keys(self, span: Span) -> tuple[Tensor, Tensor]:
        """Keys [b, Nkv, S, D] and values of a span."""
        blocks = None
        if self.block_table is not None:
            size = paged.block_size(self.key)
            blocks = paged.blocks_of(self.block_table, span.number, len(span.keys), size, self.key.shape[0])
        key, value = self._stored(self.key, span, blocks), self._stored(self.value, span, blocks)
        if self.key_rope is not None:
            key = _joined(key, self._stored(self.key_rope, span, blocks))
        scales = self._scales()
        prefix = self._prefix()
        if scales is not None:
            tokens = slice(span.keys.start, span.keys.stop)
            batch = span.batch
            key, value = (s.apply(x, batch, tokens, blocks) for s, x in zip(scales, (key, value), strict=True))
            if prefix is not None:
                if any(s.mode != PER_CHANNEL for s in scales):
                    raise Unsupported("key_shared_prefix", "given", "scales per channel or tensor, or no scales")
                every = slice(0, 1)
                prefix = tuple(s.apply(x, every, tokens, None) for s, x in zip(scales, prefix, strict=True))
        if prefix is not None:
            key, value = (
                torch.cat((p.expand(x.shape[0], -1, -1, -1), x), 2) for p, x in zip(prefix, (key, value), strict=True)
            )
        return key, value

    def _stored(self, x: Tensor, span: Span, blocks: Tensor | None) -> Tensor:
        x = dense(x)
        if blocks is not None:
            return paged.gather(x, blocks, self.kv_heads, len(span.keys))
        if x.dtype == torch.int32:
            x = unpack_int32(x)
        view = layouts.view("key or value", x, self.layouts[0], self.kv_heads)
        return view[slice(None) if self.packed else span.batch, :, span.keys.start : span.keys.stop]

    def _scales(self) -> tuple[KvScale, KvScale] | None:
        """Of key and value. Separate ones win over the common ones (page)."""
        if self.key_antiquant_scale is not None and self.value_antiquant_scale is not None:
            return (
                KvScale(
                    "key_antiquant_scale", self.key_antiquant_scale, self.key_antiquant_offset, self.key_antiquant_mode
                ),
                KvScale(
                    "value_antiquant_scale",
                    self.value_antiquant_scale,
                    self.value_antiquant_offset,
                    self.value_antiquant_mode,
                ),
            )
        if self.antiquant_scale is None:
            return None
        if self.antiquant_scale.shape[0] != 2:
            raise Illegal("antiquant_scale", self.antiquant_scale, "[2, ..]: of the key and of the value")
        offsets = self.antiquant_offset if self.antiquant_offset is not None else (None, None)
        mode = self.antiquant_mode
        return tuple(  # type: ignore[return-value]
            KvScale("antiquant_scale", s, o, mode) for s, o in zip(self.antiquant_scale, offsets, strict=True)
        )

    def _prefix(self) -> tuple[Tensor, ...] | None:
        if self.key_shared_prefix is None or self.value_shared_prefix is None:
            return None
        views = []
        for name, x in (("key", self.key_shared_prefix), ("value", self.value_shared_prefix)):
            seen = layouts.view(f"{name}_shared_prefix", x, self.layouts[0], self.kv_heads)
            length = (self.actual_shared_prefix_len or (seen.shape[2],))[0]
            if seen.shape[0] != 1 or not 0 <= length <= seen.shape[2]:
                raise Illegal(f"{name}_shared_prefix", x, f"of batch 1 and at least {length} tokens")
            views.append(seen[:, :, :length])
        return tuple(views)

    def _visible(self, span: Span, queries: int, keys: int) -> Visible:
        mask, count = self.atten_mask, self.batch
        if mask is None or (self.single and self.sparse_mode in COMPRESSED):
            return Visible()
        if self.sparse_mode == TREE:
            ends = self.actual_seq_lengths if self.packed else None
            return Visible(hidden=tree_mask(mask, ends, count, span.batch, queries, keys))
        if self.single:
            return Visible(hidden=full_mask(mask, count, span.batch, queries, keys, one_query=True))
        seen = limited(self.sparse_mode, queries, keys, self.pre_tokens, self.next_tokens)
        if self.sparse_mode in (FULL, ALL):
            one = self.query_view.shape[2] == 1
            seen = replace(seen, hidden=full_mask(mask, count, span.batch, queries, keys, one))
        return seen


def _joined(part: Tensor, rope: Tensor) -> Tensor:
    """Heads and their rotated part; in float32 if the heads are int8."""
    if part.dtype != rope.dtype:
        part, rope = part.to(torch.float32), rope.to(torch.float32)
    return torch.cat((part, rope), -1)


def _only(tensors: tuple[Tensor, ...] | Tensor, name: str) -> Tensor:
    if not isinstance(tensors, tuple):
        return dense(tensors)
    if len(tensors) != 1:
        raise Unsupported(f"the number of {name} tensors", len(tensors), "1")
    return dense(tensors[0])
