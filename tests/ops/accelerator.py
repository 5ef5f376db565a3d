"""A pretend accelerator: tensors that allow only what a model may do, another KV layout, fused blocks, padded steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gallium.ops.handles import AttentionSpec, Experts, FloatArray, IntArray, KvCache, KvGrid, Step
from gallium.ops.interface import Ops
from gallium.ops.reference import ReferenceOps, softmax


class DeviceTensor:
    """Shape, reshape and slices, which is all that a model may use of a tensor."""

    def __init__(self, values: Any) -> None:
        self._values = values

    @property
    def shape(self) -> tuple[int, ...]:
        return self._values.shape

    def reshape(self, *shape: int) -> DeviceTensor:
        return DeviceTensor(self._values.reshape(*shape))

    def __getitem__(self, key: Any) -> DeviceTensor:
        keys = key if isinstance(key, tuple) else (key,)
        assert all(isinstance(k, slice) for k in keys), "a model may slice a tensor, not index it"
        return DeviceTensor(self._values[key])


def unwrap(value: Any) -> Any:
    """The array in a tensor; anything else as it is."""
    return value._values if isinstance(value, DeviceTensor) else value


def wrap(value: Any) -> Any:
    """Arrays, also in a tuple, as tensors."""
    if isinstance(value, tuple):
        return tuple(map(wrap, value))
    return DeviceTensor(value) if isinstance(value, np.ndarray) else value


def by_definition(op: str) -> Callable[..., Any]:
    """A method that runs the reference's op on device tensors."""

    def run(self: Any, *args: Any, **named: Any) -> Any:
        return wrap(getattr(self.reference, op)(*map(unwrap, args), **named))

    run.__name__ = op
    return run


LIKE_THE_REFERENCE = (
    "upload", "pack_linear", "pack_heads", "pack_experts", "kv_block_bytes", "embed", "linear", "head_linear", "add",
    "rms_norm", "rope", "swiglu", "route", "index_write", "attend_latent",
    "index_topk", "take_rows", "sample",
)  # fmt: skip
DefinedOps = type("DefinedOps", (Ops,), {op: by_definition(op) for op in LIKE_THE_REFERENCE})


@dataclass(frozen=True)
class HeadMajorPages:
    """Keys and values `[blocks, heads, rows, width]`; the last block is private and takes what padding writes."""

    k: FloatArray
    v: FloatArray


class PretendAccelerator(DefinedOps):
    """The reference's numbers by other ways: what a backend may choose for itself, chosen differently."""

    name = "pretend"

    def __init__(self) -> None:
        self.reference = ReferenceOps()
        self.private_block = -1  # known when the caches are made
        self.sizes_run: list[int] = []  # sequences in each decode step that ran, padding included

    def download(self, x: Any) -> FloatArray:
        return np.array(unwrap(x))

    def plan(self, step: Step) -> Step:
        return step

    def compile_step(
        self, forward: Callable[[Any], Any], decode_sizes: tuple[int, ...] = (2, 4, 8)
    ) -> Callable[[Step], Any]:
        """Decode steps run in a few fixed sizes, as captured graphs would; the padding's logits are cut off."""

        def run(step: Step) -> Any:
            seqs = len(step.context_lens)
            fitting = [size for size in decode_sizes if size >= seqs]
            if len(step.token_ids) != seqs or not fitting:
                return forward(self.plan(step))
            self.sizes_run.append(fitting[0])
            return forward(self.plan(self.padded(step, fitting[0])))[: len(step.logit_rows)]

        return run

    def padded(self, step: Step, size: int) -> Step:
        """The step with sequences of one token in the private block."""
        more = size - len(step.context_lens)
        rows = max(size - len(step.logit_rows), 0)
        tables = np.full((more, step.block_tables.shape[1]), -1, np.int32)
        tables[:, :1] = self.private_block

        def extended(array: IntArray, value: int, count: int) -> IntArray:
            return np.concatenate([array, np.full(count, value, np.int32)])

        return Step(
            token_ids=extended(step.token_ids, 0, more),
            positions=extended(step.positions, 0, more),
            query_start=np.arange(size + 1, dtype=np.int32),
            context_lens=extended(step.context_lens, 1, more),
            block_tables=np.concatenate([step.block_tables, tables]),
            logit_rows=extended(step.logit_rows, 0, rows),
        )

    def make_kv_cache(
        self, spec: AttentionSpec, num_blocks: int, block_size: int, grid: KvGrid | None = None
    ) -> KvCache:
        self.private_block = num_blocks

        def empty(width: int) -> FloatArray:
            return np.full((num_blocks + 1, spec.num_kv_heads, block_size, width), np.nan, np.float32)

        return KvCache(num_blocks, block_size, HeadMajorPages(empty(spec.head_dim), empty(spec.v_head_dim)))

    def kv_write(self, k: Any, v: Any, cache: KvCache, plan: Step) -> None:
        block, row = np.divmod(plan.slots(cache.block_size), cache.block_size)
        cache.data.k[block, :, row], cache.data.v[block, :, row] = unwrap(k), unwrap(v)

    def attend(self, q: Any, cache: KvCache, plan: Step, spec: AttentionSpec) -> Any:
        """Per sequence: gather its blocks once, then all its rows and heads together, later positions masked."""
        values = unwrap(q)
        out = np.zeros((len(values), spec.num_heads, spec.v_head_dim), np.float32)
        group = spec.num_heads // spec.num_kv_heads
        for seq, length in enumerate(plan.context_lens):
            mine = slice(plan.query_start[seq], plan.query_start[seq + 1])
            blocks = plan.block_tables[seq, : -(-length // cache.block_size)]
            k, v = (gather(pages, blocks, length, group) for pages in (cache.data.k, cache.data.v))
            scores = np.einsum("thd,hpd->htp", values[mine], k) * np.float32(spec.scale)
            hidden = np.arange(length) > plan.positions[mine, None]
            out[mine] = np.einsum("htp,hpd->thd", softmax(np.where(hidden, -np.inf, scores)), v)
        return DeviceTensor(out)

    def experts(self, x: Any, weights: Any, ids: Any, w: Experts) -> Any:
        """Sorted by expert: each expert's tokens at once."""
        x, weights, ids = unwrap(x), unwrap(weights), unwrap(ids)
        parts = np.zeros((*ids.shape, x.shape[1]), np.float32)
        gate_up, down = w.data
        for expert in np.unique(ids):
            rows, ranks = np.nonzero(ids == expert)
            parts[rows, ranks] = self.reference.swiglu(x[rows] @ gate_up[expert].T) @ down[expert].T
        return DeviceTensor((parts * weights[..., None]).sum(axis=1, dtype=np.float32))

    def add_rms_norm(self, x: Any, residual: Any, gain: Any, eps: float) -> Any:
        """Fused: one pass over the sum."""
        total = unwrap(x) if residual is None else unwrap(x) + unwrap(residual)
        scale = 1 / np.sqrt((total * total).mean(axis=-1, keepdims=True) + np.float32(eps))
        return DeviceTensor(total * scale * unwrap(gain)), DeviceTensor(total)


def gather(pages: FloatArray, blocks: Sequence[int], length: int, group: int) -> FloatArray:
    """`[heads, length, width]` of one sequence, each KV head once per query head."""
    heads, _, width = pages.shape[1:]
    rows = pages[list(blocks)].transpose(1, 0, 2, 3).reshape(heads, -1, width)[:, :length]
    return np.repeat(rows, group, axis=0)
