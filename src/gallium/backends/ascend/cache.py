"""Which fused operators can read and write a paged cache: decided from its shape and the chip when it is made."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch

from gallium.backends.ascend.soc import Soc
from gallium.backends.torch.cache import Grid, Pages
from gallium.ops.handles import AttentionSpec

HALF = (torch.float16, torch.bfloat16)
PACKED_WIDTHS = ((64, 64), (128, 128), (192, 128), (192, 192))  # of key and value, in layout TND
LATENT, ROTATED, INDEX = 512, 64, 128  # the only widths of latent attention and of its indexer
POWERS = (1, 2, 4, 8, 16, 32, 64, 128)
ATTENTION = "npu_fused_infer_attention_score"
SPARSE = "npu_sparse_flash_attention"
INDEXER = "npu_lightning_indexer"
SCATTER = "npu_scatter_pa_kv_cache"
MOST_OFFSET = 128  # of codes: differences of two such numbers are exact in bfloat16


@dataclass(frozen=True, slots=True)
class Fused:
    """Why each fused operator cannot take a cache; an empty reason means that it is used.

    The limits are those of op-plugin's pages of the operators (npu_fused_infer_attention_score: "PageAttention",
    "TND" and "MLA"; npu_sparse_flash_attention; npu_lightning_indexer; npu_scatter_pa_kv_cache).
    """

    decode: str  # attention with one query per sequence
    packed: str  # attention with any number of queries
    latent: str  # over everything
    chosen: str  # over selected positions
    indexer: str
    write: str


class Antiquant(NamedTuple):
    """A grid in the type of the queries, as attention reads int8 pages: `number = (code + offset) * scale`.

    Each `[1, kv_heads, width]`; offsets, the negative ones of `KvGrid`, only where some is not zero.
    """

    k_scale: torch.Tensor
    k_offset: torch.Tensor | None
    v_scale: torch.Tensor
    v_offset: torch.Tensor | None

    @property
    def arguments(self) -> dict[str, torch.Tensor | None]:
        """Of npu_fused_infer_attention_score, whose default modes are those of a scale per channel."""
        return {
            "key_antiquant_scale": self.k_scale,
            "key_antiquant_offset": self.k_offset,
            "value_antiquant_scale": self.v_scale,
            "value_antiquant_offset": self.v_offset,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class AscendPages(Pages):
    """Pages, and which fused operators take them."""

    fused: Fused
    antiquant: Antiquant | None = None


def antiquant(grid: Grid) -> Antiquant:
    """The grid for attention."""
    k_scale, k_offset, v_scale, v_offset = (
        table.to(grid.dtype)[None].contiguous()
        for table in (grid.k_scale, -grid.k_offset, grid.v_scale, -grid.v_offset)
    )
    shifted = most_offset(grid) > 0
    return Antiquant(k_scale, k_offset if shifted else None, v_scale, v_offset if shifted else None)


def most_offset(grid: Grid) -> float:
    """The largest offset of a channel, whatever its sign."""
    return max(float(table.abs().max()) for table in (grid.k_offset, grid.v_offset))


def fused_for(soc: Soc, dtype: torch.dtype, spec: AttentionSpec, block_size: int, offset: float | None = None) -> Fused:
    """What this chip can do with one layer's cache of this shape. `offset`: an 8-bit grid's largest, if it has one."""
    latent = spec.kind != "gqa"
    heads = "" if latent else _first(_heads(spec))
    grid = "" if offset is None else _first(_coded(dtype, offset))
    codes = "" if offset is None else _first(_codes(spec, block_size))
    return Fused(
        decode=_missing(soc, ATTENTION) or _first(_decode(dtype, spec, block_size)) or heads or grid or codes,
        packed=_missing(soc, ATTENTION) or _first(_packed(dtype, spec, block_size)) or heads or grid,
        latent=_missing(soc, ATTENTION) or _first(_latent(dtype, spec, block_size)),
        chosen=_missing(soc, SPARSE) or _first(_latent(dtype, spec, block_size)),
        indexer=_missing(soc, INDEXER) or _first(_indexer(dtype, spec, block_size)),
        write=_missing(soc, SCATTER),
    )


def _missing(soc: Soc, function: str) -> str:
    return "" if soc.has(function) else f"{soc.name} has no {function}"


def _first(reasons: Iterator[str]) -> str:
    return next(reasons, "")


def _type(dtype: torch.dtype) -> Iterator[str]:
    if dtype not in HALF:
        yield f"it takes float16 and bfloat16, not {str(dtype).removeprefix('torch.')}"


def _heads(spec: AttentionSpec) -> Iterator[str]:
    if spec.num_heads > 256 or spec.num_heads > 64 * spec.num_kv_heads:
        yield f"it takes up to 256 heads and 64 per KV head, not {spec.num_heads} and {spec.num_kv_heads}"


def _decode(dtype: torch.dtype, spec: AttentionSpec, block_size: int) -> Iterator[str]:
    yield from _type(dtype)
    if spec.kind != "gqa":
        yield "this model's attention is over latents"
    if spec.head_dim != spec.v_head_dim or spec.head_dim % 16 or spec.head_dim > 512:
        yield f"heads must have one width, a multiple of 16 up to 512, not {spec.head_dim} and {spec.v_head_dim}"
    if block_size % 16 or block_size > 512:
        yield f"blocks must have a multiple of 16 tokens, up to 512, not {block_size}"
    if spec.num_kv_heads * spec.head_dim > 65535:
        yield f"the KV heads of one token must not exceed 65535 numbers, not {spec.num_kv_heads * spec.head_dim}"


def _coded(dtype: torch.dtype, offset: float) -> Iterator[str]:
    if dtype != torch.bfloat16:
        yield "scales of an 8-bit cache are in the type of the queries, and float16 is too narrow for small ones"
    if offset > MOST_OFFSET:
        yield f"offsets of an 8-bit cache must be within {MOST_OFFSET}, which bfloat16 has exactly, not {offset:g}"


def _codes(spec: AttentionSpec, block_size: int) -> Iterator[str]:
    """op-plugin's page: int8 wants 32 bytes."""
    if spec.head_dim % 32:
        yield f"heads of an 8-bit cache must be a multiple of 32 wide, not {spec.head_dim}"
    if block_size % 32:
        yield f"blocks of an 8-bit cache must have a multiple of 32 tokens, not {block_size}"


def _packed(dtype: torch.dtype, spec: AttentionSpec, block_size: int) -> Iterator[str]:
    yield from _type(dtype)
    if spec.kind != "gqa":
        yield "this model's attention is over latents"
    widths = (spec.head_dim, spec.v_head_dim)
    if widths not in PACKED_WIDTHS:
        legal = ", ".join(f"{k}/{v}" for k, v in PACKED_WIDTHS)
        yield f"heads of several queries per sequence must be {legal} wide, not {widths[0]}/{widths[1]}"
    yield from _blocks(block_size)


def _blocks(block_size: int) -> Iterator[str]:
    if block_size % 16 or block_size > 1024:
        yield f"blocks must have a multiple of 16 tokens, up to 1024, not {block_size}"


def _latent(dtype: torch.dtype, spec: AttentionSpec, block_size: int) -> Iterator[str]:
    yield from _type(dtype)
    if spec.kind == "gqa":
        yield "this model's attention is not over latents"
    if (spec.latent_dim, spec.rope.dim) != (LATENT, ROTATED):
        yield f"latents must be 512 wide and rotated parts 64, not {spec.latent_dim} and {spec.rope.dim}"
    if spec.num_heads not in POWERS:
        yield f"the number of heads must be a power of 2 up to 128, not {spec.num_heads}"
    yield from _blocks(block_size)


def _indexer(dtype: torch.dtype, spec: AttentionSpec, block_size: int) -> Iterator[str]:
    yield from _type(dtype)
    if spec.kind != "mla_sparse":
        yield "this model has no indexer"
    if spec.index_dim != INDEX:
        yield f"index keys must be 128 wide, not {spec.index_dim}"
    if not 1 <= spec.index_topk <= 2048:
        yield f"it chooses up to 2048 positions, not {spec.index_topk}"
    yield from _blocks(block_size)
