"""What ATB's attention operators share: softmax attention of one sequence, the pages of a cache, lengths and masks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from gallium.vnpu import soc
from gallium.vnpu.checks import HALVES
from gallium.vnpu.registry import Illegal, Unsupported

ND, NZ = 2, 29  # formats
A2_AND_A3 = ("910B", "910_93")  # the families that op-plugin's documentation names for what is not on all
NO_TYPE = -1  # dtype code "undefined": the output has the type of the query

Lengths = Sequence[int] | Tensor  # on the host, or a tensor on the device


def on_310p() -> bool:
    """Whether the chip is of the family 310P, where caches and masks are in NZ format and rows are padded to 16."""
    return soc.current().family == "310P"


def lengths(name: str, given: Lengths | None) -> list[int]:
    """The lengths as numbers. Raises Illegal for missing or negative ones."""
    if given is None:
        raise Illegal(name, None, "given")
    values = [int(n) for n in (given.flatten().tolist() if isinstance(given, Tensor) else given)]
    if any(n < 0 for n in values):
        raise Illegal(name, values, "at least 0 everywhere")
    return values


def check_floats(**tensors: Tensor | None) -> None:
    """Raise Illegal unless all are float16, or all bfloat16 (op-plugin's documentation of ATB)."""
    first: torch.dtype | None = None
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        first = first or tensor.dtype
        if tensor.dtype not in HALVES or tensor.dtype != first:
            raise Illegal(name, tensor, "float16 or bfloat16, and of the type of the other tensors")


def check_heads(head_num: int, kv_head_num: int) -> None:
    """Raise Illegal unless each head of keys serves the same number of heads of queries."""
    if kv_head_num <= 0:
        raise Illegal("num_kv_heads", kv_head_num, "above 0")
    if head_num <= 0 or head_num % kv_head_num:
        raise Illegal("num_heads", head_num, f"a multiple of num_kv_heads = {kv_head_num}, and above 0")


def split_heads(name: str, x: Tensor, heads: int) -> Tensor:
    """`[tokens, heads, size]` of that, or of `[tokens, heads * size]`."""
    if heads > 0 and x.dim() == 2 and x.shape[1] % heads == 0:
        return x.view(x.shape[0], heads, x.shape[1] // heads)
    if x.dim() == 3 and x.shape[1] == heads:
        return x
    raise Illegal(name, x, f"[tokens, {heads}, size] or [tokens, {heads} * size]")


def unblock(x: Tensor) -> Tensor:
    """A view `[n, rows, columns / 16, 16]` of a tensor that ATB has in NZ format, `[n, columns / 16, rows, 16]`."""
    if x.dim() != 4:
        raise Illegal("a tensor in NZ format", x, "[n, columns / 16, rows, 16]")
    return x.transpose(1, 2)


def pages(name: str, cache: Tensor, form: int, heads: int) -> Tensor:
    """The cache as `[blocks, block_size, heads, size]`: a view of it in ND format, a copy in NZ format."""
    if heads <= 0:
        raise Illegal("num_kv_heads", heads, "above 0")
    if form == NZ or (on_310p() and cache.dim() == 4 and cache.shape[-1] == 16):
        cache = unblock(cache).flatten(2)
    if cache.dim() == 3 and cache.shape[2] % heads == 0:
        cache = cache.view(*cache.shape[:2], heads, cache.shape[2] // heads)
    if cache.dim() != 4 or cache.shape[2] != heads:
        raise Illegal(name, cache, f"[blocks, block_size, {heads}, size]")
    return cache


def gather(cache: Tensor, table: Tensor, length: int) -> Tensor:
    """The first `length` tokens of the sequence whose blocks `table` lists: `[length, heads, size]`."""
    block_size = cache.shape[1]
    used = table[: -(-length // block_size)].long()
    if used.numel() * block_size < length:
        raise Illegal("block_table", table, f"of {-(-length // block_size)} blocks for {length} tokens")
    if used.numel() and not 0 <= int(used.min()) <= int(used.max()) < cache.shape[0]:
        raise Illegal("block_table", used.tolist(), f"of blocks 0 to {cache.shape[0] - 1}")
    return cache[used].flatten(0, 1)[:length]


def scores_of(query: Tensor, key: Tensor) -> Tensor:
    """`query` `[q, heads, size]` times `key` `[kv, kv_heads, size]`, in float32: `[heads, q, kv]`."""
    q_len, heads, size = query.shape
    kv_heads = key.shape[1]
    share = heads // kv_heads
    grouped = (
        query.float().reshape(q_len, kv_heads, share, size).permute(1, 2, 0, 3).reshape(kv_heads, share * q_len, size)
    )
    return torch.matmul(grouped, key.float().permute(1, 2, 0)).view(heads, q_len, key.shape[0])


def weighted(weights: Tensor, value: Tensor) -> Tensor:
    """`weights` `[heads, q, kv]` times `value` `[kv, kv_heads, size]`: `[q, heads, size]` in float32."""
    heads, q_len, kv_len = weights.shape
    kv_heads, size = value.shape[1:]
    out = torch.matmul(weights.view(kv_heads, heads // kv_heads * q_len, kv_len), value.float().transpose(0, 1))
    return out.view(heads, q_len, size).transpose(0, 1)


def attend(
    query: Tensor, key: Tensor, value: Tensor, scale: float, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Softmax attention of one sequence, in float32: the output `[q, heads, size]` and log-sum-exp `[heads, q]`.

    `bias`, broadcast to `[heads, q, kv]`, is added to the scaled scores. With no key at all the output is 0 and the
    log-sum-exp is -inf; what the chip leaves there is not documented, and callers do not read it.
    """
    scores = scores_of(query, key).mul_(scale)
    if bias is not None:
        scores += bias
    return weighted(scores.softmax(-1), value), scores.logsumexp(-1)


def causal(q_len: int, kv_len: int) -> Tensor | None:
    """The bias of the last `q_len` of `kv_len` tokens, none of which sees a later one; None where nothing is hidden."""
    if q_len == 1:
        return None
    hidden = torch.ones(q_len, kv_len, dtype=torch.bool, device="cpu").triu_(kv_len - q_len + 1)
    return torch.zeros(q_len, kv_len, device="cpu").masked_fill_(hidden, float("-inf"))


def ranges(counts: Sequence[int]) -> Iterator[slice]:
    """The rows of each sequence, where the sequences lie one after another."""
    start = 0
    for count in counts:
        yield slice(start, start + count)
        start += count


def dense_mask(mask: Tensor, form: int) -> Tensor:
    """A mask in the shape that the documentation gives for ND format."""
    if form == NZ or (on_310p() and mask.dim() == 4 and mask.shape[-1] == 16):
        mask = unblock(mask).flatten(2)
        return mask[0] if mask.shape[0] == 1 else mask
    return mask


def mask_bias(mask: Tensor) -> Tensor:
    """What a triangular mask adds to the scores, in float32.

    The mask's type says what it means: a float16 mask is added as it is, a bfloat16 one is 1 where a key is hidden and
    the operator multiplies it by -3e38 (op-plugin test/test_custom_ops/test_atb_ring_mla.py and
    test_atb_flash_attention_qlens.py; vllm-ascend makes its masks so, in attention/attention_mask.py).
    """
    if mask.dtype == torch.float16:
        return mask.float()
    if not bool(((mask == 0) | (mask == 1)).all()):
        raise Illegal("mask", mask, "0 where a key is seen and 1 where it is hidden, if it is bfloat16")
    return mask.float() * -3e38


def check_triangle(mask: Tensor, sizes: Sequence[int]) -> None:
    """Raise unless a compressed mask is what the operator takes it for: it hides what is above the diagonal."""
    if mask.dim() not in (2, 3) or mask.shape[-1] != mask.shape[-2] or mask.shape[-1] not in sizes:
        raise Illegal("mask", mask, f"[n, n] with n one of {', '.join(map(str, sizes))}")
    bias = mask_bias(mask)
    above = torch.ones(mask.shape[-2:], dtype=torch.bool, device="cpu").triu_(1)
    if bool((bias[..., above] > -1000).any()) or bool((bias[..., ~above] != 0).any()):
        raise Unsupported("mask", mask, "a triangle that hides all above the diagonal and nothing else")
