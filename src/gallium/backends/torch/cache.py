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
    dtype: torch.dtype  # of the numbers that codes become for attention


@dataclass(frozen=True, slots=True)
class Pages:
    """`[blocks + FIRST_PAGE, block_size, ...]`; block b of a block table is page b + FIRST_PAGE.

    With a grid k and v are its codes, int8.
    """

    k: torch.Tensor  # gqa: [.., kv_heads, head_dim]; mla: the latent [.., latent_dim]
    v: torch.Tensor  # gqa: [.., kv_heads, v_head_dim]; mla: the rope key [.., rope.dim]
    index: torch.Tensor  # mla_sparse: [.., index_dim]; else [.., 0]
    grid: Grid | None = None

    @property
    def dtype(self) -> torch.dtype:
        """What attention computes in."""
        return self.k.dtype if self.grid is None else self.grid.dtype


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
    element = dtype if grid is None else torch.int8
    shapes = [(num_blocks + FIRST_PAGE, block_size, *width) for width in widths(spec)]
    try:
        k, v, index = (
            torch.zeros(shape, dtype=held, device=device)
            for shape, held in zip(shapes, (element, element, dtype), strict=True)
        )
    except (torch.OutOfMemoryError, RuntimeError) as cause:
        size = block_bytes(spec, block_size, dtype, grid) * num_blocks / 2**30
        raise OutOfMemory(f"no memory on {device} for {size:.2f} GiB of KV cache: lower --kv-memory.") from cause
    return Pages(k, v, index, None if grid is None else device_grid(grid, dtype, device))


def device_grid(grid: KvGrid, dtype: torch.dtype, device: torch.device) -> Grid:
    """The grid's tables on the device."""
    k_scale, k_offset, v_scale, v_offset = (
        host_tensor(table).to(device) for table in (grid.k_scale, grid.k_offset, grid.v_scale, grid.v_offset)
    )
    return Grid(k_scale, k_offset, v_scale, v_offset, dtype)


def codes(x: torch.Tensor, scale: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
    """Which of 256 values per channel is the nearest, int8: see `KvGrid`."""
    return torch.round(x.float() * (1 / scale) + offset).clamp(-128, 127).to(torch.int8)


def numbers(found: torch.Tensor, scale: torch.Tensor, offset: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What codes stand for; computed in float32."""
    return ((found.float() - offset) * scale).to(dtype)


def stored(k: torch.Tensor, v: torch.Tensor, pages: Pages) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values as the pages keep them."""
    grid = pages.grid
    if grid is None:
        return k.to(pages.k.dtype), v.to(pages.v.dtype)
    return codes(k, grid.k_scale, grid.k_offset), codes(v, grid.v_scale, grid.v_offset)


def block_bytes(spec: AttentionSpec, block_size: int, dtype: torch.dtype, grid: KvGrid | None = None) -> int:
    """Bytes of one block of one layer."""
    k, v, index = (torch.Size(width).numel() for width in widths(spec))
    size = dtype.itemsize if grid is None else torch.int8.itemsize
    return ((k + v) * size + index * dtype.itemsize) * block_size


def flat(pages: torch.Tensor) -> torch.Tensor:
    """`[pages, block_size, ...]` seen as `[slots, ...]`."""
    return pages.flatten(0, 1)


def kv_write(k: torch.Tensor, v: torch.Tensor, cache: KvCache, plan: TorchPlan) -> None:
    """Rows into their slots, as numbers of the cache's dtype or as codes of its grid."""
    pages: Pages = cache.data
    k, v = stored(k, v, pages)
    slots = plan.slots(cache.block_size)
    flat(pages.k).index_copy_(0, slots, k)
    flat(pages.v).index_copy_(0, slots, v)


def index_write(keys: torch.Tensor, cache: KvCache, plan: TorchPlan) -> None:
    """Index keys into their slots."""
    pages: Pages = cache.data
    flat(pages.index).index_copy_(0, plan.slots(cache.block_size), keys.to(pages.index.dtype))
