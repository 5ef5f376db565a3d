"""What each op means: one slow, obvious NumPy float32 body per op. Every backend is compared with it.

Nothing here may be clever. Loops are over tokens, heads and experts; angles and sampling are in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from gallium.ops import reference_sampling
from gallium.ops.handles import (
    AttentionSpec,
    Experts,
    FloatArray,
    IntArray,
    KvCache,
    KvGrid,
    KvPrecision,
    Linear,
    MoeSpec,
    Role,
    RopeSpec,
    SamplerInputs,
    Step,
    Weight,
)
from gallium.ops.interface import Ops

Array: TypeAlias = Any
"""A NumPy array, float32 unless said otherwise."""


@dataclass(frozen=True, slots=True)
class Pages:
    """The cache of one layer: `[blocks, block_size, ...]`. NaN until written, so that a stray read shows."""

    k: FloatArray  # gqa: [.., kv_heads, head_dim]; mla: the latent [.., latent_dim]
    v: FloatArray  # gqa: [.., kv_heads, v_head_dim]; mla: the rope key [.., rope.dim]
    index: FloatArray  # mla_sparse: [.., index_dim]; else [.., 0]
    grid: KvGrid | None = None


def softmax(x: Array) -> Array:
    """Over the last axis."""
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def sigmoid(x: Array) -> Array:
    """`1 / (1 + exp(-x))`, written so that a large negative x does not overflow."""
    return np.exp(-np.logaddexp(np.float32(0), -x))


def best_first(x: Array) -> Array:
    """Indices that sort the last axis downwards, ties to the lower index."""
    return np.argsort(-x, axis=-1, kind="stable")


def rope_angles(positions: IntArray, spec: RopeSpec) -> Array:
    """`position * base^(-2i/dim)` -> float64 `[tokens, dim / 2]`."""
    frequencies = np.float64(spec.base) ** (-np.arange(0, spec.dim, 2, dtype=np.float64) / spec.dim)
    return positions.astype(np.float64)[:, None] * frequencies


def stack(parts: Sequence[Weight]) -> FloatArray:
    """All rows of all parts, in order."""
    return np.concatenate([np.asarray(part.float32(), np.float32) for part in parts])


def allowed_experts(choice: Array, spec: MoeSpec) -> Array:
    """Boolean `[experts]`: members of the `top_groups` groups whose two best scores sum highest."""
    groups = choice.reshape(spec.num_groups, -1)
    score = np.sort(groups, axis=1)[:, ::-1][:, :2].sum(axis=1)
    kept = np.zeros(spec.num_groups, bool)
    kept[best_first(score)[: spec.top_groups]] = True
    return np.repeat(kept, groups.shape[1])


def context_slots(plan: Step, seq: int, length: int, block_size: int) -> Array:
    """Flat cache slots of positions 0 .. length - 1 of one sequence."""
    positions = np.arange(length)
    return plan.block_tables[seq, positions // block_size].astype(np.int64) * block_size + positions % block_size


def seen_by(plan: Step, block_size: int) -> list[Array]:
    """For each token, the slots of positions 0 .. its own, its own included."""
    seqs = np.repeat(np.arange(len(plan.context_lens)), np.diff(plan.query_start))
    return [context_slots(plan, seqs[t], int(p) + 1, block_size) for t, p in enumerate(plan.positions)]


def on_grid(x: Array, scale: FloatArray, offset: FloatArray) -> Array:
    """The nearest of 256 values per channel: see `KvGrid`."""
    code = np.clip(np.rint(x * (np.float32(1) / scale) + offset), -128, 127)
    return (code - offset) * scale


def flat(pages: FloatArray) -> FloatArray:
    """`[blocks, block_size, ...]` seen as `[slots, ...]`."""
    return pages.reshape(-1, *pages.shape[2:])


def in_steps(x: Array) -> Array:
    """The nearest of 255 values for each vector of the last axis, evenly spaced as far as its largest magnitude."""
    step = np.abs(x).max(axis=-1, keepdims=True) / np.float32(127)
    return np.rint(x / np.where(step > 0, step, np.float32(1))) * step


class ReferenceOps(Ops):
    """The definitions. Tensors are float32 arrays, a plan is the Step itself, handles hold plain arrays.

    With `kv_precision` "int8" keys and values are what an 8-bit cache makes of them, in float32 all the same.
    """

    name = "reference"

    def __init__(self, kv_precision: KvPrecision = "float32") -> None:
        self.kv_precision = kv_precision

    # -- memory -------------------------------------------------------------------
    def upload(self, array: FloatArray | IntArray) -> Array:
        """A copy in float32, or in int32."""
        return np.array(array, np.int32 if np.issubdtype(array.dtype, np.integer) else np.float32)

    def download(self, x: Array) -> FloatArray:
        """A copy."""
        return np.array(x)

    def plan(self, step: Step) -> Step:
        """The step itself."""
        return step

    # -- packing ------------------------------------------------------------------
    def pack_linear(self, parts: Sequence[Weight], bias: Sequence[Weight] = (), role: Role = "linear") -> Linear:
        """Decode and stack; the role makes no difference."""
        weight = stack(parts)
        return Linear(weight.shape[1], weight.shape[0], weight, stack(bias) if bias else None)

    def pack_heads(self, weight: Sequence[Weight]) -> Linear:
        """`[heads, out, in]`."""
        heads = np.stack([w.float32() for w in weight])
        return Linear(heads.shape[2], heads.shape[1], heads)

    def pack_experts(
        self,
        gate_up: Sequence[Sequence[Weight]],
        down: Sequence[Weight],
        roles: tuple[Role, Role] = ("linear", "linear"),
    ) -> Experts:
        """`[experts, 2 * width, hidden]` and `[experts, hidden, width]`."""
        first = np.stack([stack(parts) for parts in gate_up])
        second = np.stack([w.float32() for w in down])
        return Experts(second.shape[0], second.shape[1], second.shape[2], (first, second))

    def make_kv_cache(
        self, spec: AttentionSpec, num_blocks: int, block_size: int, grid: KvGrid | None = None
    ) -> KvCache:
        """Pages full of NaN."""

        def empty(*shape: int) -> FloatArray:
            return np.full((num_blocks, block_size, *shape), np.nan, np.float32)

        if spec.kind == "gqa":
            k, v = empty(spec.num_kv_heads, spec.head_dim), empty(spec.num_kv_heads, spec.v_head_dim)
        else:
            k, v = empty(spec.latent_dim), empty(spec.rope.dim)
        return KvCache(num_blocks, block_size, Pages(k, v, empty(spec.index_dim), grid))

    def kv_block_bytes(self, spec: AttentionSpec, block_size: int, grid: KvGrid | None = None) -> int:
        """The bytes of one block's pages."""
        pages: Pages = self.make_kv_cache(spec, 1, block_size).data
        return pages.k.nbytes + pages.v.nbytes + pages.index.nbytes

    # -- rows ---------------------------------------------------------------------
    def embed(self, plan: Step, table: Linear) -> Array:
        """`table[token_ids]`."""
        return table.data[plan.token_ids]

    def linear(self, x: Array, w: Linear) -> Array:
        """`x @ W.T + bias`."""
        y = x @ w.data.T
        return y if w.bias is None else y + w.bias

    def head_linear(self, x: Array, w: Linear) -> Array:
        """Per head `x[:, h] @ W[h].T`."""
        return np.einsum("nhi,hoi->nho", x, w.data)

    def add(self, x: Array, y: Array) -> Array:
        """`x + y`."""
        return x + y

    def rms_norm(self, x: Array, gain: Array, eps: float) -> Array:
        """`x / sqrt(mean(x^2) + eps) * gain` over the last axis."""
        mean_square = np.mean(np.square(x), axis=-1, keepdims=True, dtype=np.float32)
        return x / np.sqrt(mean_square + np.float32(eps)) * gain

    def rope(self, x: Array, plan: Step, spec: RopeSpec) -> Array:
        """(a, b) -> (a cos - b sin, b cos + a sin); pairs are neighbours or halves of `dim`."""
        angles = rope_angles(plan.positions, spec)[:, None, :]
        cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
        half = spec.dim // 2
        if spec.interleaved:
            first, second = slice(0, spec.dim, 2), slice(1, spec.dim, 2)
        else:
            first, second = slice(0, half), slice(half, spec.dim)
        out = x.copy()
        out[..., first] = x[..., first] * cos - x[..., second] * sin
        out[..., second] = x[..., second] * cos + x[..., first] * sin
        return out

    def swiglu(self, gate_up: Array) -> Array:
        """`gate * sigmoid(gate) * up`."""
        width = gate_up.shape[-1] // 2
        gate, up = gate_up[..., :width], gate_up[..., width:]
        return gate * sigmoid(gate) * up

    def take_rows(self, x: Array, plan: Step) -> Array:
        """`x[logit_rows]`."""
        return x[plan.logit_rows]

    def sample(self, logits: Array, how: SamplerInputs) -> Array:
        """See `reference_sampling`."""
        return reference_sampling.sample(logits, how)

    # -- experts ------------------------------------------------------------------
    def route(self, logits: Array, bias: Array, spec: MoeSpec) -> tuple[Array, Array]:
        """Top-k of scores + bias in the allowed groups, best first; weights leave the bias out."""
        scores = sigmoid(logits) if spec.scoring == "sigmoid" else softmax(logits)
        ids = np.zeros((len(logits), spec.top_k), np.int32)
        for t, choice in enumerate(scores + bias):
            choice = np.where(allowed_experts(choice, spec), choice, -np.inf)
            ids[t] = best_first(choice)[: spec.top_k]
        weights = np.take_along_axis(scores, ids, axis=1)  # without the bias
        if spec.renormalize:
            weights = weights / (weights.sum(axis=1, keepdims=True) + np.float32(1e-20))
        return weights * np.float32(spec.routed_scale), ids

    def experts(self, x: Array, weights: Array, ids: Array, w: Experts) -> Array:
        """Sum over the chosen experts of `weight * down(swiglu(gate_up(x)))`, in the order of `ids`."""
        gate_up, down = w.data
        out = np.zeros_like(x)
        for t in range(len(x)):
            for weight, e in zip(weights[t], ids[t], strict=True):
                out[t] += weight * (self.swiglu(x[t] @ gate_up[e].T) @ down[e].T)
        return out

    # -- attention ----------------------------------------------------------------
    def kv_write(self, k: Array, v: Array, cache: KvCache, plan: Step) -> None:
        """Rows into their slots, on the cache's grid if it has one, in steps if the cache has 8 bits."""
        slots, grid = plan.slots(cache.block_size), cache.data.grid
        if grid is not None:
            k, v = on_grid(k, grid.k_scale, grid.k_offset), on_grid(v, grid.v_scale, grid.v_offset)
        elif self.kv_precision == "int8":
            k, v = in_steps(k), in_steps(v)
        flat(cache.data.k)[slots], flat(cache.data.v)[slots] = k, v

    def index_write(self, keys: Array, cache: KvCache, plan: Step) -> None:
        """Index keys into their slots."""
        flat(cache.data.index)[plan.slots(cache.block_size)] = keys

    def attend(self, q: Array, cache: KvCache, plan: Step, spec: AttentionSpec) -> Array:
        """`softmax(q.k * scale) @ v` over positions up to the query's own; heads share KV heads."""
        out = np.zeros((len(q), spec.num_heads, spec.v_head_dim), np.float32)
        group = spec.num_heads // spec.num_kv_heads
        for t, slots in enumerate(seen_by(plan, cache.block_size)):
            k, v = flat(cache.data.k)[slots], flat(cache.data.v)[slots]
            for h in range(spec.num_heads):
                p = softmax(k[:, h // group] @ q[t, h] * np.float32(spec.scale))
                out[t, h] = p @ v[:, h // group]
        return out

    def attend_latent(
        self, q: Array, q_rope: Array, cache: KvCache, plan: Step, spec: AttentionSpec, selected: Array | None
    ) -> Array:
        """score = (q.latent + q_rope.k_rope) * scale, value = latent; only `selected` if given."""
        out = np.zeros((len(q), spec.num_heads, spec.latent_dim), np.float32)
        for t, slots in enumerate(seen_by(plan, cache.block_size)):
            if selected is not None:
                slots = slots[selected[t][selected[t] >= 0]]
            latent, k_rope = flat(cache.data.k)[slots], flat(cache.data.v)[slots]
            for h in range(spec.num_heads):
                score = latent @ q[t, h] + k_rope @ q_rope[t, h]
                out[t, h] = softmax(score * np.float32(spec.scale)) @ latent
        return out

    def index_topk(self, q: Array, weights: Array, cache: KvCache, plan: Step, k: int) -> Array:
        """score = sum over heads of `relu(q.key) * weight`; k best positions first, then -1."""
        out = np.full((len(q), k), -1, np.int32)
        for t, slots in enumerate(seen_by(plan, cache.block_size)):
            keys = flat(cache.data.index)[slots]
            score = np.maximum(keys @ q[t].T, 0) @ weights[t]
            best = best_first(score)[:k]
            out[t, : len(best)] = best
        return out
