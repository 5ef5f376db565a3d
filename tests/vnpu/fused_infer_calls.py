"""Calls of the attention operators for inference, and their operands, for the tests of them."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import torch
import torch_npu
from tests.vnpu.support import called
from torch import Tensor

HALF = torch.float16
TO = {
    "BNSD": lambda x: x,
    "BSND": lambda x: x.transpose(1, 2).contiguous(),
    "BSH": lambda x: x.transpose(1, 2).flatten(2),
    "NBSD": lambda x: x.transpose(0, 1).contiguous(),
}


def operands(
    heads: int = 4, kv_heads: int = 2, queries: int = 6, keys: int = 10, size: int = 32, dtype: torch.dtype = HALF
) -> list[Tensor]:
    return [torch.randn(2, n, s, size).to(dtype) for n, s in ((heads, queries), (kv_heads, keys), (kv_heads, keys))]


def fused(x: list[Tensor], layout: str = "BNSD", expect: str = "V3", **options: Any) -> tuple[Tensor, Tensor]:
    """npu_fused_infer_attention_score on [B, N, S, D] operands; options on the CPU are brought to the device."""
    source = layout.split("_")[0]
    device = {k: v.npu() if isinstance(v, Tensor) else v for k, v in options.items()}
    device.setdefault("num_heads", x[0].shape[1])
    device.setdefault("num_key_value_heads", x[1].shape[1])
    device.setdefault("scale", 0.2)
    with called() as names:
        out, lse = torch_npu.npu_fused_infer_attention_score(
            *[TO[source](t).npu() for t in x], input_layout=layout, **device
        )
    assert f"FusedInferAttentionScore{expect}" in names
    return out.cpu(), lse.cpu()


def pages(x: Tensor, block: int, kind: str) -> tuple[Tensor, Tensor]:
    """A cache with the tokens of [B, Nkv, S, D] in shuffled blocks, and its block table."""
    batch, heads, keys, size = x.shape
    per = -(-keys // block)
    order = torch.randperm(batch * per + 1)
    padded = torch.nn.functional.pad(x, (0, 0, 0, per * block - keys)).view(batch, heads, per, block, size)
    cache = torch.full((batch * per + 1, heads, block, size), 9).to(x.dtype)
    table = order[: batch * per].view(batch, per).to(torch.int32)
    for b in range(batch):
        cache[table[b].long()] = padded[b].transpose(0, 1)
    c = 32 if x.dtype == torch.int8 else 16
    layouts = {
        "BnNBsD": lambda t: t,
        "BnBsH": lambda t: t.transpose(1, 2).flatten(2),
        "NZ": lambda t: t.unflatten(3, (-1, c)).permute(0, 1, 3, 2, 4),
    }
    return layouts[kind](cache).contiguous(), table


QUERIES, KEYS = [3, 1, 4], [5, 6, 4]
ENDS = {"actual_seq_lengths": list(accumulate(QUERIES)), "actual_seq_lengths_kv": list(accumulate(KEYS))}


def packed(
    size: int = 128, value_size: int = 128, dtype: torch.dtype = HALF, heads: tuple[int, int] = (4, 2)
) -> list[Tensor]:
    n, kv = heads
    shapes = ((sum(QUERIES), n, size), (sum(KEYS), kv, size), (sum(KEYS), kv, value_size))
    return [torch.randn(s).to(dtype) for s in shapes]


def each(x: list[Tensor]) -> list[list[Tensor]]:
    """The operands [1, N, S, D] of each packed sequence."""
    queries, keys = x[0].split(QUERIES), [t.split(KEYS) for t in x[1:]]
    return [[t.transpose(0, 1)[None] for t in (q, k, v)] for q, k, v in zip(queries, *keys, strict=True)]


def second(x: list[Tensor], layout: str = "BNSD", **options: Any) -> Tensor:
    """npu_fused_infer_attention_score_v2 on operands [B, N, S, D]."""
    device = {k: v.npu() if isinstance(v, Tensor) else v for k, v in options.items()}
    device.setdefault("num_query_heads", x[0].shape[1])
    device.setdefault("num_key_value_heads", x[1].shape[1])
    device.setdefault("softmax_scale", 0.2)
    with called() as names:
        out, _ = torch_npu.npu_fused_infer_attention_score_v2(*[t.npu() for t in x], input_layout=layout, **device)
    assert "FusedInferAttentionScoreV4" in names
    return out.cpu()
