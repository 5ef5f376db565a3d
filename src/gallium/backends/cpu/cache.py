"""The paged KV cache of one layer: layouts, element types and sizes. All is described in gallium/attention.h."""

from __future__ import annotations

from struct import Struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gallium.backends.cpu.arrays import address, aligned_zeros, contiguous, require
from gallium.ops.handles import AttentionSpec, FloatArray, KvGrid, KvPrecision, Precision

_CACHE = Struct("@2Q9q")  # ga_cache
PANEL = 16  # keys that attention reads as one vector
PANELS, ROWS, LATENT = 0, 1, 2  # ga_cache.layout


ELEMENTS: dict[KvPrecision, int] = {"float32": 0, "bfloat16": 1, "int8": 2}  # ga_cache.element
DTYPES: dict[KvPrecision, type[np.generic]] = {"float32": np.float32, "bfloat16": np.uint16, "int8": np.int8}
STEP_BYTES = 4  # of each token and head in an int8 cache, for keys and for values


def usual_precision(precision: Precision) -> KvPrecision:
    """What "auto" takes: float32 for float32 models; bfloat16 (kept as uint16) otherwise."""
    return "float32" if precision == "float32" else "bfloat16"


def _widths(spec: AttentionSpec, block_size: int) -> tuple[int, int, int]:
    """(layout, stored key width, stored value width)."""
    if spec.kind != "gqa":
        return LATENT, spec.latent_dim + spec.rope.dim, spec.latent_dim
    if block_size % PANEL:
        return ROWS, spec.head_dim, spec.v_head_dim
    return PANELS, spec.head_dim + spec.head_dim % 2, -(-spec.v_head_dim // 16) * 16


def _checked(spec: AttentionSpec, block_size: int, precision: KvPrecision) -> tuple[int, int, int]:
    """`_widths`, if a cache of 8-bit codes can be laid out that way."""
    found = _widths(spec, block_size)
    require(
        precision != "int8" or found[0] == PANELS,
        f"a KV cache in int8 needs blocks of a multiple of {PANEL} tokens, not of {block_size}: choose another "
        "--block-size, or --kv-precision bfloat16.",
    )
    return found


def block_bytes(spec: AttentionSpec, block_size: int, precision: KvPrecision) -> int:
    """Bytes that one block of one layer takes, padding included."""
    layout, key_dim, value_dim = _checked(spec, block_size, precision)
    values = key_dim + spec.index_dim if layout == LATENT else spec.num_kv_heads * (key_dim + value_dim)
    steps = 2 * spec.num_kv_heads * STEP_BYTES if precision == "int8" else 0
    return (values * np.dtype(DTYPES[precision]).itemsize + steps) * block_size


class Grid:
    """A KvGrid as kernels take it: float32 constants per column.

    Keys and values lie on it as `code - offset` (ga_kv_codes in gallium/attention.h), so the scales go to the queries
    and to what attention returns. Head h of the queries reads KV head h * kv_heads // heads.
    """

    __slots__ = ("key_inverse", "key_offset", "query_scale", "result_scale", "value_inverse", "value_offset")

    def __init__(self, grid: KvGrid, spec: AttentionSpec) -> None:
        group = spec.num_heads // spec.num_kv_heads
        self.key_inverse: FloatArray = (np.float32(1) / grid.k_scale).ravel()  # [kv_heads * head_dim]
        self.value_inverse: FloatArray = (np.float32(1) / grid.v_scale).ravel()  # [kv_heads * v_head_dim]
        self.key_offset: FloatArray = contiguous(grid.k_offset).ravel()
        self.value_offset: FloatArray = contiguous(grid.v_offset).ravel()
        self.query_scale: FloatArray = np.repeat(grid.k_scale, group, axis=0).ravel()  # [heads * head_dim]
        self.result_scale: FloatArray = np.repeat(grid.v_scale, group, axis=0).ravel()  # [heads * v_head_dim]


class CacheData:
    """What a KvCache handle of this backend holds. `packed` and `index` are the ga_cache that kernels read.

    With a `grid` the cache holds whole numbers of at most 255, which bfloat16 has exactly. It takes no less memory than
    without.
    """

    __slots__ = ("grid", "index", "index_keys", "keys", "packed", "values")

    def __init__(
        self, spec: AttentionSpec, num_blocks: int, block_size: int, precision: KvPrecision, grid: KvGrid | None = None
    ) -> None:
        dtype, element = DTYPES[precision], ELEMENTS[precision]
        layout, key_dim, value_dim = _checked(spec, block_size, precision)
        heads = 1 if layout == LATENT else spec.num_kv_heads
        positions = num_blocks * block_size * heads
        steps = STEP_BYTES if precision == "int8" else 0  # as many elements: an int8 is a byte
        self.keys: NDArray[Any] = aligned_zeros(positions * (key_dim + steps), dtype)
        self.values: NDArray[Any] | None = None
        if layout != LATENT:
            self.values = aligned_zeros(positions * (value_dim + steps), dtype)
        self.packed = _CACHE.pack(
            address(self.keys), 0 if self.values is None else address(self.values), num_blocks, block_size, heads,
            key_dim, value_dim, key_dim if layout == LATENT else spec.head_dim,
            value_dim if layout == LATENT else spec.v_head_dim, element, layout,
        )  # fmt: skip
        self.grid = None if grid is None else Grid(grid, spec)
        self.index_keys: NDArray[Any] | None = None
        self.index = b""
        if spec.index_dim:
            self.index_keys = aligned_zeros(num_blocks * block_size * spec.index_dim, dtype)
            self.index = _CACHE.pack(
                address(self.index_keys), 0, num_blocks, block_size, 1,
                spec.index_dim, spec.index_dim, spec.index_dim, spec.index_dim, element, LATENT,
            )  # fmt: skip
