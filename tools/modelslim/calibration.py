"""What a model's projections and KV caches see on a text: run in float32 on the CPU, one op after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gallium.backends.cpu.ops import CpuOps
from gallium.checkpoints import Checkpoint
from gallium.models.catalog import load_model
from gallium.models.config import read_spec
from gallium.ops.handles import FloatArray, KvCache, Linear, Role, Step, Weight
from gallium.ops.interface import Ops

BLOCK = 16
CHUNK = 256  # tokens of one sequence


@dataclass
class Seen:
    """Per channel: least and largest value of each module's input, and the largest magnitude of keys and values."""

    inputs: dict[str, tuple[FloatArray, FloatArray]] = field(default_factory=dict)
    keys: list[FloatArray] = field(default_factory=list)  # per layer [kv_heads * head_dim]
    values: list[FloatArray] = field(default_factory=list)


class Watching(CpuOps):
    """CPU ops that note what `linear` and `kv_write` are given. Blocks are composed, so that nothing is missed."""

    gated_mlp = Ops.gated_mlp
    moe = Ops.moe
    gqa = Ops.gqa

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__("float32")
        self._keys = {tensor.name: key for key, tensor in checkpoint.tensors.items()}  # GGUF has names of its own
        self.seen = Seen()
        self.caches: list[KvCache] = []
        self._names: dict[int, list[str]] = {}

    def pack_linear(self, parts: Sequence[Weight], bias: Sequence[Weight] = (), role: Role = "linear") -> Linear:
        """Remember which modules it is."""
        packed = super().pack_linear(parts, bias, role)
        self._names[id(packed.data)] = [self._keys[part.name] for part in parts]
        return packed

    def linear(self, x: Any, w: Linear) -> Any:
        """Widen the range of each module."""
        low, high = x.min(axis=0), x.max(axis=0)
        for name in self._names[id(w.data)]:
            known = self.seen.inputs.get(name, (low, high))
            self.seen.inputs[name] = np.minimum(known[0], low), np.maximum(known[1], high)
        return super().linear(x, w)

    def kv_write(self, k: Any, v: Any, cache: KvCache, plan: Any) -> None:
        """Widen the range of each channel."""
        layer = next(index for index, known in enumerate(self.caches) if known is cache)
        for held, given in ((self.seen.keys, k), (self.seen.values, v)):
            largest = np.abs(given).reshape(len(given), -1).max(axis=0)
            if layer == len(held):
                held.append(largest)
            held[layer] = np.maximum(held[layer], largest)
        super().kv_write(k, v, cache, plan)


def calibrate(checkpoint: Checkpoint, ids: Sequence[int]) -> Seen:
    """Run the ids through the model, in sequences of CHUNK tokens."""
    ops = Watching(checkpoint)
    spec = read_spec(checkpoint.config, checkpoint.generation_config)
    model = load_model(checkpoint, spec, ops)
    blocks = CHUNK // BLOCK
    ops.caches = model.make_caches(blocks, BLOCK)
    for start in range(0, len(ids), CHUNK):
        chunk = np.array(ids[start : start + CHUNK], np.int32)
        n = len(chunk)
        step = Step(
            chunk,
            np.arange(n, dtype=np.int32),
            np.array([0, n], np.int32),
            np.array([n], np.int32),
            np.arange(blocks, dtype=np.int32)[None],
            np.array([n - 1], np.int32),
        )
        model.forward(ops.plan(step), ops.caches)
    return ops.seen
