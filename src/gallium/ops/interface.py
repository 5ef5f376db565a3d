"""The hardware seam: the core ops a backend must write, and the blocks it may replace.

x is `[tokens, hidden]` unless said otherwise. The meaning of each op is defined by `ops/reference.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

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
    Tensor,
    Weight,
)

Plan: TypeAlias = Any
"""A Step on the device: made once per forward pass, private to the backend."""


class OpReport(NamedTuple):
    """Which code runs for one op."""

    op: str
    how: str  # "kernel" | "composed"
    where: str  # file:line of the code that will run


class Ops(ABC):
    """One backend, opened for one loaded model. Dispatch is an ordinary method call."""

    name: str
    kv_precision: KvPrecision | None = None
    """What a KV cache without a grid holds, where the backend tells."""
    block_size: int = 32
    """Tokens per block of the KV cache that suit this backend; it takes any other as well."""

    # -- memory and execution -------------------------------------------------
    @abstractmethod
    def upload(self, array: FloatArray | IntArray) -> Tensor:
        """A float32 host array as a tensor of this backend (norm gains, router bias); int32 stays int32 (ids)."""

    @abstractmethod
    def download(self, x: Tensor) -> FloatArray:
        """A tensor as a float32 host array (int32 for ids and positions); waits for it."""

    def like(self, x: Tensor, other: Tensor) -> Tensor:
        """x in the number format of another tensor, as far as the backend has several for activations."""
        return x

    @abstractmethod
    def plan(self, step: Step) -> Plan:
        """Prepare a step for the device: rope tables, slots, work split. Once per forward pass."""

    def compile_step(
        self, forward: Callable[[Plan], Tensor], decode_sizes: tuple[int, ...] = ()
    ) -> Callable[[Step], Tensor]:
        """Own padding, planning, capture and replay. Eager by default."""
        return lambda step: forward(self.plan(step))

    # -- packing: the layout is chosen with the kernel --------------------------
    @abstractmethod
    def pack_linear(self, parts: Sequence[Weight], bias: Sequence[Weight] = (), role: Role = "linear") -> Linear:
        """One projection whose output rows are the rows of `parts` `[out_i, in]`, in order; `bias` likewise `[out_i]`.

        A Linear packed with role "head" or "embedding" can also be read by `embed`.
        """

    @abstractmethod
    def pack_heads(self, weight: Sequence[Weight]) -> Linear:
        """Per-head projections for `head_linear`; one Weight `[out, in]` per head."""

    @abstractmethod
    def pack_experts(
        self,
        gate_up: Sequence[Sequence[Weight]],
        down: Sequence[Weight],
        roles: tuple[Role, Role] = ("linear", "linear"),
    ) -> Experts:
        """Per expert: parts stacked to `[2 * width, hidden]` (gate first), and `[hidden, width]`; the role of each."""

    @abstractmethod
    def make_kv_cache(
        self, spec: AttentionSpec, num_blocks: int, block_size: int, grid: KvGrid | None = None
    ) -> KvCache:
        """An empty cache for one layer. With a `grid` (gqa only), `kv_write` puts keys and values on it."""

    @abstractmethod
    def kv_block_bytes(self, spec: AttentionSpec, block_size: int, grid: KvGrid | None = None) -> int:
        """Bytes that one block of one layer takes in `make_kv_cache`, which a backend may make fewer with a `grid`."""

    # -- core ops ---------------------------------------------------------------
    @abstractmethod
    def embed(self, plan: Plan, table: Linear) -> Tensor:
        """`table[token_ids]` -> `[tokens, hidden]`."""

    @abstractmethod
    def linear(self, x: Tensor, w: Linear) -> Tensor:
        """`x @ W.T + bias` -> `[tokens, out]`."""

    @abstractmethod
    def head_linear(self, x: Tensor, w: Linear) -> Tensor:
        """`[tokens, heads, in]` -> `[tokens, heads, out]`, each head its own matrix."""

    @abstractmethod
    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """`x + y`."""

    @abstractmethod
    def rms_norm(self, x: Tensor, gain: Tensor, eps: float) -> Tensor:
        """Over the last axis: `x / sqrt(mean(x^2) + eps) * gain`."""

    @abstractmethod
    def rope(self, x: Tensor, plan: Plan, spec: RopeSpec) -> Tensor:
        """Rotate the first `spec.dim` of the last axis of `[tokens, heads, width]`."""

    @abstractmethod
    def swiglu(self, gate_up: Tensor) -> Tensor:
        """First half gate, second half up: `gate * sigmoid(gate) * up`."""

    @abstractmethod
    def route(self, logits: Tensor, bias: Tensor, spec: MoeSpec) -> tuple[Tensor, Tensor]:
        """Router logits `[tokens, experts]` -> (weights, ids), both `[tokens, top_k]`."""

    @abstractmethod
    def experts(self, x: Tensor, weights: Tensor, ids: Tensor, w: Experts) -> Tensor:
        """Weighted sum of the chosen experts' outputs, in the order of `ids`."""

    @abstractmethod
    def kv_write(self, k: Tensor, v: Tensor, cache: KvCache, plan: Plan) -> None:
        """Store this step's keys and values `[tokens, kv_heads, width]` (mla: latent, rope key)."""

    @abstractmethod
    def index_write(self, keys: Tensor, cache: KvCache, plan: Plan) -> None:
        """Store this step's index keys `[tokens, index_dim]` (mla_sparse only)."""

    @abstractmethod
    def attend(self, q: Tensor, cache: KvCache, plan: Plan, spec: AttentionSpec) -> Tensor:
        """Causal paged attention of `[tokens, heads, head_dim]` -> `[tokens, heads, v_head_dim]`."""

    @abstractmethod
    def attend_latent(
        self,
        q: Tensor,
        q_rope: Tensor,
        cache: KvCache,
        plan: Plan,
        spec: AttentionSpec,
        selected: Tensor | None,
    ) -> Tensor:
        """Attention over latents (mla) -> `[tokens, heads, latent]`; only over `selected` positions if given."""

    @abstractmethod
    def index_topk(self, q: Tensor, weights: Tensor, cache: KvCache, plan: Plan, k: int) -> Tensor:
        """Positions `[tokens, k]` that each query may see, -1 where there are fewer (mla_sparse only)."""

    @abstractmethod
    def take_rows(self, x: Tensor, plan: Plan) -> Tensor:
        """`x[logit_rows]`."""

    @abstractmethod
    def sample(self, logits: Tensor, how: SamplerInputs) -> Tensor:
        """One token id per row of `[rows, vocab]` -> int32 `[rows]`."""

    def all_reduce(self, x: Tensor) -> Tensor:
        """Sum over the ranks of a tensor-parallel group; identity on one device."""
        return x

    def all_gather(self, x: Tensor) -> Tensor:
        """`[rows, part]` of every rank of a tensor-parallel group, side by side; identity on one device."""
        return x

    # -- blocks: correct everywhere; a backend overrides those it can fuse -------
    def add_rms_norm(self, x: Tensor, residual: Tensor | None, gain: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """(norm(residual + x), residual + x)."""
        residual = x if residual is None else self.add(residual, x)
        return self.rms_norm(residual, gain, eps), residual

    def row_linear(self, x: Tensor, w: Linear) -> Tensor:
        """A linear whose input is split over devices."""
        return self.all_reduce(self.linear(x, w))

    def logits(self, x: Tensor, head: Linear) -> Tensor:
        """The whole vocabulary's logits from a head whose rows are split over devices."""
        return self.all_gather(self.linear(x, head))

    def gated_mlp(self, x: Tensor, gate_up: Linear, down: Linear) -> Tensor:
        """`down(swiglu(gate_up(x)))`."""
        return self.row_linear(self.swiglu(self.linear(x, gate_up)), down)

    def moe(self, x: Tensor, w: Any, spec: MoeSpec) -> Tensor:
        """Routed experts plus the shared expert; `w` is a `models.decoder.MoeWeights`."""
        weights, ids = self.route(self.linear(x, w.router), w.router_bias, spec)
        routed = self.experts(x, weights, ids, w.experts)
        if w.shared_gate_up is None:
            return self.all_reduce(routed)
        shared = self.linear(self.swiglu(self.linear(x, w.shared_gate_up)), w.shared_down)
        return self.all_reduce(self.add(routed, shared))  # one collective for both halves

    def gqa(self, x: Tensor, w: Any, cache: KvCache, plan: Plan, spec: AttentionSpec, eps: float) -> Tensor:
        """Grouped-query attention from hidden to hidden; `w` is a `models.decoder.GqaWeights`."""
        n, d = x.shape[0], spec.head_dim
        qkv = self.linear(x, w.qkv)
        nq, nk = spec.num_heads * d, spec.num_kv_heads * d
        q = qkv[:, :nq].reshape(n, spec.num_heads, d)
        k = qkv[:, nq : nq + nk].reshape(n, spec.num_kv_heads, d)
        v = qkv[:, nq + nk :].reshape(n, spec.num_kv_heads, spec.v_head_dim)
        if w.q_gain is not None:
            q, k = self.rms_norm(q, w.q_gain, eps), self.rms_norm(k, w.k_gain, eps)
        q, k = self.rope(q, plan, spec.rope), self.rope(k, plan, spec.rope)
        self.kv_write(k, v, cache, plan)
        return self.row_linear(self.attend(q, cache, plan, spec).reshape(n, spec.num_heads * spec.v_head_dim), w.out)

    def mla_prolog(
        self, x: Tensor, w: Any, cache: KvCache, plan: Plan, spec: AttentionSpec, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Project to (absorbed q, rotated q, low-rank q) and write latent and rope key to the cache."""
        n, h, nope, r = x.shape[0], spec.num_heads, spec.head_dim, spec.latent_dim
        q_low = self.rms_norm(self.linear(x, w.q_down), w.q_gain, eps)
        q = self.linear(q_low, w.q_up).reshape(n, h, nope + spec.rope.dim)
        kv = self.linear(x, w.kv_down)
        latent = self.rms_norm(kv[:, :r], w.kv_gain, eps)
        k_rope = self.rope(kv[:, r:].reshape(n, 1, spec.rope.dim), plan, spec.rope)
        self.kv_write(latent, k_rope.reshape(n, spec.rope.dim), cache, plan)
        return self.head_linear(q[:, :, :nope], w.k_absorb), self.rope(q[:, :, nope:], plan, spec.rope), q_low

    def mla(self, x: Tensor, w: Any, cache: KvCache, plan: Plan, spec: AttentionSpec, eps: float) -> Tensor:
        """Multi-head latent attention from hidden to hidden."""
        q, q_rope, _ = self.mla_prolog(x, w, cache, plan, spec, eps)
        return self.mla_epilog(self.attend_latent(q, q_rope, cache, plan, spec, None), w)

    def mla_sparse(self, x: Tensor, w: Any, cache: KvCache, plan: Plan, spec: AttentionSpec, eps: float) -> Tensor:
        """Latent attention over the positions that an indexer selects."""
        q, q_rope, q_low = self.mla_prolog(x, w, cache, plan, spec, eps)
        index_q = self.linear(q_low, w.index_q).reshape(x.shape[0], w.index_heads, spec.index_dim)
        self.index_write(self.linear(x, w.index_k), cache, plan)
        selected = self.index_topk(index_q, self.linear(x, w.index_weight), cache, plan, spec.index_topk)
        return self.mla_epilog(self.attend_latent(q, q_rope, cache, plan, spec, selected), w)

    def mla_epilog(self, o: Tensor, w: Any) -> Tensor:
        """From latent outputs per head back to hidden."""
        y = self.head_linear(o, w.v_absorb)
        return self.row_linear(y.reshape(y.shape[0], y.shape[1] * y.shape[2]), w.out)

    # -- visibility ---------------------------------------------------------------
    def explain(self) -> list[OpReport]:
        """Say which code runs for every op. No dispatch is hidden from the user."""
        rows = []
        for op in op_names():
            fn = getattr(self, op)
            code = getattr(fn, "__wrapped__", fn).__code__
            how = "composed" if getattr(type(self), op) is getattr(Ops, op) else "kernel"
            rows.append(OpReport(op, how, f"{code.co_filename.rsplit('/', 1)[-1]}:{code.co_firstlineno}"))
        return rows


CORE_OPS = (
    "embed", "linear", "head_linear", "add", "rms_norm", "rope", "swiglu", "route", "experts",
    "kv_write", "index_write", "attend", "attend_latent", "index_topk", "take_rows", "sample",
    "all_reduce", "all_gather",
)  # fmt: skip
BLOCKS = (
    "add_rms_norm", "row_linear", "logits", "gated_mlp", "moe", "gqa", "mla_prolog", "mla", "mla_sparse", "mla_epilog",
)  # fmt: skip


def op_names() -> tuple[str, ...]:
    """Every op and block, in the order in which reports list them."""
    return CORE_OPS + BLOCKS
