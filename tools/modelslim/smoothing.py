"""Moves outliers of activations into weights, before either is rounded: the first step of msModelSlim's recipes.

A channel of an input is divided by s and the columns that read it are multiplied by s: nothing changes but rounding.
The division goes into what makes the channel: the gain of the norm before it, or the rows of the up projection before
down (SmoothQuant, arXiv:2211.10438, with alpha = 0.5; msModelSlim calls the two "norm-linear" and "up-down").
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from tools.modelslim.calibration import Seen

from gallium.checkpoints import Checkpoint
from gallium.ops.handles import FloatArray

LEAST = 1e-5


@dataclass
class Factors:
    """What rows and columns of each tensor are multiplied by; a norm's gain has rows only."""

    rows: dict[str, FloatArray] = field(default_factory=dict)
    columns: dict[str, FloatArray] = field(default_factory=dict)

    def applied(self, name: str, values: FloatArray) -> FloatArray:
        """The tensor of that name, smoothed."""
        if name in self.rows:
            values = values * (self.rows[name][:, None] if values.ndim == 2 else self.rows[name])
        return values * self.columns[name] if name in self.columns else values

    def touches(self, name: str) -> bool:
        """Whether it changes at all."""
        return name in self.rows or name in self.columns


def smooth(source: Checkpoint, seen: Seen) -> Factors:
    """The factors for every layer; `seen` then says what the smoothed model sees."""
    factors = Factors()
    for layer in range(int(source.config["num_hidden_layers"])):
        at = f"model.layers.{layer}."
        attention = [at + f"self_attn.{part}_proj.weight" for part in "qkv"]
        _share(source, seen, factors, at + "input_layernorm.weight", attention)
        mlp = [at + f"mlp.{part}_proj.weight" for part in ("gate", "up")]
        if mlp[0] in source.tensors:
            _share(source, seen, factors, at + "post_attention_layernorm.weight", mlp)
        for up, down in _pairs(source.tensors, at):
            _share(source, seen, factors, up, [down])
    return factors


def _pairs(names: Mapping[str, object], at: str) -> Iterator[tuple[str, str]]:
    """up and down of a layer's dense MLP or shared expert. With a bias, or gate and up in one, it stays as it is."""
    for module in (at + "mlp.", at + "mlp.shared_experts."):
        if module + "up_proj.weight" in names and module + "up_proj.bias" not in names:
            yield module + "up_proj.weight", module + "down_proj.weight"


def _share(source: Checkpoint, seen: Seen, factors: Factors, before: str, after: Sequence[str]) -> None:
    """Smooth the input of the matrices `after`, whose channels `before` makes: a norm, or an up projection's rows."""
    low, high = seen.inputs[after[0]]
    largest = np.maximum(np.abs(low), np.abs(high))
    weights = np.max([np.abs(source.weight(name).float32()).max(axis=0) for name in after], axis=0)
    s = np.sqrt(np.maximum(largest, LEAST) / np.maximum(weights, LEAST)).astype(np.float32)
    factors.rows[before] = factors.rows.get(before, np.float32(1)) / s
    for name in after:
        factors.columns[name] = s
        seen.inputs[name] = low / s, high / s
