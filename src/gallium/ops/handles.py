"""Values that cross the hardware seam. Data only, no behaviour."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

FloatArray: TypeAlias = NDArray[np.float32]
IntArray: TypeAlias = NDArray[np.int32]
Precision: TypeAlias = Literal["float32", "float16", "bfloat16", "int8", "int4"]
KvPrecision: TypeAlias = Literal["float32", "float16", "bfloat16", "int8"]
"""What a KV cache holds. "int8": of each token and head, keys and values as whole multiples of a step of their own."""
Role: TypeAlias = Literal["linear", "sensitive", "float", "head", "embedding", "router"]
"""What a projection is for. A backend may keep a role more precise than asked (a router is always float32).

"sensitive" is a linear that the checkpoint's maker kept more precise than the rest of the model. "float" is any matrix
that a maker who gave integers for the model (`Weight.quantisation`) left in floating point: it is not quantised."""


class Tensor(Protocol):
    """All that a model may touch on a tensor; everything else is an op."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Axis lengths, the tokens first."""
        ...

    def reshape(self, *shape: int) -> Tensor:
        """The same elements in another shape."""
        ...

    def __getitem__(self, key: Any) -> Tensor: ...  # basic slices: views only


@dataclass(frozen=True, slots=True)
class Quantisation:
    """How the integers of a quantised weight `[out, in]` become numbers, and what was calibrated for its input.

    A weight is `codes * scale`, its scale that of its row and group of `in / groups` columns; there are no offsets.
    A projection `y = x W.T + bias` is computed in integers, all of the rest in float32:

    * "dynamic": per token `s = max |x| / 127`, `q = round(x / s)` (0 where s is 0);
      `y = sum over groups of (q . codes in the group) * scale * s + bias`.
    * "static": `q = round(x * (1 / input_scale) + input_offset)`, kept within -128 to 127; groups is 1;
      `y = (q . codes + correction) * output_scale + bias`.

    Rounding is half to even. Rows may be cut as they like; of columns cut over ranks the first rank keeps `correction`,
    the others have zeros, and the sum over ranks is right. The bias is a Weight of its own, in float, in both cases:
    where a file has folded it into its integers too, it is taken out of `correction`.
    """

    bits: Literal[4, 8]  # codes are -128 to 127, or -8 to 7
    scale: FloatArray  # [out, groups]
    activations: Literal["dynamic", "static"]
    input_scale: float = 1.0  # static only, with the next three
    input_offset: int = 0
    output_scale: FloatArray | None = None  # [out]: input_scale * scale as the file rounds it
    correction: IntArray | None = None  # [out]: takes the offset's part out of the integer sums


@dataclass(frozen=True, slots=True)
class KvGrid:
    """The calibrated 8-bit grid of one layer's keys (after rope) and values: one scale and offset per channel.

    What is cached is `code = round(x * (1 / scale) + offset)`, half to even, kept within -128 to 127; what attention
    sees is `(code - offset) * scale`.
    """

    k_scale: FloatArray  # [kv_heads, head_dim]
    k_offset: FloatArray  # whole numbers, often all zero
    v_scale: FloatArray  # [kv_heads, v_head_dim]
    v_offset: FloatArray


class Weight(Protocol):
    """A checkpoint tensor that has not been read yet: 1-D `[n]` or 2-D `[out, in]`.

    Backends read it while packing, a few rows at a time, so that a model never exists twice in memory.
    """

    @property
    def name(self) -> str:
        """The tensor's name in the checkpoint."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """`[n]` or `[out, in]`."""
        ...

    @property
    def storage(self) -> str:
        """How `raw` is coded: F32, F16, BF16, or a GGUF block format: Q8_0, Q4_0, Q4_1, Q4_K, Q5_K, Q6_K.

        I8 and I4 are the integers of a weight that has a `quantisation`: `raw` holds out * in int8 values (view it as
        that), of I4 too, whatever packing the file has.
        """
        ...

    @property
    def quantisation(self) -> Quantisation | None:
        """What makes numbers of the integers of I8 and I4; None for the codings that are complete in themselves."""
        ...

    def raw(self) -> NDArray[np.uint8]:
        """The stored bytes, 1-D, row after row; a view of the mapped file where the layout allows it."""
        ...

    def float32(self, start: int = 0, stop: int | None = None) -> FloatArray:
        """Rows `start:stop` (elements, for 1-D) decoded to float32."""
        ...

    def rows(self, start: int, stop: int) -> Weight:
        """Rows `start:stop` (elements, for 1-D) as a Weight of their own; nothing is read."""
        ...


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """Rotary embedding of the first `dim` of each head; frequencies base^(-2i/dim)."""

    dim: int  # rotated width, may be smaller than head_dim
    base: float
    interleaved: bool  # GLM-4 pairs (0,1); GLM-4.5 pairs (0, dim/2)


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    """The facts of one model's attention. All widths come from the checkpoint's config, none is derived."""

    kind: Literal["gqa", "mla", "mla_sparse"]
    num_heads: int
    num_kv_heads: int
    head_dim: int  # q.k width; for mla: nope width
    v_head_dim: int
    scale: float
    rope: RopeSpec
    latent_dim: int = 0  # mla only
    index_dim: int = 0  # mla_sparse only: width of one index key
    index_topk: int = 0  # mla_sparse only: tokens each query may see


@dataclass(frozen=True, slots=True)
class MoeSpec:
    """How tokens choose experts."""

    num_experts: int
    top_k: int
    scoring: Literal["sigmoid", "softmax"]
    renormalize: bool
    routed_scale: float
    num_groups: int = 1
    top_groups: int = 1


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What a backend must know of a model before it is opened."""

    name: str  # the architecture: "glm", "glm4", "glm4_moe", …
    num_layers: int
    hidden: int
    vocab_size: int  # rows of the head
    attention: AttentionSpec
    moe: MoeSpec | None = None


@dataclass(frozen=True, slots=True)
class Placement:
    """One rank of a model that is spread over `tp * dp` processes, each with a device of its own.

    Ranks of one tensor-parallel group stand side by side and share attention heads, MLP columns and vocabulary; `dp`
    such groups serve different sequences. The experts are shared by all ranks (`ep = tp * dp`) or, with `ep = 1`, cut
    like an MLP within each group.
    """

    rank: int = 0
    tp: int = 1
    dp: int = 1
    ep: int = 1
    rendezvous: str = ""  # where the ranks meet, as a URL: "tcp://127.0.0.1:29500"

    @property
    def world(self) -> int:
        """How many ranks there are."""
        return self.tp * self.dp

    @property
    def tp_rank(self) -> int:
        """The place in the tensor-parallel group."""
        return self.rank % self.tp

    @property
    def dp_rank(self) -> int:
        """Which group."""
        return self.rank // self.tp

    @property
    def ep_rank(self) -> int:
        """Which share of the experts."""
        return self.rank if self.ep > 1 else 0


ALONE = Placement()


@dataclass(frozen=True, slots=True)
class Linear:
    """A packed projection `[out, in]`. `data` and `bias` are private to the backend that packed it."""

    in_features: int
    out_features: int
    data: Any
    bias: Any = None


@dataclass(frozen=True, slots=True)
class Experts:
    """The packed experts of one layer: hidden -> width -> hidden."""

    num_experts: int
    hidden: int
    width: int
    data: Any


@dataclass(frozen=True, slots=True)
class KvCache:
    """One layer's paged cache. The backend owns shape, order and dtype."""

    num_blocks: int
    block_size: int
    data: Any


@dataclass(frozen=True, slots=True)
class Step:
    """One forward pass, described on the host. The scheduler builds it, a backend plans it."""

    token_ids: IntArray  # [tokens]
    positions: IntArray  # [tokens], consecutive within a sequence
    query_start: IntArray  # [seqs + 1]
    context_lens: IntArray  # [seqs], after this step
    block_tables: IntArray  # [seqs, max_blocks]; entries past the context are -1 and never read
    logit_rows: IntArray  # [rows], indices into tokens

    def slots(self, block_size: int) -> IntArray:
        """`[tokens]`: where each token's key and value go: block * block_size + offset."""
        seq = np.repeat(np.arange(len(self.context_lens)), np.diff(self.query_start))
        blocks = self.block_tables[seq, self.positions // block_size]
        slots: IntArray = (blocks * block_size + self.positions % block_size).astype(np.int32)
        return slots


@dataclass(frozen=True, slots=True)
class SamplerInputs:
    """How each logit row is sampled. temperature 0 is greedy; (seed, position) fixes a row's noise.

    Adjustments are sparse, in compressed rows: those of row r are `[adjust_start[r]:adjust_start[r + 1]]`.
    For each listed token first the repetition penalty (`logit / scale` if positive, else `logit * scale`),
    then `+ bias` (logit bias minus presence and frequency penalties; -inf forbids the token).
    """

    temperature: FloatArray  # [rows]
    top_k: IntArray  # [rows], 0 = off
    top_p: FloatArray  # [rows], 1 = off
    min_p: FloatArray  # [rows], 0 = off
    seed: NDArray[np.uint64]  # [rows]
    position: IntArray  # [rows], of the token being drawn
    adjust_start: IntArray  # [rows + 1]
    adjust_ids: IntArray  # [adjustments], below vocab_size, unique within a row
    adjust_scale: FloatArray  # [adjustments], 1 = none
    adjust_bias: FloatArray  # [adjustments], 0 = none
    vocab_size: int  # ids from here on are padding and never drawn
