"""Calls of the cache writers and of attention. Struct formats mirror native/include/gallium/{attention,rope}.h."""

from __future__ import annotations

import ctypes
from struct import Struct

import numpy as np

from gallium.backends.cpu.arrays import Empty, address, check_memory, contiguous, require, rows
from gallium.backends.cpu.cache import CacheData
from gallium.backends.cpu.kernels_rows import silent
from gallium.backends.cpu.plan import CpuPlan
from gallium.ops.handles import AttentionSpec, FloatArray, IntArray, KvCache

_WRITE = Struct("@3Q3q").pack  # ga_kv_write_args up to its cache
_QKV = Struct("@5Q5qd").pack  # ga_qkv_args up to its cache
_COLUMNS = Struct("@4Q3q").pack  # ga_columns_args
_ATTEND = Struct("@4Q7qd").pack  # ga_attend_args up to its cache and batch
_INDEX = Struct("@3Q4q").pack  # ga_index_args up to its cache and batch


class AttentionKernels:
    """The cache writers and attention of the loaded library."""

    __slots__ = ("_attend", "_empty", "_index_topk", "_kv_codes", "_qkv", "_scale", "_write")

    def __init__(self, library: ctypes.CDLL) -> None:
        self._empty: Empty = np.empty
        self._write = silent(library.ga_kv_write)
        self._qkv = silent(library.ga_qkv_prepare)
        self._kv_codes = silent(library.ga_kv_codes)
        self._scale = silent(library.ga_scale_columns)
        self._attend = library.ga_attend
        self._index_topk = library.ga_index_topk

    def kv_write(self, k: FloatArray, v: FloatArray, cache: KvCache, plan: CpuPlan) -> None:
        """Rows of k and v into this step's slots."""
        data: CacheData = cache.data
        if (grid := data.grid) is not None:
            k = self._codes(k, grid.key_inverse, grid.key_offset)
            v = self._codes(v, grid.value_inverse, grid.value_offset)
        k, k_stride = rows(k)
        v, v_stride = rows(v)
        require(len(k) == len(v) == plan.tokens, "kv_write: as many keys and values as tokens are needed.")
        slots = plan.slots(cache.block_size, cache.num_blocks)
        self._write(_WRITE(address(k), address(v), address(slots), plan.tokens, k_stride, v_stride) + data.packed)

    def _codes(self, x: FloatArray, inverse: FloatArray, offset: FloatArray) -> FloatArray:
        """x `[tokens, kv_heads, width]` on the grid, as float32."""
        x, stride = rows(x)
        y = self._empty(x.shape, np.float32)
        self._kv_codes(
            _COLUMNS(address(x), address(inverse), address(offset), address(y), len(x), inverse.size, stride)
        )
        return y

    def index_write(self, keys: FloatArray, cache: KvCache, plan: CpuPlan) -> None:
        """Index keys `[tokens, index_dim]` into this step's slots."""
        data: CacheData = cache.data
        require(bool(data.index), "index_write: this cache was made without index keys.")
        keys, stride = rows(keys)
        require(len(keys) == plan.tokens, "index_write: as many keys as tokens are needed.")
        slots = plan.slots(cache.block_size, cache.num_blocks)
        self._write(_WRITE(address(keys), 0, address(slots), plan.tokens, stride, 0) + data.index)

    def prepare(
        self,
        qkv: FloatArray,
        gains: tuple[FloatArray, FloatArray] | None,
        cache: KvCache,
        plan: CpuPlan,
        spec: AttentionSpec,
        eps: float,
    ) -> None:
        """In place on a contiguous `[tokens, q | k | v]`: head norms if there are gains, rope, and the cache write."""
        data: CacheData = cache.data
        q_gain, k_gain = (address(gains[0]), address(gains[1])) if gains is not None else (0, 0)
        slots, table = plan.slots(cache.block_size, cache.num_blocks), plan.rope_table(spec.rope)
        self._qkv(
            _QKV(
                address(qkv), q_gain, k_gain, address(table), address(slots), plan.tokens, spec.num_heads,
                qkv.shape[1], spec.rope.dim, spec.rope.interleaved, eps,
            )
            + data.packed
        )  # fmt: skip

    def attend(self, q: FloatArray, cache: KvCache, plan: CpuPlan, spec: AttentionSpec) -> FloatArray:
        """Causal attention of q `[tokens, heads * head_dim]` or more columns, or `[tokens, heads, head_dim]`."""
        data: CacheData = cache.data
        grid = data.grid
        q, stride = rows(q)
        if grid is not None:
            scale, wide = grid.query_scale, q
            q = self._empty((len(q), scale.size), np.float32)
            self._scale(_COLUMNS(address(wide), address(scale), 0, address(q), len(q), scale.size, stride))
            stride = scale.size
        require(len(q) == plan.tokens, "attend: as many queries as tokens are needed.")
        plan.slots(cache.block_size, cache.num_blocks)  # checks the block table against this cache
        out = self._empty((plan.tokens, spec.num_heads, spec.v_head_dim), np.float32)
        status = self._attend(
            _ATTEND(
                address(q), 0, 0, address(out), spec.num_heads, spec.head_dim, 0, spec.v_head_dim, stride, 0, 0,
                spec.scale,
            )
            + data.packed
            + plan.batch
        )  # fmt: skip
        if status:
            check_memory(status, "attend")
        if grid is not None:
            scale = grid.result_scale
            self._scale(_COLUMNS(address(out), address(scale), 0, address(out), len(out), scale.size, scale.size))
        return out

    def attend_latent(
        self,
        q: FloatArray,
        q_rope: FloatArray,
        cache: KvCache,
        plan: CpuPlan,
        spec: AttentionSpec,
        selected: IntArray | None,
    ) -> FloatArray:
        """Attention over latents, `[tokens, heads, latent]`; only over `selected` positions if given."""
        data: CacheData = cache.data
        q, stride = rows(q)
        q_rope, rope_stride = rows(q_rope)
        require(len(q) == len(q_rope) == plan.tokens, "attend_latent: as many queries as tokens are needed.")
        plan.slots(cache.block_size, cache.num_blocks)
        chosen, width = 0, 0
        if selected is not None:
            selected = contiguous(np.asarray(selected, np.int32))
            width = selected.shape[1]
            require(
                len(selected) == plan.tokens and bool((selected <= plan.positions[:, None]).all()),
                "attend_latent: a selected position lies after its token.",
            )
            chosen = address(selected)
        out = self._empty((plan.tokens, spec.num_heads, spec.latent_dim), np.float32)
        status = self._attend(
            _ATTEND(
                address(q), address(q_rope), chosen, address(out), spec.num_heads, spec.latent_dim, spec.rope.dim,
                spec.latent_dim, stride, rope_stride, width, spec.scale,
            )
            + data.packed
            + plan.batch
        )  # fmt: skip
        check_memory(status, "attend_latent")
        return out

    def index_topk(self, q: FloatArray, weights: FloatArray, cache: KvCache, plan: CpuPlan, k: int) -> IntArray:
        """The k best positions per token, best first, then -1."""
        data: CacheData = cache.data
        require(bool(data.index), "index_topk: this cache was made without index keys.")
        q, q_stride = rows(q)
        weights, w_stride = rows(weights)
        require(len(q) == len(weights) == plan.tokens, "index_topk: as many queries as tokens are needed.")
        plan.slots(cache.block_size, cache.num_blocks)
        out = self._empty((plan.tokens, k), np.int32)
        status = self._index_topk(
            _INDEX(address(q), address(weights), address(out), q.shape[1], q_stride, w_stride, k)
            + data.index
            + plan.batch
        )
        check_memory(status, "index_topk")
        return out
