"""The paged KV cache of one layer: pages that start as zeros, two more of them than there are blocks."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from gallium.backends.torch.packing import host_tensor
from gallium.backends.torch.plan import FIRST_PAGE, TorchPlan
from gallium.errors import OutOfMemory
from gallium.ops.handles import AttentionSpec, KvCache, KvGrid


@dataclass(frozen=True, slots=True)
class Grid:
    """A `KvGrid` on the device: float32 `[kv_heads, width]` each."""

    k_scale: torch.Tensor
    k_offset: torch.Tensor
    v_scale: torch.Tensor
    v_offset: torch.Tensor


@dataclass(frozen=True, slots=True)
class Pages:
    """`[blocks + FIRST_PAGE, block_size, ...]`; block b of a block table is page b + FIRST_PAGE."""

    k: torch.Tensor  # gqa: [.., kv_heads, head_dim]; mla: the latent [.., latent_dim]
    v: torch.Tensor  # gqa: [.., kv_heads, v_head_dim]; mla: the rope key [.., rope.dim]
    index: torch.Tensor  # mla_sparse: [.., index_dim]; else [.., 0]
    grid: Grid | None = None


def widths(spec: AttentionSpec) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """What one token stores in k, v and index."""
    if spec.kind == "gqa":
        return (spec.num_kv_heads, spec.head_dim), (spec.num_kv_heads, spec.v_head_dim), (spec.index_dim,)
    return (spec.latent_dim,), (spec.rope.dim,), (spec.index_dim,)


def make_pages(
    spec: AttentionSpec,
    num_blocks: int,
    block_size: int,
    dtype: torch.dtype,
    device: torch.device,
    grid: KvGrid | None = None,
) -> Pages:
    """Zeros: what was never written is read with a weight of zero, which a NaN would survive."""
    shapes = [(num_blocks + FIRST_PAGE, block_size, *width) for width in widths(spec)]
    try:
        k, v, index = (torch.zeros(shape, dtype=dtype, device=device) for shape in shapes)
    except (torch.OutOfMemoryError, RuntimeError) as cause:
        size = block_bytes(spec, block_size, dtype) * num_blocks / 2**30
        raise OutOfMemory(f"no memory on {device} for {size:.2f} GiB of KV cache: lower --kv-memory.") from cause
    return Pages(k, v, index, None if grid is None else device_grid(grid, device))


def device_grid(grid: KvGrid, device: torch.device) -> Grid:
    """The grid's tables on the device."""
    tables = (grid.k_scale, grid.k_offset, grid.v_scale, grid.v_offset)
    return Grid(*(host_tensor(table).to(device) for table in tables))


def on_grid(x: torch.Tensor, scale: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
    """The nearest of 256 values per channel, float32: see `KvGrid`."""
    code = torch.round(x.float() * (1 / scale) + offset).clamp(-128, 127)
    return (code - offset) * scale


def block_bytes(spec: AttentionSpec, block_size: int, dtype: torch.dtype) -> int:
    """Bytes of one block of one layer."""
    k, v, index = (torch.Size(width).numel() for width in widths(spec))
    return (k + v + index) * block_size * dtype.itemsize


def flat(pages: torch.Tensor) -> torch.Tensor:
    """`[pages, block_size, ...]` seen as `[slots, ...]`."""
    return pages.flatten(0, 1)


def kv_write(k: torch.Tensor, v: torch.Tensor, cache: KvCache, plan: TorchPlan) -> None:
    """Rows into their slots, on the cache's grid if it has one, in the cache's dtype."""
    pages: Pages = cache.data
    if pages.grid is not None:
        k = on_grid(k, pages.grid.k_scale, pages.grid.k_offset)
        v = on_grid(v, pages.grid.v_scale, pages.grid.v_offset)
    slots = plan.slots(cache.block_size)
    flat(pages.k).index_copy_(0, slots, k.to(pages.k.dtype))
    flat(pages.v).index_copy_(0, slots, v.to(pages.v.dtype))


def index_write(keys: torch.Tensor, cache: KvCache, plan: TorchPlan) -> None:
    """Index keys into their slots."""
    pages: Pages = cache.data
    flat(pages.index).index_copy_(0, plan.slots(cache.block_size), keys.to(pages.index.dtype))
