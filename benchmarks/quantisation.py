"""What weights in groups of 32, 64 or 128 and activations in 8 bits cost: divergence from float32 on real text.

The default model's file is quantised itself, in groups of 32 columns. Its channels are shuffled first, which changes
nothing of what it computes and leaves no group on the grid that the file had for it. Weights and activations are then
rounded and multiplied as float32, so that only the formats are compared, not anybody's kernels.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gallium.backends.cpu.ops import CpuOps
from gallium.checkpoints.fitting import Fit, best_line, best_scale
from gallium.checkpoints.opening import open_checkpoint
from gallium.checkpoints.resolve import default_model_path
from gallium.checkpoints.tensor import StoredTensor
from gallium.engine.loading import read_tokenizer
from gallium.models.catalog import expected_tensors, load_model
from gallium.models.config import read_spec
from gallium.models.spec import ModelSpec
from gallium.ops.handles import FloatArray, Linear, Step

Rounding = Callable[[FloatArray], FloatArray]
TEXT = Path(__file__).parent.parent / "tests" / "golden" / "real_text.txt"


# -- formats ------------------------------------------------------------------------
def in_groups(round_groups: Callable[[FloatArray], FloatArray], size: int) -> Rounding:
    """Apply to groups of `size` columns, 0 for whole rows; the last group may be short."""

    def apply(x: FloatArray) -> FloatArray:
        width = size or x.shape[-1]
        padded = np.pad(x, ((0, 0), (0, -x.shape[-1] % width)))
        done = round_groups(padded.reshape(-1, width)).reshape(len(x), -1)
        return np.ascontiguousarray(done[:, : x.shape[-1]])

    return apply


def half(x: FloatArray) -> FloatArray:
    """Rounded to float16."""
    return x.astype(np.float16).astype(np.float32)


def divided(x: FloatArray, by: FloatArray) -> FloatArray:
    """0 where `by` is 0."""
    return np.divide(x, by, out=np.zeros_like(x), where=by != 0)


def fitted(fit: Callable[[FloatArray], Fit]) -> Callable[[FloatArray], FloatArray]:
    """Groups as this project's int8 (`best_scale`) or int4 (`best_line`) holds them, at any group size."""

    def values(x: FloatArray) -> FloatArray:
        found = fit(np.ascontiguousarray(x.T))
        return (found.scale.astype(np.float32) * found.quants + found.offset.astype(np.float32)).T

    return values


def q4_0(x: FloatArray) -> FloatArray:
    """llama.cpp's Q4_0 at any group size: d * (q - 8), the value of largest magnitude on q = 0."""
    largest = np.take_along_axis(x, np.abs(x).argmax(1)[:, None], axis=1)
    d = largest / np.float32(-8)
    q = np.clip(np.floor(divided(x, d) + np.float32(8.5)), 0, 15)
    return half(d) * (q - 8)


def q8_0(x: FloatArray) -> FloatArray:
    """llama.cpp's Q8_0: the largest magnitude has quant 127; the scale is rounded after the quants are found."""
    d = np.abs(x).max(1, keepdims=True) / np.float32(127)
    return half(d) * np.rint(divided(x, d))


def bytes8(x: FloatArray) -> FloatArray:
    """Activations in 8 bits with a float32 scale."""
    d = np.abs(x).max(1, keepdims=True) / np.float32(127)
    return d * np.rint(divided(x, d))


def bfloat16(x: FloatArray) -> FloatArray:
    """To the nearest, ties to even."""
    bits = np.ascontiguousarray(x).view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + (bits >> 16 & 1)) & np.uint32(0xFFFF0000)).view(np.float32)


def exact(x: FloatArray) -> FloatArray:
    """As it is."""
    return x


WEIGHTS: dict[str, tuple[Rounding, float]] = {"float32": (exact, 32), "Q8_0": (in_groups(q8_0, 32), 8.5)}
for _size in (32, 128, 0):
    _bits = 8 + (16 / _size if _size else 0)
    WEIGHTS[f"int8 per {_size or 'row'}"] = (in_groups(fitted(best_scale), _size), _bits)
for _size in (32, 64, 128):
    WEIGHTS[f"int4 d q + m per {_size}"] = (in_groups(fitted(best_line), _size), 4 + 32 / _size)
    WEIGHTS[f"int4 d (q - 8) per {_size}" + (" = Q4_0" if _size == 32 else "")] = (
        in_groups(q4_0, _size),
        4 + 16 / _size,
    )
ACTIVATIONS: dict[str, Rounding] = {
    "float32": exact,
    "bfloat16": bfloat16,
    "int8 per 32": in_groups(bytes8, 32),
    "int8 per 128": in_groups(bytes8, 128),
    "int8 per token": in_groups(bytes8, 0),
}


# -- the model ------------------------------------------------------------------------
class Arrays:
    """A checkpoint in memory, whose matrices are rounded as they are read: head and embedding to 8 bits if at all."""

    def __init__(self, tensors: Mapping[str, FloatArray], rounding: Rounding) -> None:
        self.tensors, self.rounding = tensors, rounding

    def names(self) -> list[str]:
        return list(self.tensors)

    def weight(self, name: str, index: int | None = None) -> StoredTensor:
        array = self.tensors[name]
        if array.ndim == 2 and self.rounding is not exact:
            in_8_bits = "embed" in name or "head" in name
            array = WEIGHTS["int8 per 32"][0](array) if in_8_bits else self.rounding(array)
        return StoredTensor(name, array.shape, "F32", np.ascontiguousarray(array).view(np.uint8).reshape(-1))

    def check(self, expected: Mapping[str, tuple[int, ...]], ignored: Collection[str] = ()) -> None:
        assert set(expected) <= set(self.tensors)


class Rounded(CpuOps):
    """Float32 products whose inputs are rounded first."""

    rounding: Rounding = staticmethod(exact)

    def linear(self, x: Any, w: Linear) -> Any:
        return super().linear(self.rounding(x), w)

    def gated_mlp(self, x: Any, gate_up: Linear, down: Linear) -> Any:
        return self.linear(self.swiglu(self.linear(x, gate_up)), down)

    def gqa(self, x: Any, w: Any, cache: Any, plan: Any, spec: Any, eps: float) -> Any:
        return super(CpuOps, self).gqa(x, w, cache, plan, spec, eps)


def shuffled(tensors: Mapping[str, FloatArray], spec: ModelSpec) -> dict[str, FloatArray]:
    """The same function with its channels in another order: of the residual stream, of the MLPs and of the values."""
    rng = np.random.default_rng(0)
    hidden = rng.permutation(spec.hidden)
    a = spec.attention
    out = {}
    for layer in range(spec.num_layers):
        at = f"model.layers.{layer}."
        inner = rng.permutation(spec.ffn)
        values = np.concatenate([rng.permutation(a.v_head_dim) + h * a.v_head_dim for h in range(a.num_kv_heads)])
        groups = np.split(values, a.num_kv_heads)
        group = a.num_heads // a.num_kv_heads
        heads = np.concatenate([groups[h // group] % a.v_head_dim + h * a.v_head_dim for h in range(a.num_heads)])
        rows = {"gate_proj": inner, "up_proj": inner, "v_proj": values, "o_proj": hidden, "down_proj": hidden}
        columns = {"o_proj": heads, "down_proj": inner}
        for name, value in tensors.items():
            if name.startswith(at):
                part = name.split(".")[-2]
                moved = value[rows[part]] if part in rows else value
                out[name] = moved[..., columns.get(part, hidden)]
    for name, value in tensors.items():
        if not name.startswith("model.layers."):
            out[name] = value[..., hidden]
    return {name: np.ascontiguousarray(value) for name, value in out.items()}


class Rater:
    """The model with its weights rounded in one way, for inputs rounded in several."""

    def __init__(self, tensors: Mapping[str, FloatArray], spec: ModelSpec, rounding: Rounding) -> None:
        self.ops = Rounded("float32")
        self.model = load_model(Arrays(tensors, rounding), spec, self.ops)

    def logits(self, ids: list[int], rounding: Rounding) -> NDArray[np.float64]:
        """All logits of a text."""
        self.ops.rounding = rounding
        count, block = len(ids), 32
        blocks = -(-count // block)
        numbers = np.arange(count, dtype=np.int32)
        caches = self.model.make_caches(blocks, block)
        step = Step(
            np.array(ids, np.int32), numbers, np.array([0, count], np.int32), np.array([count], np.int32),
            np.arange(blocks, dtype=np.int32)[None], numbers,
        )  # fmt: skip
        return self.ops.download(self.model.forward(self.ops.plan(step), caches)).astype(np.float64)


def divergence(wanted: NDArray[np.float64], got: NDArray[np.float64]) -> tuple[float, float]:
    """Mean KL per token, and the share of equal first choices."""

    def log_softmax(x: NDArray[np.float64]) -> NDArray[np.float64]:
        shifted = x - x.max(-1, keepdims=True)
        out: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
        return out

    p, q = log_softmax(wanted), log_softmax(got)
    return float((np.exp(p) * (p - q)).sum(-1).mean()), float((p.argmax(-1) == q.argmax(-1)).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", type=Path, default=TEXT)
    parser.add_argument("--tokens", type=int, default=384)
    asked = parser.parse_args()
    checkpoint = open_checkpoint(default_model_path())
    spec = read_spec(checkpoint.config)
    names = expected_tensors(spec, checkpoint.names())
    tensors = shuffled({name: checkpoint.weight(name).float32() for name in names}, spec)
    tokenizer = read_tokenizer(checkpoint, needed=True)
    assert tokenizer is not None  # it is needed
    ids = tokenizer.encode(asked.text.read_text(encoding="utf-8"))[: asked.tokens]
    wanted = Rater(tensors, spec, exact).logits(ids, exact)
    print(f"{len(ids)} tokens; mean KL per token (share of equal first choices)\n")
    print("| weights | bits | " + " | ".join(f"activations {name}" for name in ACTIVATIONS) + " |")
    print("|---|---|" + "---|" * len(ACTIVATIONS))
    for name, (rounding, bits) in WEIGHTS.items():
        cells, rater = [], Rater(tensors, spec, rounding)
        for act in ACTIVATIONS.values():
            kl, same = divergence(wanted, rater.logits(ids, act))
            cells.append(f"{kl:.4f} ({same:.1%})")
        print(f"| {name} | {bits:g} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
