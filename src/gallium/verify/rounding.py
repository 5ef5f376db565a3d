"""What rounding alone does: the other side's ops on values rounded to the width that the tested side keeps.

A softmax sharpens differences by as much as its scores are large, so no fixed share fits attention on every model. The
share of the precision is widened there by what rounded inputs change on the other side itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gallium.errors import BackendError
from gallium.ops.handles import FloatArray, Precision
from gallium.ops.interface import BLOCKS, CORE_OPS, Ops
from gallium.ops.tolerances import TOLERANCES, is_float

SHARPENING = frozenset(("attend", "attend_latent", "gqa", "mla", "mla_sparse"))
PRODUCTS = frozenset(("linear", "row_linear", "logits", "experts", "gated_mlp", "moe"))
"""Where a checkpoint's integers are multiplied, activations are rounded to 8 bits with one scale for a token's row."""
WRITING = frozenset(("kv_write", "index_write"))
READING = frozenset(("attend", "attend_latent"))
LEEWAY = 4.0  # one way of rounding is a sample: another's largest change may be some times as large


def leeway(op: str, precision: Precision) -> float:
    """How many times the change by rounding is allowed. A block has products in it, which 8 or 4 bits round further."""
    width: Precision = "float16" if precision == "float16" else "bfloat16"
    ratio = TOLERANCES["linear", precision].rtol / TOLERANCES["linear", width].rtol
    return LEEWAY * (ratio if op in BLOCKS else 1.0)


def rounded(values: FloatArray, precision: Precision) -> FloatArray:
    """Values to the nearest, ties to even, of the floats that activations and caches are kept in."""
    if precision == "float32":
        return values
    if precision == "float16":
        with np.errstate(over="ignore"):
            return values.astype(np.float16).astype(np.float32)
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    kept = bits + 0x7FFF + ((bits >> 16) & 1)
    return (kept & np.uint32(0xFFFF0000)).view(np.float32)


def per_token(values: FloatArray) -> FloatArray:
    """Rows on a grid of 8 bits: 127 is the largest magnitude."""
    scale = np.abs(values).max(axis=-1, keepdims=True, initial=0.0) / np.float32(127)
    grid: FloatArray = np.rint(np.divide(values, scale, out=np.zeros_like(values), where=scale > 0)) * scale
    return grid


def rounding_ops(ops: Ops, precision: Precision, *, integers: bool) -> Ops:
    """The same ops with every result rounded, and with `integers` what is multiplied too; blocks are composed.

    For weights that `ops` has packed.
    """

    def nearest(value: Any) -> Any:
        if value is None or isinstance(value, tuple):
            return None if value is None else tuple(map(nearest, value))
        array = ops.download(value)
        return ops.upload(rounded(np.array(array), precision)) if is_float(array) else value

    def method(name: str) -> Callable[..., Any]:
        honest = getattr(ops, name)
        if integers and name in PRODUCTS:
            return lambda _, x, *rest: nearest(honest(ops.upload(per_token(np.array(ops.download(x)))), *rest))
        return lambda _, *args: nearest(honest(*args))

    def refused(_: Ops, *args: Any, **named: Any) -> Any:
        raise BackendError("rounding ops run a loaded model; they load none.")

    def upload(_: Ops, array: Any) -> Any:
        return ops.upload(rounded(array, precision) if is_float(array) else array)

    bodies = {block: getattr(Ops, block) for block in BLOCKS}
    methods = dict.fromkeys(Ops.__abstractmethods__, refused) | {op: method(op) for op in CORE_OPS} | bodies
    made: Ops = type("RoundingOps", (Ops,), methods | {"upload": upload})()
    return made
