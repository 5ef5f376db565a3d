"""What each op must move and compute: formulas of shapes, packed sizes and the step, of no backend.

The bytes are the least that any implementation moves: a weight is read once per call, keys and values once per
sequence, tensors that enter or leave the op once. Multiplications and additions are counted, a function such as exp as
one. The profiler compares these with the time that was taken; a planner can do so before anything runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from gallium.ops.handles import AttentionSpec, Experts, Linear, Precision, Step
from gallium.ops.machine import Limits, Stored

BITS: Mapping[Precision, int] = {"float32": 32, "float16": 16, "bfloat16": 16, "int8": 8, "int4": 4}


@dataclass(frozen=True, slots=True)
class Cost:
    """Bytes by what they are, and operations by the precision of the units that do them."""

    weights: int = 0
    kv: int = 0
    activations: int = 0
    operations: Mapping[Precision, int] = field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        """All bytes."""
        return self.weights + self.kv + self.activations

    @property
    def num_operations(self) -> int:
        """All operations."""
        return sum(self.operations.values())

    def __add__(self, other: Cost) -> Cost:
        return total((self, other))


def total(parts: Iterable[Cost]) -> Cost:
    """All together."""
    weights = kv = activations = 0
    operations: dict[Precision, int] = {}
    for part in parts:
        weights += part.weights
        kv += part.kv
        activations += part.activations
        for precision, count in part.operations.items():
            operations[precision] = operations.get(precision, 0) + count
    return Cost(weights, kv, activations, operations)


@dataclass(frozen=True, slots=True)
class Sizes:
    """In what a backend keeps the values that are not weights."""

    value: int = 4  # bytes of one activation
    kv_value: float = 2.0  # bytes of one value in the KV cache, padding and scales included

    @property
    def attention(self) -> Precision:
        """The precision of products with cached values."""
        return "float32" if self.kv_value >= 4 else "bfloat16"


@dataclass(frozen=True, slots=True)
class Roof:
    """The least time that a machine needs, and what it is that takes this long."""

    seconds: float
    limit: str  # "memory", or a precision: the peak of its units


def roof(cost: Cost, limits: Limits) -> Roof | None:
    """Bytes at the measured bandwidth or operations at the measured peaks, whichever takes longer.

    None if the machine's peak of a precision that is needed is not known.
    """
    if any(not limits.operations_per_s.get(name) for name, count in cost.operations.items() if count):
        return None
    moved = Roof(cost.num_bytes / limits.read_bytes_per_s, "memory")
    each = {name: count / limits.operations_per_s[name] for name, count in cost.operations.items() if count}
    if not each or sum(each.values()) <= moved.seconds:
        return moved
    return Roof(sum(each.values()), max(each, key=lambda name: each[name]))


def stored(values: int, precision: Precision) -> Stored:
    """A weight of so many values at the bits of its precision: for whoever does not know what a backend has packed."""
    return Stored(-(-values * BITS[precision] // 8), precision)


def experts_met(num_experts: int, chosen: int, tokens: int) -> float:
    """How many of n experts b tokens meet that choose k each at random: n * (1 - (1 - k/n)^b), on average."""
    return num_experts * (1 - (1 - chosen / num_experts) ** tokens)


def pairs(step: Step) -> int:
    """Pairs of a query and a key that it may see: each token sees those up to its own position."""
    return int(step.positions.sum()) + len(step.positions)


def context(step: Step) -> int:
    """Keys that are read, each once per sequence."""
    return int(step.context_lens.sum())


# -- one op each; tokens, rows and values are counts -----------------------------------


def embed(tokens: int, table: Linear, packed: Stored, sizes: Sizes) -> Cost:
    """Rows of a table."""
    return Cost(
        weights=tokens * packed.num_bytes // max(1, table.out_features),
        activations=tokens * table.in_features * sizes.value,
    )


def linear(tokens: int, w: Linear, packed: Stored, sizes: Sizes, heads: int = 1) -> Cost:
    """A product with a whole matrix; `heads`: with one matrix per head, `packed` being all of them."""
    return Cost(
        weights=packed.num_bytes if tokens else 0,
        activations=tokens * heads * (w.in_features + w.out_features) * sizes.value,
        operations={packed.precision: 2 * tokens * heads * w.in_features * w.out_features},
    )


def elementwise(read: int, written: int, operations: int, sizes: Sizes) -> Cost:
    """So many values read and written, in float32."""
    return Cost(activations=(read + written) * sizes.value, operations={"float32": operations})


def add(values: int, sizes: Sizes) -> Cost:
    """`x + y`."""
    return elementwise(2 * values, values, values, sizes)


def rms_norm(values: int, sizes: Sizes) -> Cost:
    """A square, its sum, and two factors per value."""
    return elementwise(values, values, 4 * values, sizes)


def add_rms_norm(values: int, sizes: Sizes) -> Cost:
    """In one pass: x and residual come, the norm and the new residual go."""
    return elementwise(2 * values, 2 * values, 5 * values, sizes)


def rope(values: int, turned: int, sizes: Sizes) -> Cost:
    """Two products and a sum for each turned value."""
    return elementwise(values, values, 3 * turned, sizes)


def swiglu(values: int, sizes: Sizes) -> Cost:
    """To so many values, from twice as many: exp, sum, quotient and product."""
    return elementwise(2 * values, values, 4 * values, sizes)


def route(tokens: int, num_experts: int, chosen: int, sizes: Sizes) -> Cost:
    """A score and a bias per expert; weights and ids go."""
    return elementwise(tokens * num_experts, 2 * tokens * chosen, 2 * tokens * num_experts, sizes)


def experts(tokens: int, chosen: int, met: float, w: Experts, packed: Stored, sizes: Sizes) -> Cost:
    """Three products per choice; of all experts only the `met` ones are read, each once."""
    products: dict[Precision, int] = {packed.precision: 2 * tokens * chosen * 3 * w.hidden * w.width}
    between = elementwise(0, 0, tokens * chosen * (4 * w.width + 2 * w.hidden), sizes)  # SwiGLU, weighted sum
    return between + Cost(
        weights=round(packed.num_bytes * met / w.num_experts),
        activations=2 * tokens * w.hidden * sizes.value,
        operations=products,
    )


def kv_values(spec: AttentionSpec) -> int:
    """Values that `kv_write` caches of one token in one layer."""
    if spec.kind == "gqa":
        return spec.num_kv_heads * (spec.head_dim + spec.v_head_dim)
    return spec.latent_dim + spec.rope.dim


def kv_write(tokens: int, values: int, sizes: Sizes) -> Cost:
    """`values` per token from activations to the cache."""
    return Cost(kv=round(tokens * values * sizes.kv_value), activations=tokens * values * sizes.value)


def attend(step: Step, spec: AttentionSpec, sizes: Sizes) -> Cost:
    """Every key and value of each context read once, whatever the number of heads; two products per pair and head."""
    heads, widths = spec.num_heads, spec.head_dim + spec.v_head_dim
    return Cost(
        kv=round(context(step) * kv_values(spec) * sizes.kv_value),
        activations=len(step.positions) * heads * widths * sizes.value,
        operations={sizes.attention: 2 * pairs(step) * heads * widths},
    )


def attend_latent(step: Step, spec: AttentionSpec, selected: int | None, sizes: Sizes) -> Cost:
    """Over latents, which are key and value in one; over `selected` positions per query at most, if given."""
    tokens, heads = len(step.positions), spec.num_heads
    seen, read = pairs(step), context(step)
    if selected is not None:
        seen = sum(min(int(position) + 1, selected) for position in step.positions)
        read = min(read, seen)
    key = spec.latent_dim + spec.rope.dim
    return Cost(
        kv=round(read * key * sizes.kv_value),
        activations=tokens * heads * (key + spec.latent_dim) * sizes.value,
        operations={sizes.attention: 2 * seen * heads * (key + spec.latent_dim)},
    )


def index_topk(step: Step, heads: int, width: int, chosen: int, sizes: Sizes) -> Cost:
    """A score of every key that a query may see, from `heads` products of `width`."""
    tokens = len(step.positions)
    return Cost(
        kv=round(context(step) * width * sizes.kv_value),
        activations=tokens * (heads * (width + 1) + chosen) * sizes.value,
        operations={sizes.attention: 2 * pairs(step) * heads * (width + 1)},
    )


def take_rows(values: int, sizes: Sizes) -> Cost:
    """So many values copied."""
    return elementwise(values, values, 0, sizes)


def sample(rows: int, vocabulary: int, sizes: Sizes) -> Cost:
    """Every logit looked at once, and an id per row."""
    return elementwise(rows * vocabulary, rows, rows * vocabulary, sizes)


def fused(parts: Iterable[Cost], values: int, sizes: Sizes) -> Cost:
    """Ops in one: of the activations only the `values` that enter or leave the whole must move."""
    found = total(parts)
    return Cost(found.weights, found.kv, values * sizes.value, found.operations)
