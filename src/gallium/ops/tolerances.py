"""How far a backend's op may be from the reference, per op and precision, and why. Data; one rule to apply it.

An element may differ by `atol + rtol * m`, where m is the largest magnitude of its row (last axis) in the reference.
Ids and positions (of `route`, `index_topk`, `sample`) must be equal.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gallium.ops.handles import FloatArray, IntArray, Precision


class Tolerance(NamedTuple):
    """The allowed difference of one op."""

    rtol: float
    atol: float
    reason: str


_COPY = "moves values, computes nothing"
_LAST_BIT = "one or two roundings, and exp, sin or rsqrt may differ in the last bits"
_SUM_ORDER = "float32 sums of up to some thousand terms in another order"
_BF16 = "bfloat16 has 8 significant bits: each factor is off by up to 2^-9, sums of products by a few times that"
_FP16 = "float16 has 11 significant bits: each factor is off by up to 2^-12, sums of products by a few times that"
_FP16_CACHE = "keys and values are kept in float16"
_BF16_CACHE = "keys and values are kept in bfloat16"
_INT8 = "weights and activations in 8 bits: each factor is off by up to 1/254 of its row's largest value"
_INT4 = "weights in 4 bits: each is off by up to 1/30 of its group's range"
_SHARPENED = "two such products with a softmax between them, which sharpens their differences"
_ROUTER = "the router stays in float32 in every precision"

_MATMULS = ("linear", "head_linear", "row_linear", "logits")
_TWO_MATMULS = ("experts", "gated_mlp", "moe")
_COPIES = ("embed", "take_rows", "all_reduce", "all_gather", "kv_write", "index_write")
_ROWWISE = ("add", "rms_norm", "add_rms_norm", "rope", "swiglu")
_ATTENTION = ("attend", "attend_latent")
_ATTENTION_BLOCKS = ("gqa", "mla", "mla_sparse", "mla_prolog", "mla_epilog")
_EXACT_IDS = ("route", "index_topk", "sample")


def _table() -> dict[tuple[str, Precision], Tolerance]:
    rows: dict[tuple[str, Precision], Tolerance] = {}

    def put(ops: tuple[str, ...], precision: Precision, rtol: float, reason: str, atol: float = 1e-6) -> None:
        for op in ops:
            rows[op, precision] = Tolerance(rtol, atol, reason)

    put(_COPIES, "float32", 0.0, _COPY, 0.0)
    put(_ROWWISE, "float32", 2e-6, _LAST_BIT)
    put(_EXACT_IDS, "float32", 2e-6, _LAST_BIT)
    put((*_MATMULS, *_TWO_MATMULS), "float32", 1e-5, _SUM_ORDER)
    put((*_ATTENTION, *_ATTENTION_BLOCKS), "float32", 1e-5, _SUM_ORDER)
    reduced: tuple[tuple[Precision, float, float, float, str], ...] = (
        ("float16", 0.003, 0.005, 0.005, _FP16),
        ("bfloat16", 0.02, 0.03, 0.03, _BF16),
        ("int8", 0.04, 0.06, 0.06, _INT8),
        ("int4", 0.2, 0.3, 0.4, _INT4),
    )
    for precision, one, two, sharpened, reason in reduced:
        half = precision == "float16"
        put(_COPIES, precision, one if precision != "int4" else 0.04, reason)
        put(_ROWWISE, precision, *((0.002, _FP16) if half else (0.01, _BF16)))
        put(_EXACT_IDS, precision, 2e-6, _ROUTER)
        put(_MATMULS, precision, one, reason)
        put(_TWO_MATMULS, precision, two, reason)
        put(_ATTENTION, precision, *((0.002, _FP16_CACHE) if half else (0.01, _BF16_CACHE)))
        put(_ATTENTION_BLOCKS, precision, sharpened, f"{reason}; {_SHARPENED}")
    return rows


TOLERANCES = _table()


def is_float(array: FloatArray | IntArray) -> bool:
    """Whether an array holds values; ids and positions are whole numbers."""
    return not np.issubdtype(array.dtype, np.integer)


def row_scale(wanted: FloatArray) -> NDArray[np.float64]:
    """The largest magnitude of each row (last axis), as an array that stretches over it."""
    scale: NDArray[np.float64] = np.abs(wanted.astype(np.float64)).max(axis=-1, keepdims=True)
    return scale


def difference(op: str, precision: Precision, got: FloatArray, wanted: FloatArray) -> str | None:
    """None if `got` is near enough to the reference's `wanted`, else a sentence that says where and by how much."""
    if got.shape != wanted.shape:
        return f"shape {got.shape}, the reference has {wanted.shape}"
    if got.size == 0:
        return None
    rule = TOLERANCES[op, precision]
    allowed = rule.atol + rule.rtol * row_scale(wanted) if is_float(wanted) else np.zeros(1)
    error = np.abs(got.astype(np.float64) - wanted.astype(np.float64))
    bad = ~(error <= allowed)  # also true for NaN
    if not bad.any():
        return None
    where = tuple(int(i) for i in np.argwhere(bad)[0])
    limit = float(np.broadcast_to(allowed, error.shape)[where])
    return (
        f"{int(bad.sum())} of {bad.size} elements differ too much; the first at {where}: {got[where]:.9g}, reference "
        f"{wanted[where]:.9g}, allowed difference {limit:.2g} ({rule.reason})"
    )
